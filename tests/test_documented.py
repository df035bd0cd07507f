"""The pages say what the code says, and what they link to and name is there."""

import importlib
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import pytest

import app
from app.config import OF_THE_CLIENT, PREFIX, Settings, load
from app.errors import problem_codes
from tests.support import tables
from tests.support.asgi import serving, settings_in

ROOT = Path(__file__).parent.parent
DOCS = sorted(ROOT.glob("docs/**/*.md"))
GUIDE = [
    ROOT / "README.md",
    ROOT / "docs/index.md",
    *(page for part in ("api", "client", "operations") for page in ROOT.glob(f"docs/{part}/*.md")),
]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob(".github/**/*.md"), *DOCS, ROOT / "bench/README.md", ROOT / "sql/README.md"]
)
of_each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def spans(page):
    """The texts that stand as code in a page's sentences and tables."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def prose(page):
    """A page without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


# --- what is generated


@pytest.fixture
async def generated(tmp_path):
    async with serving(settings_in(tmp_path)) as service:
        return tables.tables((await service.client().get("/metrics")).body.decode())


@pytest.mark.parametrize("name", tables.PLACES)
async def test_a_table_is_as_the_code_has_it(generated, name):
    page = tables.PLACES[name].relative_to(ROOT)
    assert tables.shown(name) == generated[name], f"{page} is out of date: run python -m tests.support.tables"


@pytest.mark.parametrize("name", [name for name in Settings.model_fields if tables.default(name)])
def test_a_default_can_be_set_as_the_table_writes_it(name):
    given = {PREFIX + name.upper(): tables.default(name)}
    assert getattr(load(given, Path("/nonexistent/.env")), name) == getattr(Settings(), name)


# --- settings and problem codes


def test_the_guide_names_no_unknown_setting():
    words = {word for page in GUIDE for word in re.findall(rf"\b{PREFIX}\w+", page.read_text("utf-8"))}
    assert words - {PREFIX + name.upper() for name in Settings.model_fields} - OF_THE_CLIENT == set()


def test_every_problem_code_is_explained():
    lines = re.findall(r"^\* ((?:`\w+`(?:, )?)+): ", tables.PLACES["problem codes"].read_text("utf-8"), re.MULTILINE)
    explained = [code for line in lines for code in re.findall(r"\w+", line)]
    assert sorted(explained) == sorted(problem_codes())


# --- links


@of_each_page
def test_the_links_of_a_page_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose(page)))
    assert [
        target for target in targets if not re.match(r"https?://|mailto:", target) and not leads(page, target)
    ] == []


def leads(page, target):
    path, _, anchor = target.partition("#")
    at = (page.parent / path).resolve() if path else page
    return at.exists() and at.is_relative_to(ROOT) and (not anchor or anchor in anchors(at))


def anchors(page):
    """The anchors of a page's headings, as code hosts make them."""
    found = []
    for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^]]*)]\([^)]*\)", r"\1", heading).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        found.append(slug if slug not in found else f"{slug}-{found.count(slug)}")
    return set(found)


# --- files, tests and names


@of_each_page
def test_the_files_and_tests_that_a_page_names_are_there(page):
    named = set(
        re.findall(r"`((?:app|bench|deploy|docs|sql|tests)/[\w./-]+\.\w+)(?:::(\w+))?`", page.read_text("utf-8"))
    )
    gone = {path for path, _ in named if not (ROOT / path).is_file()}
    gone |= {f"{path}::{name}" for path, name in named - {(p, "") for p in gone} if not _holds(ROOT / path, name)}
    assert gone == set()


def _holds(path, test):
    return not test or (path.is_file() and f"def {test}(" in path.read_text("utf-8"))


@pytest.mark.parametrize("page", DOCS, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_names_of_code_on_a_page_are_there(page):
    """`publish.Publisher`, `Sessions.opened`, `app.db.pool`: names that begin with a module or a class of ours."""
    modules, classes, columns = names()
    gone = []
    for span in spans(page):
        first, *rest = span.removesuffix("()").split(".")
        owners = modules.get(first, []) + classes.get(first, [])
        if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+(\(\))?", span) and owners and rest[-1] not in _ENDINGS:
            in_code = any(has(owner, rest) for owner in owners)
            if not in_code and span not in columns:
                gone.append(span)
    assert gone == []


_ENDINGS = {"py", "sql", "md", "db", "lock", "com"}


def names():
    """Modules and public classes of app by their last names, and `table.column` of the database."""
    modules, classes = {"app": [app]}, {}
    for found in pkgutil.walk_packages(app.__path__, "app."):
        if not found.name.endswith("__main__"):
            modules.setdefault(found.name.rpartition(".")[2], []).append(importlib.import_module(found.name))
    for module in [module for some in modules.values() for module in some]:
        for name, kind in vars(module).items():
            if isinstance(kind, type) and kind.__module__.startswith("app."):
                classes.setdefault(name, []).append(kind)
    statements = "\n".join(file.read_text("utf-8") for file in (ROOT / "sql/migrations/sqlite").glob("*.sql"))
    columns = {".".join(added) for added in re.findall(r"ALTER TABLE (\w+) ADD COLUMN (\w+)", statements)}
    for table, body in re.findall(r"CREATE TABLE (\w+) \((.*?)^\)", statements, re.DOTALL | re.MULTILINE):
        columns |= {f"{table}.{column}" for column in re.findall(r"^ +(\w+) ", body, re.MULTILINE)}
    return modules, classes, columns


def has(owner, path):
    """Whether `owner` has this attribute, or a class of that module has it."""
    first, *rest = path
    if hasattr(owner, first):
        return not rest or has(getattr(owner, first), rest)
    if first in getattr(owner, "__annotations__", {}):
        return not rest
    return isinstance(owner, ModuleType) and any(
        has(kind, path) for kind in vars(owner).values() if getattr(kind, "__module__", None) == owner.__name__
    )


# --- the tree and the decisions


def test_the_architecture_page_shows_the_floors():
    test = (ROOT / "tests/test_layers.py").read_text("utf-8")
    rule = re.search(r'^FLOORS = """(.+?)"""', test, re.DOTALL | re.MULTILINE)
    assert rule[1] in (ROOT / "docs/development/architecture.md").read_text("utf-8")


def test_the_architecture_page_names_every_package_and_loose_module():
    words = set(re.findall(r"\w+", " ".join(spans(ROOT / "docs/development/architecture.md"))))
    assert {module.name for module in pkgutil.iter_modules(app.__path__)} - words == set()


def test_every_decision_has_a_number_a_status_and_a_line_in_the_index():
    pages = sorted((ROOT / "docs/decisions").glob("[0-9]*.md"))
    assert [int(page.name[:4]) for page in pages] == [*range(1, len(pages) + 1)]
    index = (ROOT / "docs/decisions/index.md").read_text("utf-8")
    for page in pages:
        title, _, status, _ = page.read_text("utf-8").split("\n", 3)
        found = re.fullmatch(r"Status: (accepted|superseded by \d{4}), (\d{4}-\d{2}-\d{2})", status)
        assert found, f"{page.name} has no status and date"
        assert f"| {int(page.name[:4])} | [{title[2:]}]({page.name}) | {found[1]} | {found[2]} |\n" in index
