"""What is done to a server, and what is noted of it."""

from dataclasses import dataclass
from typing import Final, Literal

from bench.machine import GiB, KiB, MiB

SLOW_BYTES: Final = 128 * KiB
"""A slow client's file; half of it is in while the others are measured."""


@dataclass(frozen=True)
class Work:
    """`files` files of `size` bytes on `connections` connections, while `slow` clients hold half-sent uploads.

    All peers do it that can, or those `among` them.
    """

    name: str
    kind: Literal["upload", "download"]
    files: int
    size: int
    connections: int
    slow: int = 0
    among: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        words = [f"one file of {in_words(self.size)}"]
        if self.files > 1:
            words = [f"{self.files:,} files of {in_words(self.size)}, {self.connections} at once"]
        if self.kind == "download":
            words.append("downloaded")
        if self.slow:
            words.append(f"while {self.slow:,} slow clients hold half-sent uploads of {in_words(SLOW_BYTES)}")
        return ", ".join(words)


FULL: Final = (
    Work("W1", "upload", 1, GiB, 1),
    Work("W2", "upload", 8, 256 * MiB, 8),
    Work("W3", "upload", 4000, 16 * KiB, 64),
    Work("W4", "upload", 500, MiB, 64),
    Work("W5", "upload", 4000, 16 * KiB, 64, slow=1000),
    Work("D1 large", "download", 1, GiB, 1),
    Work("D1 small", "download", 4000, 16 * KiB, 64),
)

_OWN: Final = ("waybill", "waybill-raw", "waybill-pg")

QUICK: Final = (
    Work("W1", "upload", 1, 512 * MiB, 1),
    Work("W2", "upload", 8, 64 * MiB, 8, among=(*_OWN, "waybill-fast", "aiohttp", "nginx", "nginx-1m")),
    Work("W3", "upload", 1500, 16 * KiB, 64),
    Work("W4", "upload", 150, MiB, 64),
    Work("W5", "upload", 1500, 16 * KiB, 64, slow=250, among=(*_OWN, "aiohttp", "nginx")),
    Work("D1 large", "download", 1, 512 * MiB, 1),
    Work("D1 small", "download", 1500, 16 * KiB, 64),
)


@dataclass
class Measurement:
    """One work done once by one server. `failure` says why there are no figures, or why they do not count."""

    work: str
    peer: str
    repeat: int
    failure: str = ""
    requests: int = 0
    bytes: int = 0
    seconds: float = 0
    flush_seconds: float = 0
    server_cpu: float = 0
    load_cpu: float = 0
    other_cpu: float = 0
    p50_ms: float = 0
    p99_ms: float = 0
    peak_rss: int = 0

    @property
    def mib_per_second(self) -> float:
        return self.bytes / MiB / self.seconds

    @property
    def mib_per_second_flushed(self) -> float:
        """As if nobody had been answered before all was on the disk."""
        return self.bytes / MiB / (self.seconds + self.flush_seconds)

    @property
    def requests_per_second(self) -> float:
        return self.requests / self.seconds

    @property
    def cpu_seconds_per_gib(self) -> float:
        return self.server_cpu / (self.bytes / GiB)

    @property
    def cpu_ms_per_request(self) -> float:
        return self.server_cpu / self.requests * 1000

    @property
    def peak_rss_mib(self) -> float:
        return self.peak_rss / MiB

    @property
    def other_share(self) -> float:
        """CPU of neither server nor load, as a share of one core, until all was on the disk."""
        return self.other_cpu / (self.seconds + self.flush_seconds)

    @property
    def load_share(self) -> float:
        """How much of its core the load generator used; near 1 it would have been the limit."""
        return self.load_cpu / self.seconds


def in_words(size: int) -> str:
    for unit, name in ((GiB, "GiB"), (MiB, "MiB"), (KiB, "KiB")):
        if size >= unit:
            return f"{size // unit} {name}"
    return f"{size} bytes"
