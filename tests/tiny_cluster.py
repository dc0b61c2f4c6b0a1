"""Nodes in one process, over one embedded file, reached as shards elsewhere are: they can die, and begin anew."""

from __future__ import annotations

import asyncio
import base64
import shutil
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

from tiny_home import open_host, said, tiny_config

from siltstone.adapters.bm25_recall import Bm25Recall
from siltstone.adapters.core_store import CoreStore
from siltstone.adapters.sqlite_file import SqliteFile
from siltstone.adapters.sqlite_journal import SqliteJournal
from siltstone.adapters.sqlite_snapshots import SqliteSnapshotStore
from siltstone.adapters.system_clock import SystemClock
from siltstone.adapters.unsealed import Unsealed
from siltstone.config import SiltstoneConfig
from siltstone.errors import SiltstoneError
from siltstone.placement.coordinator import Claim
from siltstone.ports import ShardHost
from siltstone.values import (
    AnswerEnd,
    AnswerPart,
    Erasure,
    GenerateRequest,
    Interaction,
    MemoryCard,
    UserExport,
    UserKey,
)
from siltstone_services.answers import Pinned
from siltstone_services.beat import Beat, Progress
from siltstone_services.cluster.backends import Backends
from siltstone_services.cluster.conductor import Conductor
from siltstone_services.cluster.links import ScoreQuestion, Scores, ShardGone
from siltstone_services.cluster.resizing import Resizing
from siltstone_services.cluster.router import ClusterHost
from siltstone_services.node import ShardNode

NUM_PARTITIONS = 16
QUICK: dict[str, Any] = {
    "store.num_partitions": NUM_PARTITIONS,
    "kafka.num_partitions": NUM_PARTITIONS,
    "cluster.heartbeat_every_s": 0.05,
    "cluster.stalled_after_s": 5.0,
    "cluster.follow_budget_s": 30.0,
}
ONE_BY_ONE = {"shard.max_round_interactions": 1}
"""One interaction a round: memories are then the same to the bit, whoever absorbs them and in which company."""
USERS = tuple(UserKey("office", f"user-{number:02}") for number in range(20))
TEXTS = (
    "I was born in Lisbon and I live in Oslo now.",
    "My dog is called Ferro.",
    "I keep the keys of the depot in the blue box.",
)


def stream_of(num_each: int, users: Sequence[UserKey] = USERS) -> list[Interaction]:
    """Returns something that every user says, in turns."""
    return [
        said(owner, f"i{number}", f"{TEXTS[number % 3]} Day {number}.") for number in range(num_each) for owner in users
    ]


async def blobs_of(host: ShardHost, users: Sequence[UserKey] = USERS) -> dict[UserKey, bytes]:
    """Returns the stored memory of every user, once it is sure that all they said is in it, once and in order."""
    blobs = {}
    for owner in users:
        export = await host.export(owner)
        assert export.snapshot is not None
        assert export.card.num_interactions == len(export.journal)
        blobs[owner] = export.snapshot.blob
    return blobs


async def embedded_blobs(
    home: Path, stream: Sequence[Interaction], users: Sequence[UserKey] = USERS
) -> dict[UserKey, bytes]:
    """Returns the memories that one process makes of a stream, in a home of its own with the same core."""
    quiet = home.parent / f"{home.name}-quiet"
    for name in ("cores", "bases"):
        shutil.copytree(home / name, quiet / name)
    async with open_host(quiet, ONE_BY_ONE) as host:
        await host.wait_absorbed(await host.record(stream))
        return await blobs_of(host, users)


def cluster_settings(home: Path, store_port: int, broker_port: int) -> dict[str, Any]:
    """Returns where journal, store and keys are, with a key in the home that wraps users' keys."""
    (home / "master.key").write_text(base64.b64encode(bytes(range(32))).decode())
    return {
        "kafka.brokers": f"127.0.0.1:{broker_port}",
        "kafka.replication_factor": 1,
        "kafka.min_insync_replicas": 1,
        "redis.address": f"redis://127.0.0.1:{store_port}",
        "key_store.address": f"redis://127.0.0.1:{store_port}",
        "key_store.namespace": "keys",
        "sealing.master_key_file": str(home / "master.key"),
    }


class LookedAtJournal(SqliteJournal):
    """An embedded journal that nobody tells of: its partitions' owners look."""

    look_every_s = 0.02


def open_node_over(home: Path, file: SqliteFile, config: SiltstoneConfig, **kinds: Any) -> ShardNode:
    """Returns a node over a file that others use too."""
    core = CoreStore(home).load(config.core)
    store = kinds.get("store_of", SqliteSnapshotStore)(file)
    journal = kinds.get("journal_of", LookedAtJournal)(file)
    return ShardNode(core, journal, store, Bm25Recall(), SystemClock(), config)


class LocalLink:
    """`ShardLink` to a node of this process."""

    def __init__(self, make: Callable[[], ShardNode]) -> None:
        self._make = make
        self._stack = AsyncExitStack()
        self.node: ShardNode | None = None
        self.num_hops = 0
        self.may_release = asyncio.Event()
        self.may_release.set()

    async def begin(self) -> None:
        self.node = await self._stack.enter_async_context(self._make())

    async def die(self) -> None:
        """Ends the node as if its process was killed: nothing is released."""
        self.node = None
        await self._stack.aclose()

    def _there(self) -> ShardNode:
        if self.node is None:
            raise ShardGone("the shard", "its process has ended")
        self.num_hops += 1
        return self.node

    async def _alive(self, asked: Any) -> Any:
        """What a call cut off by a death raises is that the process is gone."""
        node = self.node
        try:
            return await asked
        except SiltstoneError:
            self._check_is(node)
            raise

    def _check_is(self, node: ShardNode | None) -> None:
        if self.node is not node:
            raise ShardGone("the shard", "its process has ended")

    async def beat(self) -> Beat | None:
        return await self._alive(self._there().beat())

    async def assign(self, partitions: Sequence[int]) -> Claim:
        return await self._alive(self._there().assign(partitions))

    async def release(self, partitions: Sequence[int]) -> int:
        await self.may_release.wait()
        return await self._alive(self._there().release(partitions))

    async def watch(self) -> AsyncGenerator[Progress, None]:
        async with aclosing(self._there().watch()) as news:
            async for progress in news:
                yield progress

    async def answer(self, request: GenerateRequest) -> AsyncGenerator[Pinned | AnswerPart | AnswerEnd, None]:
        node = self._there()
        try:
            async with aclosing(node.answer(request)) as items:
                async for item in items:
                    yield item
                    self._check_is(node)
        except SiltstoneError:
            self._check_is(node)
            raise

    async def scores(self, questions: Sequence[ScoreQuestion]) -> list[Scores | SiltstoneError]:
        node = self._there()
        asked = [node.score(one.owner, one.prompt, one.answers) for one in questions]
        return await self._alive(asyncio.gather(*asked, return_exceptions=True))

    async def cards(self, owners: Sequence[UserKey]) -> list[MemoryCard | SiltstoneError]:
        return await self._alive(asyncio.gather(*map(self._there().memory, owners), return_exceptions=True))

    async def export(self, owner: UserKey) -> UserExport:
        return await self._alive(self._there().export(owner))

    async def forget(self, owner: UserKey) -> Erasure:
        return await self._alive(self._there().forget(owner))


class LocalFleet:
    """`ShardFleet` of nodes in this process."""

    def __init__(self, make: Callable[[], ShardNode]) -> None:
        self._make = make
        self.links: dict[str, LocalLink] = {}
        self.has_room = asyncio.Event()
        self.has_room.set()
        self.num_restarts = 0
        self.may_restart = asyncio.Event()
        self.may_restart.set()

    @property
    def names(self) -> Sequence[str]:
        return tuple(self.links)

    def link(self, name: str) -> LocalLink:
        if name not in self.links:
            raise ShardGone(f"the shard {name}", "it has left")
        return self.links[name]

    async def begin(self, name: str) -> None:
        await self.has_room.wait()
        link = LocalLink(self._make)
        await link.begin()
        self.links[name] = link

    async def end(self, name: str) -> None:
        await self.links.pop(name).die()

    async def stop(self) -> None:
        for link in self.links.values():
            await link.die()

    async def restart(self, name: str, is_gone: bool) -> None:
        await self.may_restart.wait()
        self.num_restarts += 1
        await self.links[name].die()
        await self.links[name].begin()


@asynccontextmanager
async def open_cluster(
    home: Path, settings: dict[str, Any] | None = None, num_shards: int = 2, **kinds: Any
) -> AsyncIterator[tuple[ClusterHost, Conductor, LocalFleet]]:
    """Gives a host over nodes of this process, once every partition has its owner."""
    config = tiny_config(home, {**QUICK, **(settings or {})})
    async with AsyncExitStack() as stack:
        file = stack.enter_context(SqliteFile(home / "siltstone.db", config.store))

        def make() -> ShardNode:
            return open_node_over(home, file, config, **kinds)

        fleet = LocalFleet(make)
        stack.push_async_callback(fleet.stop)
        for number in range(num_shards):
            await fleet.begin(f"shard-{number}")
        journal = LookedAtJournal(file)
        clock = kinds.get("clock", time.monotonic)
        conductor = await stack.enter_async_context(Conductor(NUM_PARTITIONS, fleet, journal, config.cluster, clock))
        await conductor.wait_for(lambda: conductor.coordinator.is_settled, 30, "the cluster", "it does not settle")
        backends = Backends(journal, SqliteSnapshotStore(file), Unsealed())
        resizing = Resizing(conductor, fleet, NUM_PARTITIONS, config.cluster)
        stack.push_async_callback(resizing.close)
        yield ClusterHost(conductor, resizing, backends, SystemClock(), config), conductor, fleet
