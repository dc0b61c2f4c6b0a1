"""Servers and keys for tests of the clustered adapters."""

from __future__ import annotations

import base64
import gc
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from siltstone.adapters.aes_gcm_sealer import AesGcmSealer
from siltstone.adapters.master_key import MasterKey, open_master_key
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
