"""The backends every contract test runs against. A new backend is one more entry in BACKENDS.

The clustered ones run on real servers, started here, or given by address (see tests/servers.py).
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import servers

from siltstone.adapters.redis_config import RedisConfig
from siltstone.adapters.redis_snapshots import RedisSnapshotStore
from siltstone.adapters.sqlite_file import SqliteConfig, SqliteFile
from siltstone.adapters.sqlite_journal import SqliteJournal
from siltstone.adapters.sqlite_snapshots import SqliteSnapshotStore
from siltstone.journal.partition import partition_of
from siltstone.ports import Journal, SnapshotStore
from siltstone.values import Interaction, InteractionKind, Message, Role, UserKey

NUM_PARTITIONS = 4


ID_WINDOW = 50


@dataclass(frozen=True)
class JournalBackend:
    """One kind of journal. `open` gives it on the same stored state, whenever it is called."""

    open: Callable[[], AbstractContextManager[Journal]]


@dataclass(frozen=True)
class StoreBackend:
    """One kind of store. `open` gives it on the same stored state, whenever it is called."""

    open: Callable[[], AbstractContextManager[SnapshotStore]]


@pytest.fixture(scope="session")
def redis_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of one server for all tests, each in a namespace of its own."""
    if given := os.environ.get(servers.REDIS_VARIABLE):
        yield given
        return
    with servers.valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield f"redis://127.0.0.1:{server.port}"


@pytest.fixture(scope="session")
def redis_cluster_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of one of three servers that share the slots of a cluster."""
    with servers.valkey_cluster(tmp_path_factory.mktemp("valkey-cluster")) as nodes:
        yield f"redis://127.0.0.1:{nodes[1].port}"


def sqlite_config() -> SqliteConfig:
    return SqliteConfig(num_partitions=NUM_PARTITIONS, id_window=ID_WINDOW)


def sqlite_journal(request: pytest.FixtureRequest, folder: Path) -> JournalBackend:
    @contextmanager
    def opened() -> Iterator[Journal]:
        with SqliteFile(folder / "siltstone.db", sqlite_config()) as file:
            yield SqliteJournal(file)

    return JournalBackend(opened)


def sqlite_store(request: pytest.FixtureRequest, folder: Path) -> StoreBackend:
    @contextmanager
    def opened() -> Iterator[SnapshotStore]:
        with SqliteFile(folder / "siltstone.db", sqlite_config()) as file:
            yield SqliteSnapshotStore(file)

    return StoreBackend(opened)


def redis_store(request: pytest.FixtureRequest, folder: Path) -> StoreBackend:
    address = request.getfixturevalue("redis_address")
    return _redis_store(RedisConfig(address, namespace=f"t{uuid.uuid4().hex}", **_REDIS_OPTIONS))


def redis_cluster_store(request: pytest.FixtureRequest, folder: Path) -> StoreBackend:
    address = request.getfixturevalue("redis_cluster_address")
    return _redis_store(RedisConfig(address, is_cluster=True, namespace=f"t{uuid.uuid4().hex}", **_REDIS_OPTIONS))


_REDIS_OPTIONS = {"num_partitions": NUM_PARTITIONS, "id_window": ID_WINDOW}


def _redis_store(config: RedisConfig) -> StoreBackend:
    @contextmanager
    def opened() -> Iterator[SnapshotStore]:
        with RedisSnapshotStore(config) as store:
            yield store

    return StoreBackend(opened)


JOURNALS = {"sqlite": sqlite_journal}
STORES = {"sqlite": sqlite_store, "redis": redis_store, "redis-cluster": redis_cluster_store}


@pytest.fixture(params=sorted(JOURNALS))
def journal_backend(request: pytest.FixtureRequest, tmp_path: Path) -> JournalBackend:
    return JOURNALS[request.param](request, tmp_path)


@pytest.fixture(params=sorted(STORES))
def store_backend(request: pytest.FixtureRequest, tmp_path: Path) -> StoreBackend:
    return STORES[request.param](request, tmp_path)


@pytest.fixture
def journal(journal_backend: JournalBackend) -> Iterator[Journal]:
    with journal_backend.open() as journal:
        yield journal


@pytest.fixture
def store(store_backend: StoreBackend) -> Iterator[SnapshotStore]:
    with store_backend.open() as store:
        yield store


@pytest.fixture
def document() -> Callable[..., Interaction]:
    def make(name: str, user: str = "ada", text: str = "The depot opens at seven.") -> Interaction:
        messages = (Message(Role.USER, text),)
        return Interaction(name, UserKey("office", user), InteractionKind.DOCUMENT, 1_700_000_000_000, messages)

    return make


@pytest.fixture
def id_window() -> int:
    return ID_WINDOW


@pytest.fixture
def partition() -> Callable[[UserKey], int]:
    return lambda owner: partition_of(owner, NUM_PARTITIONS)


@pytest.fixture
def owners() -> list[UserKey]:
    """Three users of partition 0."""
    users = (UserKey("office", f"user{number}") for number in range(100))
    return [owner for owner in users if partition_of(owner, NUM_PARTITIONS) == 0][:3]
