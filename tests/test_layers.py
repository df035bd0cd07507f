"""No module imports from a floor above, from a sister, or a library that belongs to another."""

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
APP = ROOT / "app"

# From the ground up. A module may import from its own package and from any line above its own, never from its own
# line's other modules. Where a floor has an order within, it takes several lines.
FLOORS = [
    {"errors", "lanes", "plausibility", "postgresql_url", "tasks"},
    {"model"},
    {"notation", "metrics"},
    {"config"},
    {"protocols", "signing", "logs"},
    {"storage", "db"},
    {"records"},
    {"usage", "tokens", "totals", "merges"},
    {"resources", "claims"},
    {"batches", "turns", "lookup", "quota", "trash", "moves"},
    {"in_doubt"},
    {"publish"},
    {"ingest", "once", "sessions", "sweep", "verify", "holding"},
    {"scrub", "concatenation"},
    {"completion"},
    {"recovery"},
    {"expiry", "appending"},
    {"resume"},
    {"snapshots"},
    {"backup", "restore"},
    {"web"},
    {"main"},
    {"checks", "server"},
    {"cli"},
    {"__main__"},
]

# Who may import what is not the project's. What is not named here may be imported by all.
OWNERS = {
    "aiofiles": {"storage"},
    "aiosqlite": {"db"},
    "asyncpg": {"db"},
    "click": {"cli"},
    "databases": {"db"},
    "dotenv": {"config"},
    "http_sf": {"protocols"},
    "httptools": {"server"},
    "itsdangerous": {"signing"},
    "prometheus_client": {"web"},
    "pydantic_settings": {"config"},
    "sqlalchemy": {"db"},
    "sqlite3": {"db"},
    "starlette": {"web", "main", "server"},  # the application is put together in one and run in the other
    "uuid_utils": {"main"},
    "uvicorn": {"server"},
    "uvloop": {"server"},
    # Ids and keys are arguments; one module makes them.
    "secrets": {"main"},
    "uuid": {"main"},
}

# Bytes and headers in, events and decisions out: no I/O, no clock, no waiting.
NOT_FOR_PROTOCOLS = {
    "aiofiles", "asyncio", "concurrent", "ctypes", "io", "mmap", "multiprocessing", "os", "pathlib", "random", "select",
    "shutil", "signal", "socket", "ssl", "subprocess", "tempfile", "threading", "time",
}  # fmt: skip


def floor(module):
    for level, modules in enumerate(FLOORS):
        if module in modules:
            return level
    pytest.fail(f"app/{module} stands on no floor: place it in FLOORS, on the lowest line that its imports allow")


def imports(source):
    """The full names of what a module imports, wherever in it that is said."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute here"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def faults(module, source):
    """What `source`, as a part of app/`module`, imports and must not."""
    for name in imports(source):
        library, _, rest = name.partition(".")
        if library == "app":
            imported = rest.partition(".")[0]
            if imported != module and floor(imported) >= floor(module):
                yield f"{name} is not below {module}"
            elif module == "protocols" and imported not in {"protocols", "errors", "model"}:
                yield f"{name} is nothing for a protocol"
        elif module not in OWNERS.get(library, {module}):
            yield f"{library} belongs to {' and '.join(sorted(OWNERS[library]))}"
        elif module == "protocols" and library in NOT_FOR_PROTOCOLS:
            yield f"{library} is nothing for a protocol"
        elif module == "tasks" and library not in sys.stdlib_module_names:
            yield f"{library} is more than {module} needs"


def sources():
    return sorted(path for path in APP.rglob("*.py") if path != APP / "__init__.py")


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(APP)))
def test_a_module_imports_only_what_it_may(path):
    module = path.relative_to(APP).with_suffix("").parts[0]
    floor(module)
    assert list(faults(module, path.read_text())) == []


def test_every_library_that_is_imported_is_a_declared_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {normal(re.match(r"[\w.-]+", line)[0]) for line in project["dependencies"]}
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
        ("db", "from app import storage", "app.storage is not below db"),
        ("publish", "def late():\n    import app.ingest", "app.ingest is not below publish"),
        ("ingest", "from app.sessions import Sessions", "app.sessions.Sessions is not below ingest"),
        ("ingest", "import starlette.requests", "starlette belongs to main and server and web"),
        ("web", "import aiofiles.os", "aiofiles belongs to storage"),
        ("records", "from sqlalchemy import text", "sqlalchemy belongs to db"),
        ("protocols", "import time", "time is nothing for a protocol"),
        ("protocols", "from app.tasks import to_the_end", "app.tasks.to_the_end is nothing for a protocol"),
        ("sessions", "from secrets import token_bytes", "secrets belongs to main"),
        ("tasks", "import structlog", "structlog is more than tasks needs"),
    ],
)
def test_what_must_not_be_imported_is_found(module, source, fault):
    assert list(faults(module, source)) == [fault]


def test_a_module_may_import_its_own_package_and_whatever_is_below():
    assert list(faults("web", "from app.web.body import Body\nfrom app import records\nimport json, starlette")) == []


def test_a_module_without_a_floor_is_found():
    with pytest.raises(pytest.fail.Exception, match="app/helpers stands on no floor"):
        floor("helpers")
