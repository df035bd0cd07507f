"""A lane lets a few in at once, and sessions by turns."""

import asyncio

import pytest

from app.resumables.lanes import Lane


class Works:
    """Pieces of work in one lane; each notes when it begins, and ends when it is told to."""

    def __init__(self, places: int) -> None:
        self.lane = Lane(places)
        self.begun: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}

    async def start(self, session_id: str, name: str) -> "asyncio.Task[None]":
        ends = self._ends[name] = asyncio.Event()

        async def work() -> None:
            async with self.lane.place(session_id):
                self.begun.append(name)
                await ends.wait()

        task = asyncio.create_task(work())
        await settle()
        return task

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_lane_admits_its_limit_and_one_of_each_session() -> None:
    works = Works(2)
    for session_id, name in (("a", "a1"), ("a", "a2"), ("b", "b1"), ("c", "c1")):
        await works.start(session_id, name)
    assert works.begun == ["a1", "b1"]
    await works.end("b1")
    assert works.begun == ["a1", "b1", "c1"]
    await works.end("a1")
    assert works.begun == ["a1", "b1", "c1", "a2"]


async def test_a_lane_is_fair_to_sessions_however_many_callers_one_has() -> None:
    works = Works(1)
    for number in range(4):
        await works.start("much", f"much {number}")
    await works.start("little", "little")
    for name in ("much 0", "much 1", "little", "much 2"):
        await works.end(name)
    assert works.begun == ["much 0", "much 1", "little", "much 2", "much 3"]


@pytest.mark.parametrize("inside", [True, False])
async def test_a_cancelled_caller_keeps_no_place(inside: bool) -> None:
    works = Works(1)
    first = await works.start("a", "first")
    second = await works.start("b", "second")
    (first if inside else second).cancel()
    await settle()
    await works.end("second" if inside else "first")
    await works.start("c", "third")
    assert works.begun == (["first", "second", "third"] if inside else ["first", "third"])


async def test_a_caller_cancelled_at_its_admission_keeps_no_place() -> None:
    works = Works(1)
    await works.start("a", "first")
    second = await works.start("b", "second")
    works._ends["first"].set()
    while works.begun and not second.done():
        await asyncio.sleep(0)
        if "b" in works.lane._inside:
            second.cancel()
            break
    await settle()
    await works.start("c", "third")
    assert works.begun[-1] == "third"
