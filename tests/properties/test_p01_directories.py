"""Property 1. Preparing storage once or many times gives the same usable tree, or one refusal that names the path."""

import asyncio
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import Unusable
from app.storage.local import LocalStorage
from tests.contracts.storage import get, new_key, put
from tests.support.memory import quick_directory

SHARDS = [f"files/{number:02x}" for number in range(256)]
TREE = ["files", *SHARDS, "partial", "staging", "trash"]

names = st.text("abcé .-_", min_size=1, max_size=12).filter(lambda name: name.strip(". "))
roots = st.lists(names, min_size=1, max_size=4).map(lambda parts: Path(*parts))
places = st.sampled_from(["files", "staging", "trash", *SHARDS])
obstacles = st.dictionaries(
    places, st.sampled_from(["file", "link", "dangling link", "link to itself", "pipe"]), max_size=3
)


def build(root: Path, there: set[str], obstacles: dict[str, str]) -> None:
    """What somebody else left below the root: a part of the tree, and things that are in its way."""
    for name in there - obstacles.keys():
        if Path(name).parent.name not in obstacles:
            (root / name).mkdir(parents=True, exist_ok=True)
    for name, kind in obstacles.items():
        if Path(name).parent.name in obstacles:
            continue
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            path.rmdir() if not os.listdir(path) else path.rename(root / f"{path.name} of before")
        match kind:
            case "file":
                path.touch()
            case "link":
                path.symlink_to(root.parent)
            case "dangling link":
                path.symlink_to("nowhere")
            case "link to itself":
                path.symlink_to(path.name)
            case "pipe":
                os.mkfifo(path)


def tree(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


async def prepare(root: Path, times: int, services: int) -> list[str]:
    """Let several services prepare the store at once, each so many times. What they were refused for."""
    storages = [LocalStorage(root, owner=new_key(), min_free=0) for _ in range(services)]
    try:
        ended = await asyncio.gather(
            *(storage.prepare() for storage in storages for _ in range(times)), return_exceptions=True
        )
        refusals = [str(end) for end in ended if isinstance(end, Unusable)]
        assert len(refusals) + ended.count(None) == len(ended), ended
        if not refusals:
            keys = [await put(storage, b"usable") for storage in storages]
            for storage in storages:
                assert [await get(storage, key) for key in keys] == [b"usable"] * services
                await storage.recorded(keys)
            await storages[0].remove(keys)
        else:
            assert len(refusals) == len(ended)
    finally:
        for storage in storages:
            await storage.close()
    return refusals


@given(
    root=roots,
    there=st.sets(places, max_size=5),
    obstacles=obstacles,
    times=st.integers(1, 3),
    services=st.integers(1, 3),
)
@pytest.mark.slow
def test_the_tree_is_usable_or_refused_by_name(root, there, obstacles, times, services):
    with quick_directory() as directory:
        root = directory / root
        build(root, there, obstacles)
        before = tree(root)
        refusals = asyncio.run(prepare(root, times, services))
        if not obstacles:
            assert refusals == []
            assert tree(root) == sorted(TREE)
        else:
            in_the_way = {
                f"{root / name} is not a directory (a symbolic link is not followed here)" for name in obstacles
            }
            assert set(refusals) <= in_the_way
            assert len(set(refusals)) == 1
            assert set(before) <= set(tree(root)) <= {*before, *TREE}
        assert asyncio.run(prepare(root, 1, 1)) == list(set(refusals))
