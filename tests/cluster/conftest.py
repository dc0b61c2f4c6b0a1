"""Servers and keys for tests of the clustered adapters."""

from __future__ import annotations

import base64
import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis
import servers
from large_memories import QUICK, Watched

from siltstone.adapters.aes_gcm_sealer import AesGcmSealer
from siltstone.adapters.master_key import MasterKey, open_master_key
from siltstone.adapters.object_config import ObjectConfig
from siltstone.adapters.redis_config import RedisConfig
from siltstone.adapters.redis_snapshots import RedisSnapshotStore
from siltstone.adapters.sealing_config import SealingConfig
from siltstone.adapters.sqlite_key_vault import SqliteKeyVault


@pytest.fixture
def leaky_client() -> Iterator[None]:
    """For tests in which a connection is refused: kafka-python 3.0 leaves such a socket to the garbage collector."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


@pytest.fixture
def master(tmp_path: Path) -> MasterKey:
    path = tmp_path / "master.key"
    path.write_text(base64.b64encode(bytes(range(32))).decode())
    return open_master_key(SealingConfig(master_key_file=str(path)))


@pytest.fixture
def vault(tmp_path: Path, master: MasterKey) -> Iterator[SqliteKeyVault]:
    with SqliteKeyVault(tmp_path / "keys.db", master) as vault:
        yield vault


@pytest.fixture
def sealer(vault: SqliteKeyVault) -> AesGcmSealer:
    return AesGcmSealer(vault)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[servers.Server]:
    with servers.valkey(tmp_path / "valkey") as server:
        yield server


@pytest.fixture
def client(server: servers.Server) -> Iterator[redis.Redis]:
    with redis.Redis(port=server.port) as client:
        yield client


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "objects"


@pytest.fixture
def opened(server: servers.Server, folder: Path) -> Iterator[Callable[..., tuple[RedisSnapshotStore, Watched]]]:
    """Opens the store, as often as a test likes. Memories of a hundred bytes are large, and the replaced go at once."""
    with ExitStack() as stack:

        def open_one(
            port: int = server.port,
            sealer: AesGcmSealer | None = None,
            namespace: str = "siltstone",
            budget_s: float = 0.3,
            **changes: float,
        ) -> tuple[RedisSnapshotStore, Watched]:
            quick = {"min_bytes": 100, "keep_replaced_s": 0, "retry_budget_s": 0.2, "answer_timeout_s": 1.0}
            objects = Watched(ObjectConfig(f"file://{folder}", **(quick | changes)))
            config = RedisConfig(
                f"redis://127.0.0.1:{port}", namespace=namespace, **(QUICK | {"retry_budget_s": budget_s})
            )
            store = stack.enter_context(RedisSnapshotStore(config, sealer, objects))
            return store, objects

        yield open_one


@pytest.fixture
def store(opened: Callable[[], tuple[RedisSnapshotStore, Watched]]) -> RedisSnapshotStore:
    return opened()[0]
