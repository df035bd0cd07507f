"""Fuzz every target, led by coverage, and print how far that went: `make fuzz`.

A case that breaks a promise is left in the corpus as `found-…`, where `make test` replays it. Give it a name that says
what it shows, and keep it. What else is learnt stays in `.fuzz/`, and the next run goes on from there.
"""

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from tests.fuzz.targets import TARGETS

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
LEARNT = ROOT / ".fuzz"
MAX_CASE_BYTES = 2048


class Done(NamedTuple):
    target: str
    cases: int
    seconds: float
    edges: int
    slowest_ms: float
    fault: str


def fuzz(target: str, cases: int, seconds: int) -> Done:
    """Run one target until it has had so many cases, or for so long, or until one breaks a promise."""
    learnt = LEARNT / target
    learnt.mkdir(parents=True, exist_ok=True)
    told = LEARNT / f"{target}.slowest"
    told.unlink(missing_ok=True)
    options = [
        f"-runs={cases}",
        f"-max_total_time={seconds}",
        f"-max_len={MAX_CASE_BYTES}",
        f"-dict={HERE / 'words.dict'}",
        f"-artifact_prefix={HERE / 'corpus' / target}/found-",
        "-timeout=10",
        "-print_final_stats=1",
    ]
    command = [sys.executable, "-m", "tests.fuzz.one", target, told, *options, learnt, HERE / "corpus" / target]
    began = time.monotonic()
    ended = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    said = ended.stdout.decode(errors="replace")
    slowest = float(told.read_text().split()[0]) * 1000 if told.exists() else 0.0
    if ended.returncode:
        print(said, file=sys.stderr)
    fault = (re.findall(r"Test unit written to (\S+)", said) or ["it ended by itself"])[0] if ended.returncode else ""
    done, took = last(r"^stat::number_of_executed_units: (\d+)", said), time.monotonic() - began
    return Done(target, done, took, last(r"cov: (\d+)", said), slowest, fault)


def last(pattern: str, said: str) -> int:
    found = re.findall(pattern, said, re.MULTILINE)
    return int(found[-1]) if found else 0


def main() -> int:
    asked = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    asked.add_argument("--cases", type=int, default=130_000, help="of each target (%(default)s)")
    asked.add_argument("--seconds", type=int, default=300, help="for each target at most (%(default)s)")
    asked.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)} (all)")
    given = asked.parse_args()
    unknown = set(given.targets) - TARGETS.keys()
    if unknown:
        asked.error(f"there is no target {', '.join(sorted(unknown))}")
    began = time.monotonic()
    print(f"{'target':<10} {'cases':>9} {'cases/s':>8} {'edges':>6} {'slowest':>9}")
    all_done = []
    for target in given.targets or TARGETS:
        done = fuzz(target, given.cases, given.seconds)
        all_done.append(done)
        rate = done.cases / done.seconds
        print(f"{target:<10} {done.cases:>9,} {rate:>8,.0f} {done.edges:>6} {done.slowest_ms:>6.1f} ms", flush=True)
    cases, took = sum(done.cases for done in all_done), time.monotonic() - began
    print(f"{'all':<10} {cases:>9,} {cases / took:>8,.0f}   in {took:,.0f} s, {len(faults(all_done))} faults")
    for done in faults(all_done):
        print(f"{done.target}: {done.fault}")
    return bool(faults(all_done))


def faults(all_done: list[Done]) -> list[Done]:
    return [done for done in all_done if done.fault]


if __name__ == "__main__":
    sys.exit(main())
