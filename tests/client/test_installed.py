"""The command as it is installed: pages for man, completion in shells, and the unit that watches a folder."""

import re
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.client.running import COMMAND
from tests.support import man
from tests.support.tools import needs, search_path, tool

ROOT = Path(__file__).parents[2]

SHELLS = ("bash", "zsh", "fish")


def test_the_pages_for_man_are_as_the_commands_are():
    there = {page.name: page.read_text("utf-8") for page in man.PLACE.glob("*")}
    assert there == man.pages(), "run python -m tests.support.man"


@needs("groff")
def test_groff_finds_no_fault_in_the_pages_for_man():
    command = [tool("groff"), "-man", "-Tutf8", "-ww", "-z", *sorted(man.PLACE.glob("*.1"))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_commands_and_options(shell, user):
    def completed(**words):
        variables = {**user.variables, "_WAYBILL_COMPLETE": f"{shell}_complete", **words}
        script = "from app.cli import main; main(prog_name='waybill')"
        done = subprocess.run([sys.executable, "-c", script], env=variables, capture_output=True, text=True, check=True)
        return done.stdout

    assert "push" in completed(COMP_WORDS="waybill pu", COMP_CWORD="1" if shell != "fish" else "pu")
    assert "--watch" in completed(COMP_WORDS="waybill push --wa", COMP_CWORD="2" if shell != "fish" else "--wa")


def test_a_wheel_brings_the_pages_for_man_and_names_what_the_client_needs(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", tmp_path]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    with ZipFile(wheel) as parts:
        names = parts.namelist()
        [about] = [name for name in names if name.endswith(".dist-info/METADATA")]
        said = parts.read(about).decode()
    assert any(name.endswith(".data/data/share/man/man1/waybill-push.1") for name in names)
    for library in ("aiohttp", "platformdirs", "rich", "yarl"):
        assert re.search(rf"^Requires-Dist: {library}>=[0-9.]+; extra == 'client'$", said, re.MULTILINE)


def test_an_installation_without_the_client_says_how_to_get_it(user):
    script = "import sys; sys.modules['aiohttp'] = None; from app.cli import main; main(['push', 'x'])"
    done = subprocess.run([sys.executable, "-c", script], env=user.variables, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("Error: the client is not installed (aiohttp): pip install 'waybill[client]'\n")


@needs("systemd-analyze")
def test_systemd_takes_the_unit_that_watches_a_folder(tmp_path):
    unit = (ROOT / "deploy/waybill-push@.service").read_text("utf-8").replace("%h/.local/bin/waybill", "/bin/true")
    path = tmp_path / "waybill-push@home-ann-Camera.service"
    path.write_text(unit)
    command = [tool("systemd-analyze"), "verify", "--user", "--man=no", "--recursive-errors=no", path]
    environment = {"PATH": search_path(), "XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_the_command_of_the_unit_is_one_that_there_is(user):
    unit = (ROOT / "deploy/waybill-push@.service").read_text("utf-8")
    [line] = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
    words = line.removeprefix("ExecStart=%h/.local/bin/waybill ").split()
    (user.here / "Camera").mkdir()
    words = [str(user.here / "Camera") if word == "%f" else word for word in words]
    process = subprocess.Popen([*COMMAND, *words], env=user.variables, cwd=user.here, stderr=subprocess.PIPE)
    with process.stderr as stderr:
        assert stderr.readline() == f"watching {user.here / 'Camera'}\n".encode()
    process.terminate()
    assert process.wait(60) == 0
