"""The composition root: which adapters stand behind which ports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from siltstone.adapters.bm25_recall import Bm25Recall
from siltstone.adapters.core_store import CoreStore
from siltstone.adapters.sqlite_journal import SqliteJournal
from siltstone.adapters.sqlite_snapshots import SqliteSnapshotStore
from siltstone.adapters.system_clock import SystemClock
from siltstone.config import SiltstoneConfig
from siltstone.ports import ShardHost
from siltstone_services.embedded_store import open_store
from siltstone_services.home import exclusive
from siltstone_services.served import ServedCores
from siltstone_services.shard import EmbeddedHost


@asynccontextmanager
async def embedded_host(config: SiltstoneConfig) -> AsyncIterator[ShardHost]:
    """Gives a shard host in this process, over the core, the journal and the memories of the home folder.

    Raises: Unavailable when another process uses the home folder; NotFound when the core is not there; Corrupt, also
    when the version that is to serve is not what passed the gate.
    """
    with exclusive(config.home_path) as hold:
        cores = CoreStore(config.home_path)
        digest = cores.resolve(config.core)
        hold.use(digest)
        with ServedCores(config) as served:
            core = await asyncio.to_thread(lambda: served.load(served.digest()))
            with open_store(config) as file:
                recall = Bm25Recall(config.text_recall)
                journal, store = SqliteJournal(file), SqliteSnapshotStore(file)
                async with EmbeddedHost(core, journal, store, recall, SystemClock(), config, served) as host:
                    yield host
