"""The backends every contract test runs against. A new backend is one more entry in BACKENDS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from siltstone.adapters.sqlite_file import SqliteConfig, SqliteFile
from siltstone.adapters.sqlite_journal import SqliteJournal
from siltstone.adapters.sqlite_snapshots import SqliteSnapshotStore
from siltstone.journal.partition import partition_of
from siltstone.ports import Journal, SnapshotStore
from siltstone.values import Interaction, InteractionKind, Message, Role, UserKey

NUM_PARTITIONS = 4


@dataclass(frozen=True)
class Backend:
    """One kind of journal and store. `open` gives both on the same stored state, whenever it is called."""

    open: Callable[[], AbstractContextManager[tuple[Journal, SnapshotStore]]]


def sqlite_backend(folder: Path) -> Backend:
    @contextmanager
    def opened() -> Iterator[tuple[Journal, SnapshotStore]]:
        with SqliteFile(folder / "siltstone.db", SqliteConfig(num_partitions=NUM_PARTITIONS)) as file:
            yield SqliteJournal(file), SqliteSnapshotStore(file)

    return Backend(opened)


BACKENDS = {"sqlite": sqlite_backend}


@pytest.fixture(params=sorted(BACKENDS))
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    return BACKENDS[request.param](tmp_path)


@pytest.fixture
def journal(backend: Backend) -> Iterator[Journal]:
    with backend.open() as (journal, _):
        yield journal


@pytest.fixture
def store(backend: Backend) -> Iterator[SnapshotStore]:
    with backend.open() as (_, store):
        yield store


@pytest.fixture
def document() -> Callable[..., Interaction]:
    def make(name: str, user: str = "ada", text: str = "The depot opens at seven.") -> Interaction:
        messages = (Message(Role.USER, text),)
        return Interaction(name, UserKey("office", user), InteractionKind.DOCUMENT, 1_700_000_000_000, messages)

    return make


@pytest.fixture
def partition() -> Callable[[UserKey], int]:
    return lambda owner: partition_of(owner, NUM_PARTITIONS)


@pytest.fixture
def owners() -> list[UserKey]:
    """Three users of partition 0."""
    users = (UserKey("office", f"user{number}") for number in range(100))
    return [owner for owner in users if partition_of(owner, NUM_PARTITIONS) == 0][:3]
