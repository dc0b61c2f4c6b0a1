"""A home with a core that is ready to learn, and the process that shards are forked off."""

from __future__ import annotations

import asyncio
import gc
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from effects import NUM_INTERACTIONS, NUM_USERS, SEED, SETTINGS, faultless, stream_of
from shard_fleet import Forker
from tiny_home import add_tiny_core, open_host

from siltstone.memory.user_memory import UserMemory
from siltstone.values import Interaction, UserKey


@pytest.fixture
def leaky_client() -> Iterator[None]:
    """For tests in which a connection is refused: kafka-python 3.0 leaves such a socket to the garbage collector."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


@pytest.fixture(scope="session")
def ready_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a core whose read basis is built: all others are copies, so that memories can be compared."""
    home = tmp_path_factory.mktemp("ready")
    add_tiny_core(home)

    async def open_once() -> None:
        async with open_host(home, SETTINGS):
            pass

    asyncio.run(open_once())
    return home


@pytest.fixture(scope="session")
def new_home(ready_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Gives a home without a journal, whenever it is called."""

    def make() -> Path:
        home = tmp_path_factory.mktemp("home")
        for name in ("cores", "bases"):
            shutil.copytree(ready_home / name, home / name)
        return home

    return make


@pytest.fixture(scope="session")
def long_run(new_home: Callable[[], Path]) -> tuple[list[Interaction], dict[UserKey, UserMemory]]:
    """The stream of the longest forms, and the memories that one process makes of it in minutes."""
    stream = stream_of(NUM_INTERACTIONS, NUM_USERS, SEED)
    return stream, asyncio.run(faultless(new_home(), SETTINGS, stream))


@pytest.fixture(scope="session")
def all_shards(ready_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forker]:
    forker = Forker(tmp_path_factory.mktemp("shards"), ready_home)
    try:
        yield forker
    finally:
        forker.close()


@pytest.fixture
def forker(all_shards: Forker) -> Iterator[Forker]:
    """What shards are forked off; those of a test are gone when it ends."""
    try:
        yield all_shards
    finally:
        all_shards.end()
