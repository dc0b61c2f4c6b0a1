"""The journal and the store that a configuration names: the embedded file of a home, or a cluster's servers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from siltstone.adapters.sqlite_journal import SqliteJournal
from siltstone.adapters.sqlite_snapshots import SqliteSnapshotStore
from siltstone.config import SiltstoneConfig
from siltstone.ports import Journal, SnapshotStore
from siltstone_services.cluster.backends import open_backends
from siltstone_services.embedded_store import open_store


@contextmanager
def open_journal_and_store(config: SiltstoneConfig) -> Iterator[tuple[Journal, SnapshotStore]]:
    """Gives both, for who reads what shards have committed.

    Raises: as `open_store` and `open_backends`.
    """
    if config.cluster.is_on:
        with open_backends(config) as backends:
            yield backends.journal, backends.store
    else:
        with open_store(config) as file:
            yield SqliteJournal(file), SqliteSnapshotStore(file)
