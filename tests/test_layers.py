"""No module imports from a floor above, from a sister, or a library that belongs to another."""

import ast
import re
import sys
import tomllib
from collections import Counter
from importlib import metadata
from pathlib import Path

import pytest

from app.db import queries
from tests.support.sources import parse

ROOT = Path(__file__).parent.parent
APP = ROOT / "app"
QUERIES = {name for dialect in ("sqlite", "postgresql") for name in queries.load(dialect)}

# From the ground up, eight floors. What stands right of an arrow may import what stands left of it, and what stands
# side by side does not import one another. Modules of one package are free among themselves, and so are those that ask
# the database, which are called `records`, or `*_records`, wherever they lie.
FLOORS = """
errors → annotations durations → model
history ids cancellation background plausibility signing → config metrics → logs
protocols storage db
*records
sessions quotas idempotency → uploads → resumables → links events → maintenance → backup
web
secret_key → main → checks server
client → commands → cli → __main__
"""
STEPS = [set(step.split()) for line in FLOORS.split("\n") for step in line.split("→")]

# Who may import what is not the project's. What is not named here may be imported by all.
OWNERS = {
    "aiofiles": {"storage"},
    "aiohttp": {"client"},
    "aiosqlite": {"db"},
    "asyncpg": {"db"},
    "click": {"cli", "client", "commands"},
    "databases": {"db"},
    "dotenv": {"config"},
    "http_sf": {"protocols"},
    "httptools": {"server"},
    "zipstream": {"protocols"},
    "itsdangerous": {"signing"},
    "jinja2": {"web"},
    "platformdirs": {"client"},
    "prometheus_client": {"web"},
    "pydantic_settings": {"config"},
    "segno": {"web"},
    "sqlalchemy": {"db"},
    "rich": {"client"},
    "sqlite3": {"db", "client"},  # the client remembers what it has sent, and knows no database
    "starlette": {"web", "main", "server"},  # the application is put together in one and run in the other
    "uuid_utils": {"ids"},
    "uvicorn": {"server"},
    "uvloop": {"server", "client"},
    "yarl": {"client"},
    # Ids and keys are arguments; one module makes them.
    "secrets": {"ids", "secret_key"},
    "uuid": {"ids"},
}

# What these may import of ours, wherever it stands.
ALONE = {
    "protocols": {"protocols", "errors", "annotations", "durations", "model"},
    "client": {"client", "protocols", "errors", "annotations", "durations"},
}

# Bytes and headers in, events and decisions out: no I/O, no clock, no waiting.
NOT_FOR_PROTOCOLS = {
    "aiofiles", "asyncio", "concurrent", "ctypes", "io", "mmap", "multiprocessing", "os", "pathlib", "random", "select",
    "shutil", "signal", "socket", "ssl", "subprocess", "tempfile", "threading", "time",
}  # fmt: skip


def place(module):
    """The word of FLOORS for a module, given as the names on its path below app/."""
    return "*records" if module[-1].endswith("records") else module[0]


def step(module):
    for number, places in enumerate(STEPS):
        if place(module) in places:
            return number
    pytest.fail(f"app/{'/'.join(module)} stands on no floor: place it in FLOORS, as far left as its imports allow")


def module_of(name):
    """The module of app that a full name is, or is in: its names below app."""
    parts = name.split(".")[1:]
    while parts and not (APP.joinpath(*parts).is_dir() or APP.joinpath(*parts).with_suffix(".py").is_file()):
        parts.pop()
    return parts


def imports(source):
    """The full names of what a module imports, wherever in it that is said."""
    for node in ast.walk(parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute here"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def faults(module, source):
    """What `source`, as the module of app at this path, imports and must not."""
    module = module.split("/")
    package = module[0]
    for name in imports(source):
        library, _, _ = name.partition(".")
        if library == "app":
            imported = module_of(name)
            within = place(imported) == place(module) or (imported[0] == package and place(module) != "*records")
            if not within and step(imported) >= step(module):
                yield f"{name} is not below {'/'.join(module)}"
            elif package in ALONE and imported[0] not in ALONE[package]:
                yield f"{name} is nothing for {package}"
        elif package not in OWNERS.get(library, {package}):
            yield f"{library} belongs to {' and '.join(sorted(OWNERS[library]))}"
        elif package == "protocols" and library in NOT_FOR_PROTOCOLS:
            yield f"{library} is nothing for protocols"
        elif package == "cancellation" and library not in sys.stdlib_module_names:
            yield f"{library} is more than {package} needs"


def queries_asked(source):
    """The named queries that a module asks of a database."""
    for node in ast.walk(parse(source)):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in {"one", "many", "run"}
        ):
            name = node.args[0] if node.args else None
            if isinstance(name, ast.Constant) and name.value in QUERIES:
                yield name.value


def sources():
    return sorted(path for path in APP.rglob("*.py") if path != APP / "__init__.py")


def module_at(path):
    return "/".join(path.relative_to(APP).with_suffix("").parts).removesuffix("/__init__")


@pytest.mark.parametrize("path", sources(), ids=module_at)
def test_a_module_imports_only_what_it_may(path):
    step(module_at(path).split("/"))
    assert list(faults(module_at(path), path.read_text())) == []


@pytest.mark.parametrize("path", sources(), ids=module_at)
def test_a_module_asks_the_database_only_if_it_keeps_records(path):
    if place(module_at(path).split("/")) not in {"*records", "db"}:
        assert list(queries_asked(path.read_text())) == []


def test_no_two_public_classes_share_a_name():
    named = Counter(
        node.name
        for path in sources()
        for node in parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert {name for name, count in named.items() if count > 1} == set()


def test_every_library_that_is_imported_is_a_declared_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["client"]]
    declared = {normal(re.match(r"[\w.-]+", line)[0]) for line in lines}
    used = {name.partition(".")[0] for path in sources() for name in imports(path.read_text())}
    brought_by = metadata.packages_distributions()
    for library in used - sys.stdlib_module_names - {"app", "pydantic_core"}:  # pydantic_core is pydantic's own
        assert declared & {normal(name) for name in brought_by[library]}, f"{library} is not in pyproject.toml"


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("model", "from app.config import Settings", "app.config.Settings is not below model"),
        ("db/pool", "from app import storage", "app.storage is not below db/pool"),
        ("uploads/records", "from app.quotas import Quotas", "app.quotas.Quotas is not below uploads/records"),
        ("uploads/ingest", "def late():\n    import app.resumables", "app.resumables is not below uploads/ingest"),
        ("quotas", "from app.sessions import Sessions", "app.sessions.Sessions is not below quotas"),
        ("uploads/ingest", "import starlette.requests", "starlette belongs to main and server and web"),
        ("web/downloads", "import aiofiles.os", "aiofiles belongs to storage"),
        ("uploads/records", "from sqlalchemy import text", "sqlalchemy belongs to db"),
        ("protocols/tus", "import time", "time is nothing for protocols"),
        (
            "protocols/tus",
            "from app.cancellation import run_to_completion",
            "app.cancellation.run_to_completion is nothing for protocols",
        ),
        ("client/wire", "from app.model import Upload", "app.model.Upload is nothing for client"),
        ("sessions", "from secrets import token_bytes", "secrets belongs to ids and secret_key"),
        ("cancellation", "import structlog", "structlog is more than cancellation needs"),
    ],
)
def test_an_import_that_must_not_be_is_found(module, source, fault):
    assert list(faults(module, source)) == [fault]


def test_a_module_may_import_its_own_package_and_what_is_below():
    source = "from app.web.body import Body\nfrom app.uploads import records\nimport json, starlette"
    assert list(faults("web/uploads", source)) == []


def test_records_may_import_records():
    assert list(faults("resumables/records", "from app.sessions.records import NewSession")) == []


def test_a_question_to_the_database_is_found():
    assert list(queries_asked("async def run(db):\n    await db.one('find_session')\n    db.one('nothing')")) == [
        "find_session"
    ]


def test_a_module_without_a_floor_is_found():
    with pytest.raises(pytest.fail.Exception, match="app/helpers stands on no floor"):
        step(["helpers"])
