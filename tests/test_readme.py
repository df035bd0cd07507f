"""What the README shows is what the service answers: its commands are run, and their answers compared.

Ids, tokens, codes, times and dates differ from run to run; everything else must be the same.
"""

import re
import subprocess
from pathlib import Path

from tests.service import service
from tests.support.tools import needs, tool

__all__ = ["service"]

README = Path(__file__).parent.parent / "README.md"
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_DIFFERS = {
    r'(?<="next_cursor": ")[^"]+': "<cursor>",
    r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}": "<id>",
    r"(?<=/api/ingestion/uploads/)[A-Za-z0-9_-]{22}": "<key>",
    r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{6}Z": "<time>",
    r"\w{3}, \d{2} \w{3} \d{4} \d{2}:\d{2}:\d{2} GMT": "<date>",
}


def commands() -> list[tuple[str, str]]:
    """Every command of the README's console blocks, in order, with the answer that stands below it."""
    found = []
    for block in _BLOCK.findall(README.read_text()):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, answer = part.partition("\n")
            found.append((command, answer.rstrip("\n")))
    return found


def answers(url: str, directory: Path) -> list[str]:
    """What one shell prints for the commands, each against the service at `url`."""
    script = ["set -u", *(f"{command}\necho; echo '<end>'" for command, _ in commands())]
    text = "\n".join(script).replace("url=http://127.0.0.1:8000", f"url={url}")
    done = subprocess.run(
        [tool("bash"), "-c", text], cwd=directory, capture_output=True, text=True, check=True, timeout=60
    )
    return [answer.strip("\n") for answer in done.stdout.replace("\r", "").split("<end>\n")[:-1]]


def settled(answer: str) -> str:
    for pattern, word in _DIFFERS.items():
        answer = re.sub(pattern, word, answer)
    return answer


@needs("bash", "cmp", "curl", "grep", "head", "sed")
def test_every_command_of_the_readme_answers_as_it_says(service, tmp_path):
    given = answers(service().url, tmp_path)
    for (command, expected), answer in zip(commands(), given, strict=True):
        assert settled(answer) == settled(expected), command
