"""The examples on the pages are what the service answers: their commands are run, and their answers compared.

Each page is a shell session of its own, against a new service. Ids, tokens, codes, times and dates differ from run to
run; everything else must be the same.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from app.commands import CLIENT
from tests.support.service import environment, service
from tests.support.tools import needs, tool

__all__ = ["service"]

ROOT = Path(__file__).parent.parent
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_URL = "url=http://127.0.0.1:8000"
_DIFFERS = {
    r'(?<="next_cursor": ")[^"]+': "<cursor>",
    r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}": "<id>",
    r"(?<=/api/ingestion/uploads/)[A-Za-z0-9_-]{22}": "<key>",
    r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{6}Z": "<time>",
    r"\d{8}T\d{6}\.\d{6}Z": "<backup>",
    r"\w{3}, \d{2} \w{3} \d{4} \d{2}:\d{2}:\d{2} GMT": "<date>",
}


def commands(page):
    """Every command of a page's console blocks, in order, with the answer that stands below it."""
    found = []
    for block in _BLOCK.findall(page.read_text("utf-8")):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, answer = part.partition("\n")
            found.append((command, answer.rstrip("\n")))
    return found


def _id(page):
    return str(page.relative_to(ROOT))


PAGES = [page for page in [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))] if commands(page)]


def answers(page, running, directory):
    """What one shell prints for the commands of a page, each against the service that runs.

    `waybill` is the command with the service's own settings; that of the client runs where the page's shell is. `/srv`
    lies in `directory`.
    """
    (directory / "srv").mkdir()
    waybill = shlex.join([sys.executable, "-m", "app"])
    script = [
        "set -u",
        f'waybill() {{ case $1 in {"|".join(sorted(CLIENT))}) {waybill} "$@" ;; '
        f'*) (cd {shlex.quote(str(running.directory))} && {waybill} "$@") ;; esac; }}',
        *(f"{command}\necho; echo '<end>'" for command, _ in commands(page)),
    ]
    text = "\n".join(script).replace(_URL, f"url={running.url}").replace("/srv/", f"{directory}/srv/")
    done = subprocess.run(
        [tool("bash"), "-c", text],
        cwd=directory,
        env=environment(running.directory, **running.settings),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == ""
    printed = done.stdout.replace("\r", "").replace(f"{directory}/srv/", "/srv/")
    return [answer.strip("\n") for answer in printed.split("<end>\n")[:-1]]


def settled(answer):
    for pattern, word in _DIFFERS.items():
        answer = re.sub(pattern, word, answer)
    return answer


@needs("bash", "cmp", "curl", "grep", "head", "sed")
@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=() if page.name == "README.md" else pytest.mark.slow) for page in PAGES], ids=_id
)
def test_the_examples_of_a_page_are_answered_as_it_shows(page, service, tmp_path):
    given = answers(page, service(), tmp_path)
    for (command, expected), answer in zip(commands(page), given, strict=True):
        assert settled(answer) == settled(expected), command


def test_the_readme_and_every_page_of_the_api_have_examples():
    assert {ROOT / "README.md", *ROOT.glob("docs/api/*.md")} <= set(PAGES)
