"""The backends every contract test runs against. A new backend is one more entry in BACKENDS.

The clustered ones run on real servers, started here, or given by address (see tests/servers.py).
"""

from __future__ import annotations

import base64
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import servers
from simulated_stores import MemoryJournal, MemoryStore

from siltstone.adapters.aes_gcm_sealer import AesGcmSealer
from siltstone.adapters.kafka_config import KafkaConfig
from siltstone.adapters.kafka_journal import KafkaJournal
from siltstone.adapters.master_key import MasterKey, open_master_key
from siltstone.adapters.object_config import ObjectConfig
from siltstone.adapters.object_store import open_objects
from siltstone.adapters.redis_config import RedisConfig
from siltstone.adapters.redis_key_vault import RedisKeyVault
from siltstone.adapters.redis_snapshots import RedisSnapshotStore
from siltstone.adapters.sealing_config import SealingConfig
from siltstone.adapters.sqlite_file import SqliteConfig, SqliteFile
from siltstone.adapters.sqlite_journal import SqliteJournal
from siltstone.adapters.sqlite_key_vault import SqliteKeyVault
from siltstone.adapters.sqlite_snapshots import SqliteSnapshotStore
from siltstone.journal.partition import partition_of
from siltstone.ports import Journal, KeyVault, Sealer, SnapshotStore
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


@dataclass(frozen=True)
class VaultBackend:
    """One kind of key vault. `open` gives it on the same stored state, whenever it is called."""

    open: Callable[[MasterKey], AbstractContextManager[KeyVault]]


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


MASTER_KEY = base64.b64encode(bytes(range(32))).decode()


def master_key() -> MasterKey:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEST_MASTER_KEY", MASTER_KEY)
        return open_master_key(SealingConfig(master_key_variable="TEST_MASTER_KEY"))


@contextmanager
def embedded_sealer(folder: Path) -> Iterator[Sealer]:
    with SqliteKeyVault(folder / "keys.db", master_key()) as vault:
        yield AesGcmSealer(vault)


@contextmanager
def in_the_clear(folder: Path) -> Iterator[None]:
    yield None


Sealing = Callable[[Path], AbstractContextManager[Sealer | None]]
Request = pytest.FixtureRequest


def sqlite_journal(request: Request, folder: Path, sealing: Sealing = in_the_clear) -> JournalBackend:
    @contextmanager
    def opened() -> Iterator[Journal]:
        with sealing(folder) as sealer, SqliteFile(folder / "siltstone.db", sqlite_config(), sealer) as file:
            yield SqliteJournal(file)

    return JournalBackend(opened)


def sqlite_store(request: Request, folder: Path, sealing: Sealing = in_the_clear) -> StoreBackend:
    @contextmanager
    def opened() -> Iterator[SnapshotStore]:
        with sealing(folder) as sealer, SqliteFile(folder / "siltstone.db", sqlite_config(), sealer) as file:
            yield SqliteSnapshotStore(file)

    return StoreBackend(opened)


def redis_config(request: Request, fixture: str) -> RedisConfig:
    return RedisConfig(
        request.getfixturevalue(fixture),
        is_cluster=fixture == "redis_cluster_address",
        namespace=f"t{uuid.uuid4().hex}",
        num_partitions=NUM_PARTITIONS,
        id_window=ID_WINDOW,
    )


def redis_store(
    request: Request,
    folder: Path,
    fixture: str = "redis_address",
    sealing: Sealing = in_the_clear,
    has_objects: bool = False,
) -> StoreBackend:
    """With objects, every memory of a byte or more is one, and what is replaced goes at once."""
    config = redis_config(request, fixture)
    url = f"file://{folder}/objects" if has_objects else ""
    objects = ObjectConfig(url, min_bytes=1, keep_replaced_s=0)

    @contextmanager
    def opened() -> Iterator[SnapshotStore]:
        with sealing(folder) as sealer, RedisSnapshotStore(config, sealer, open_objects(objects)) as store:
            yield store

    return StoreBackend(opened)


@pytest.fixture(scope="session")
def tansu_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of one broker for all tests, each with a topic of its own; an Apache Kafka's where one is given."""
    if given := os.environ.get(servers.KAFKA_VARIABLE):
        yield given
        return
    with servers.tansu(tmp_path_factory.mktemp("tansu")) as server:
        yield f"127.0.0.1:{server.port}"


@pytest.fixture(scope="session")
def noida_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The same of a broker that tells the ends of its partitions right."""
    with servers.noida(tmp_path_factory.mktemp("noida")) as server:
        yield f"127.0.0.1:{server.port}"


def kafka_journal(request: Request, folder: Path, fixture: str = "tansu_address") -> JournalBackend:
    config = KafkaConfig(
        request.getfixturevalue(fixture),
        topic=f"t{uuid.uuid4().hex}",
        num_partitions=NUM_PARTITIONS,
        replication_factor=1,
        min_insync_replicas=1,
    )

    @contextmanager
    def opened() -> Iterator[Journal]:
        with embedded_sealer(folder) as sealer, KafkaJournal(config, sealer) as journal:
            yield journal

    return JournalBackend(opened)


def memory_journal(request: Request, folder: Path) -> JournalBackend:
    """What tests simulate with: as good as the real ones, or what is seen with it says nothing of them."""
    journal = MemoryJournal(NUM_PARTITIONS)
    return JournalBackend(lambda: nullcontext(journal))


def memory_store(request: Request, folder: Path) -> StoreBackend:
    store = MemoryStore(NUM_PARTITIONS, ID_WINDOW)
    return StoreBackend(lambda: nullcontext(store))


JOURNALS = {
    "memory": memory_journal,
    "sqlite": sqlite_journal,
    "sqlite-sealed": partial(sqlite_journal, sealing=embedded_sealer),
    "kafka": kafka_journal,
    "kafka-noida": partial(kafka_journal, fixture="noida_address"),
}
STORES = {
    "memory": memory_store,
    "sqlite": sqlite_store,
    "sqlite-sealed": partial(sqlite_store, sealing=embedded_sealer),
    "redis": redis_store,
    "redis-cluster": partial(redis_store, fixture="redis_cluster_address"),
    "redis-sealed": partial(redis_store, sealing=embedded_sealer),
    "redis+objects": partial(redis_store, has_objects=True),
    "redis+objects-cluster": partial(redis_store, fixture="redis_cluster_address", has_objects=True),
    "redis+objects-sealed": partial(redis_store, sealing=embedded_sealer, has_objects=True),
}


def sqlite_vault(request: Request, folder: Path) -> VaultBackend:
    return VaultBackend(lambda master: SqliteKeyVault(folder / "keys.db", master))


def redis_vault(request: Request, folder: Path, fixture: str = "redis_address") -> VaultBackend:
    config = redis_config(request, fixture)
    return VaultBackend(lambda master: RedisKeyVault(config, master))


VAULTS = {
    "sqlite": sqlite_vault,
    "redis": redis_vault,
    "redis-cluster": partial(redis_vault, fixture="redis_cluster_address"),
}


@pytest.fixture(params=sorted(VAULTS))
def vault_backend(request: Request, tmp_path: Path) -> VaultBackend:
    return VAULTS[request.param](request, tmp_path)


@pytest.fixture
def vault(vault_backend: VaultBackend) -> Iterator[KeyVault]:
    with vault_backend.open(master_key()) as vault:
        yield vault


@pytest.fixture
def master() -> MasterKey:
    return master_key()


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
