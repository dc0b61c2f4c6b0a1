"""The composition root: which adapters stand behind which ports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import ExitStack, asynccontextmanager
from typing import Any

from siltstone.adapters.bm25_recall import Bm25Recall
from siltstone.adapters.core_store import CoreStore
from siltstone.adapters.sqlite_journal import SqliteJournal
from siltstone.adapters.sqlite_snapshots import SqliteSnapshotStore
from siltstone.adapters.system_clock import SystemClock
from siltstone.config import SiltstoneConfig
from siltstone.errors import ConfigInvalid
from siltstone.ports import ShardHost
from siltstone_services.cluster.backends import open_backends
from siltstone_services.cluster.conductor import Conductor
from siltstone_services.cluster.journal_age import look_at_ages
from siltstone_services.cluster.resizing import Resizing
from siltstone_services.cluster.router import ClusterHost
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


@asynccontextmanager
async def cluster_host(config: SiltstoneConfig) -> AsyncIterator[ShardHost]:
    """Gives a shard host over shards on Ray, the journal on Kafka and the memories in Redis. The shards end with it.

    Raises: as `embedded_host`; ConfigInvalid when the extra is missing or a server refuses us; Unavailable when one
    does not answer, Ray has no room, or a Ray that was started here dies: then what runs in the block is cancelled.
    """
    try:
        from siltstone_services.cluster.ray_session import joined
        from siltstone_services.cluster.ray_shards import RayShards
    except ModuleNotFoundError as error:
        raise ConfigInvalid("cluster", f"expected the extra siltstone[cluster]: {error.name} is missing") from error
    with exclusive(config.home_path) as hold, ExitStack() as stack:
        hold.use(CoreStore(config.home_path).resolve(config.core))
        # Before anything is started: a server that refuses us is told at once.
        backends = await asyncio.to_thread(stack.enter_context, open_backends(config))
        await asyncio.to_thread(look_at_ages, backends.journal, backends.store, SystemClock())
        session = stack.enter_context(joined(config.cluster))
        fleet = await asyncio.to_thread(RayShards, config)
        try:
            async with Conductor(config.kafka.num_partitions, fleet, backends.journal, config.cluster) as conductor:
                await conductor.wait_for(
                    lambda: conductor.coordinator.is_settled,
                    config.cluster.start_budget_s,
                    "the cluster",
                    "its shards do not own all partitions within cluster.start_budget_s; the log says why",
                )
                resizing = Resizing(conductor, fleet, config.kafka.num_partitions, config.cluster)
                try:
                    async with ended_by(session.death()):
                        yield ClusterHost(conductor, resizing, backends, SystemClock(), config)
                finally:
                    await resizing.close()
                await conductor.close(config.cluster.release_budget_s)
        finally:
            await fleet.stop()


@asynccontextmanager
async def ended_by(death: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Runs the block beside what never returns: when that raises, the block is cancelled, and the error raised."""
    try:
        async with asyncio.TaskGroup() as group:
            beside = group.create_task(death)
            yield
            beside.cancel()
    except BaseExceptionGroup as errors:
        error = errors.exceptions[0]
        raise error from error.__cause__
