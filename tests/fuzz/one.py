"""One target under atheris, whose coverage leads it on: `python -m tests.fuzz.one TARGET SLOWEST libFuzzer's options`.

SLOWEST is a file for the CPU time of the slowest case, which libFuzzer itself counts in whole seconds.
"""

import sys
import time
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["app"]):
    from tests.fuzz.targets import TARGETS

STALL_SECONDS = 0.05  # so long may a request hold the loop


class Target:
    def __init__(self, name: str, told: Path) -> None:
        self._run = TARGETS[name]
        self._told = told
        self._slowest = 0.0

    def __call__(self, data: bytes) -> None:
        seconds = self._timed(data)
        if seconds > STALL_SECONDS:  # CPU time, yet not all of it may have been this case's: memory is tidied up in it
            seconds = min(seconds, self._timed(data), self._timed(data))
            assert seconds <= STALL_SECONDS, f"this case takes {seconds:.3f} s of CPU"
        if seconds > self._slowest:
            self._slowest = seconds
            self._told.write_text(f"{seconds} {len(data)}")

    def _timed(self, data: bytes) -> float:
        began = time.thread_time()
        self._run(data)
        return time.thread_time() - began


def main() -> None:
    program, name, told, *options = sys.argv
    atheris.Setup([program, *options], Target(name, Path(told)))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
