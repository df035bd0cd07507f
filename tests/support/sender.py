"""A client of both protocols that goes on after everything, and holds the service to every offset it was told."""

import asyncio
import base64
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from urllib.parse import urlsplit

from tests.support.service import UPLOADS, Answer, Cut, ask

TUS = {"Tus-Resumable": "1.0.0"}
BROKEN = (429, 503)


class Tus:
    """tus 1.0.0."""

    name = "tus"

    @staticmethod
    def create(filename: str, size: int) -> Mapping[str, str]:
        named = base64.b64encode(filename.encode()).decode()
        return TUS | {"Upload-Length": str(size), "Upload-Metadata": f"filename {named}"}

    @staticmethod
    def append(offset: int, *, last: bool) -> Mapping[str, str]:
        return TUS | {"Upload-Offset": str(offset), "Content-Type": "application/offset+octet-stream"}

    @staticmethod
    def ask() -> Mapping[str, str]:
        return TUS

    @staticmethod
    def is_done(answer: Answer, length: int) -> bool:
        return int(answer.headers["upload-offset"]) == length


class Resumable:
    """Resumable uploads of the HTTP working group, the newest rules, without interim responses."""

    name = "resumable"

    @staticmethod
    def create(filename: str, size: int) -> Mapping[str, str]:
        disposition = f'attachment; filename="{filename}"'
        return {"Upload-Complete": "?0", "Upload-Length": str(size), "Content-Disposition": disposition}

    @staticmethod
    def append(offset: int, *, last: bool) -> Mapping[str, str]:
        complete = {"Upload-Complete": "?1" if last else "?0", "Content-Type": "application/partial-upload"}
        return complete | {"Upload-Offset": str(offset)}

    @staticmethod
    def ask() -> Mapping[str, str]:
        return {}

    @staticmethod
    def is_done(answer: Answer, length: int) -> bool:
        return answer.headers["upload-complete"] == "?1"


@dataclass
class Sender:
    """One upload. `port` gives where the service is, once it is there; `told` hears every acknowledged offset."""

    filename: str
    content: bytes
    headers: Mapping[str, str]
    protocol: type[Tus] | type[Resumable]
    port: Callable[[], Awaitable[int]]
    told: Callable[[int], None]
    chance: Random
    largest: int = 256 * 1024
    path: str | None = None
    acknowledged: int = 0
    breaks: int = field(default=0, init=False)
    done: bool = field(default=False, init=False)

    async def run(self) -> None:
        """Return once the service has said that it has all."""
        offset: int | None = 0
        while not self.done:
            try:
                if self.path is None:
                    await self._create()
                elif offset is None:
                    offset = await self._ask()
                else:
                    offset = await self._append(offset)
            except Cut:
                self.breaks += 1
                offset = None
                await asyncio.sleep(0)

    async def _create(self) -> None:
        made = await self._exchange("POST", UPLOADS, self.protocol.create(self.filename, len(self.content)))
        assert made.status == 201, made
        self.done = not self.content  # there is nothing to come
        self.path = urlsplit(made.headers["location"]).path

    async def _append(self, offset: int) -> int:
        end = min(offset + self.chance.randrange(1, self.largest), len(self.content))
        headers = self.protocol.append(offset, last=end == len(self.content))
        assert self.path is not None
        answer = await self._exchange("PATCH", self.path, headers, self.content[offset:end])
        assert 200 <= answer.status < 300, answer
        return self._acknowledge(answer, exactly=end)

    async def _ask(self) -> int:
        assert self.path is not None
        answer = await self._exchange("HEAD", self.path, self.protocol.ask())
        assert answer.status in (200, 204), answer
        return self._acknowledge(answer)

    def _acknowledge(self, answer: Answer, *, exactly: int | None = None) -> int:
        offset = int(answer.headers["upload-offset"])
        assert self.acknowledged <= offset <= len(self.content)
        assert exactly in (None, offset)
        self.acknowledged = offset
        self.done = self.protocol.is_done(answer, len(self.content))
        self.told(offset)
        return offset

    async def _exchange(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Answer:
        answer = await ask(await self.port(), method, path, {**self.headers, **headers}, body)
        if answer.status in BROKEN:  # it is about to end, or has just begun
            raise Cut(f"{method} {path}: {answer.status}")
        return answer
