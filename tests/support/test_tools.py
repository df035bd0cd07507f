"""No program of the system is needed to collect the suite, and none is started but by the path that was found."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import tools
from tests.support.sources import parse

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for path in (ROOT / "tests").rglob("*.py") if "node_modules" not in path.parts)
ASKS = re.compile(r"tests\.(support\.tools|storage\.stores|proxy|interop\.clients)")
STARTS = {"run", "Popen", "call", "check_call", "check_output", "create_subprocess_exec", "execvp"}


@pytest.mark.slow
def test_the_suite_is_collected_with_an_empty_path():
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PATH": ""}, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "error" not in done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_a_machine_with_the_least_programs_passes_and_says_what_to_install(tmp_path):
    """Nothing is in PATH but what a newcomer's first commands need; the tests that ask for more are skipped."""
    (tmp_path / "python3").symlink_to(sys.executable)
    for name in ("git", "make", "curl"):
        (tmp_path / name).symlink_to(tools.tool(name))
    asking = [path for path in SOURCES if path.name.startswith("test_") and ASKS.search(path.read_text("utf-8"))]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", *asking]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PATH": str(tmp_path)}, capture_output=True, text=True, timeout=1800
    )
    skipped = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    assert (done.returncode, len(skipped) > 2) == (0, True), done.stdout
    assert [line for line in skipped if "is not installed (Debian: apt-get install " not in line] == []


def test_a_program_is_found_beside_the_path_by_its_absolute_path(tmp_path, monkeypatch):
    (tmp_path / "mkfs.ext4").touch(0o755)
    monkeypatch.setattr(tools, "_SYSTEM", (str(tmp_path),))
    monkeypatch.setenv("PATH", "")
    assert tools.tool("mkfs.ext4") == str(tmp_path / "mkfs.ext4")
    monkeypatch.delenv("PATH")
    monkeypatch.chdir(tmp_path)
    assert os.path.isabs(tools.tool("mkfs.ext4"))


def test_a_missing_program_skips_and_names_its_package(monkeypatch):
    monkeypatch.setattr(tools, "_SYSTEM", ())
    monkeypatch.setenv("PATH", "")
    with pytest.raises(pytest.skip.Exception, match=r"mkfs.xfs is not installed \(Debian: apt-get install xfsprogs\)"):
        tools.tool("mkfs.xfs")
    [skipped, reason] = tools.needs("node", "make").args[0], tools.needs("node", "make").kwargs["reason"]
    assert skipped
    assert "apt-get install nodejs" in reason
    assert "apt-get install make" in reason
    assert {"xfsprogs", "libc6-dev"} <= set(tools.missing_packages())


@pytest.mark.slow
def test_no_program_is_asked_for_anywhere_else():
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)[:60]}"
        for path in SOURCES
        for node in ast.walk(parse(path.read_text(encoding="utf-8")))
        if _is_command(node) or _starts_by_bare_name(node) or (_looks_in_path(node) and path != Path(tools.__file__))
    ]
    assert found == []


def _is_command(node):
    """Whether this is a list that begins with the name of a program and goes on."""
    return isinstance(node, ast.List) and len(node.elts) > 1 and _first_word(node) in tools.PACKAGES


def _starts_by_bare_name(node):
    if not isinstance(node, ast.Call) or ast.unparse(node.func).rpartition(".")[2] not in STARTS or not node.args:
        return False
    first = _first_word(node.args[0])
    return "subprocess" in ast.unparse(node.func) and first is not None and "/" not in first


def _first_word(node):
    """The constant with which a command begins, a list or a string; else None."""
    first = node.elts[0] if isinstance(node, ast.List) and node.elts else node
    return first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else None


def _looks_in_path(node):
    return isinstance(node, ast.Attribute) and ast.unparse(node) == "shutil.which"
