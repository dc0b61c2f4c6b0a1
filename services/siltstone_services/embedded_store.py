"""The embedded file of a home, sealed when the configuration says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from siltstone.adapters.sqlite_file import SqliteFile
from siltstone.config import SiltstoneConfig
from siltstone.errors import ConfigInvalid
from siltstone.ports import Sealer


@contextmanager
def open_store(config: SiltstoneConfig) -> Iterator[SqliteFile]:
    """Gives the file that holds a home's journal and memories. Users' keys are in another, `keys/users.db`.

    Raises: ConfigInvalid for a cluster, whose memories are elsewhere, and when the file is sealed and no master key is
    configured, or the reverse, or when it is the wrong one; Corrupt; Unavailable.
    """
    if config.cluster.is_on:
        raise ConfigInvalid("cluster", "this works on the file of a home, and the memories of a cluster are not in it")
    with ExitStack() as stack:
        sealer = _sealer(config, stack) if config.sealing.is_on else None
        yield stack.enter_context(SqliteFile(config.home_path / "siltstone.db", config.store, sealer))


def _sealer(config: SiltstoneConfig, stack: ExitStack) -> Sealer:
    try:
        # Not among what every installation has: an extra brings it.
        from siltstone.adapters.aes_gcm_sealer import AesGcmSealer
        from siltstone.adapters.master_key import open_master_key
        from siltstone.adapters.sqlite_key_vault import SqliteKeyVault
    except ModuleNotFoundError as error:
        raise ConfigInvalid("sealing", f"expected the extra siltstone[cluster]: {error.name} is missing") from error
    path = config.home_path / "keys" / "users.db"
    vault = stack.enter_context(SqliteKeyVault(path, open_master_key(config.sealing), config.store.busy_timeout_ms))
    return AesGcmSealer(vault, config.sealing)
