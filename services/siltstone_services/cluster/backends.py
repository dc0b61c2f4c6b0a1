"""The journal, the store and the keys of a cluster, opened as the configuration says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from siltstone.config import SiltstoneConfig
from siltstone.errors import ConfigInvalid
from siltstone.ports import Journal, Sealer, SnapshotStore


@dataclass(frozen=True, slots=True)
class Backends:
    """What the processes of a cluster share."""

    journal: Journal
    store: SnapshotStore
    sealer: Sealer


@contextmanager
def open_backends(config: SiltstoneConfig) -> Iterator[Backends]:
    """Connects with Kafka and Redis, for one process.

    Raises: ConfigInvalid when the extra is missing, a server refuses us or cannot be trusted with what we keep in it;
    Unavailable.
    """
    try:
        # Not among what every installation has: an extra brings it.
        from siltstone.adapters.aes_gcm_sealer import AesGcmSealer
        from siltstone.adapters.kafka_journal import KafkaJournal
        from siltstone.adapters.master_key import open_master_key
        from siltstone.adapters.object_store import open_objects
        from siltstone.adapters.redis_key_vault import RedisKeyVault
        from siltstone.adapters.redis_snapshots import RedisSnapshotStore
    except ModuleNotFoundError as error:
        raise ConfigInvalid("cluster", f"expected the extra siltstone[cluster]: {error.name} is missing") from error
    with ExitStack() as stack:
        vault = stack.enter_context(RedisKeyVault(config.key_store, open_master_key(config.sealing)))
        sealer = AesGcmSealer(vault, config.sealing)
        store = stack.enter_context(RedisSnapshotStore(config.redis, sealer, open_objects(config.objects)))
        journal = stack.enter_context(KafkaJournal(config.kafka, sealer))
        yield Backends(journal, store, sealer)
