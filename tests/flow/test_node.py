"""A node owns what it is given, while it is: it goes on where the store says, and writes nothing that it has lost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tiny_cluster import NUM_PARTITIONS, ONE_BY_ONE, QUICK, LookedAtJournal, open_node_over
from tiny_home import ADA, BEN, add_tiny_core, asking, said, tiny_config

from siltstone.adapters.sqlite_file import SqliteFile
from siltstone.adapters.sqlite_snapshots import SqliteSnapshotStore
from siltstone.config import SiltstoneConfig
from siltstone.errors import NotOwner, Unavailable
from siltstone.journal.partition import partition_of
from siltstone.values import AnswerEnd, AnswerPart, Commit, Receipt, Snapshot
from siltstone_services.answers import Pinned
from siltstone_services.node import ShardNode

HOME, OTHER = (partition_of(owner, NUM_PARTITIONS) for owner in (ADA, BEN))
LINE = "I was born in Lisbon and I live in Oslo now."


@pytest.fixture
def home(tmp_path: Path) -> Path:
    assert HOME != OTHER
    add_tiny_core(tmp_path)
    return tmp_path


@pytest.fixture
def config(home: Path) -> SiltstoneConfig:
    return tiny_config(home, {**QUICK, **ONE_BY_ONE})


@pytest.fixture
def file(home: Path, config: SiltstoneConfig) -> Iterator[SqliteFile]:
    with SqliteFile(home / "siltstone.db", config.store) as file:
        yield file


def append(file: SqliteFile, *ids: str) -> list[Receipt]:
    return LookedAtJournal(file).append([said(ADA, id_, LINE) for id_ in ids])


async def until_lost(node: ShardNode, partition: int) -> None:
    async with asyncio.timeout(30):
        while partition in (await node.beat()).claim.epochs:
            await asyncio.sleep(0.01)


async def test_a_node_without_partitions_answers_nobody_and_waits(
    home: Path, file: SqliteFile, config: SiltstoneConfig
) -> None:
    async with open_node_over(home, file, config) as node:
        append(file, "a0")
        with pytest.raises(NotOwner, match=f"partition {HOME} is not here"):
            await node.memory(ADA)
        with pytest.raises(NotOwner):
            [item async for item in node.answer(asking(ADA, "Where do I live?"))]
        with pytest.raises(NotOwner):
            await node.forget(ADA)
        beat = await node.beat()
        assert (beat.claim.epochs, beat.positions, beat.num_absorbed) == ({}, {}, 0)


async def test_what_others_append_to_its_partitions_is_absorbed_without_being_told(
    home: Path, file: SqliteFile, config: SiltstoneConfig
) -> None:
    async with open_node_over(home, file, config) as node:
        append(file, "a0")
        claim = await node.assign([HOME, OTHER])
        assert claim.epochs == {HOME: 1, OTHER: 1}
        receipts = append(file, "a1", "a2")
        assert await node.wait_absorbed(receipts) == []
        assert (await node.memory(ADA)).num_interactions == 3
        assert (await node.assign([HOME])).epochs == claim.epochs
        items = [item async for item in node.answer(asking(ADA, "Where do I live?"))]
        assert isinstance(items[0], Pinned)
        assert items[0].sequence == 3
        assert isinstance(items[-1], AnswerEnd)


async def test_who_waits_for_a_partition_that_leaves_is_told_and_its_users_leave_the_memory(
    home: Path, file: SqliteFile, config: SiltstoneConfig
) -> None:
    async with open_node_over(home, file, config) as node:
        await node.assign([HOME, OTHER])
        await node.wait_absorbed(append(file, "a0"))
        waiting = asyncio.ensure_future(node.wait_absorbed([Receipt("late", HOME, 99, False)]))
        await asyncio.sleep(0)
        change = await node.release([HOME])
        with pytest.raises(NotOwner):
            await waiting
        beat = await node.beat()
        assert (beat.claim.change, list(beat.claim.epochs)) == (change, [OTHER])
        assert (beat.num_resident, beat.resident_bytes) == (0, 0)


async def test_an_answer_under_way_ends_on_the_state_it_began_with_when_its_partition_leaves(
    home: Path, file: SqliteFile, config: SiltstoneConfig
) -> None:
    async with open_node_over(home, file, config) as node:
        await node.assign([HOME])
        await node.wait_absorbed(append(file, "a0"))
        whole = [item async for item in node.answer(asking(ADA, "Where do I live?", max_tokens=32))]
        items = node.answer(asking(ADA, "Where do I live?", max_tokens=32))
        begun = [await anext(items), await anext(items)]
        await node.release([HOME])
        rest = [item async for item in items]
        texts = ["".join(one.text for one in got if isinstance(one, AnswerPart)) for got in (whole, [*begun, *rest])]
        assert texts[0] == texts[1]
        assert isinstance(rest[-1], AnswerEnd)


@asynccontextmanager
async def two_nodes(
    home: Path, file: SqliteFile, config: SiltstoneConfig, store_of: type[SqliteSnapshotStore] = SqliteSnapshotStore
) -> AsyncIterator[tuple[ShardNode, ShardNode]]:
    async with (
        open_node_over(home, file, config, store_of=store_of) as first,
        open_node_over(home, file, config, store_of=store_of) as second,
    ):
        await first.assign([HOME, OTHER])
        await first.wait_absorbed(append(file, "a0"))
        yield first, second


async def test_a_partition_that_another_has_taken_over_is_lost_and_the_rest_goes_on(
    home: Path, file: SqliteFile, config: SiltstoneConfig, caplog: pytest.LogCaptureFixture
) -> None:
    async with two_nodes(home, file, config) as (first, second):
        claim = await second.assign([HOME])
        assert claim.epochs == {HOME: 2}
        receipts = append(file, "a1")
        # Both read it; only one may write what it makes of it.
        await second.wait_absorbed(receipts)
        await until_lost(first, HOME)
        assert (await first.beat()).claim.epochs == {OTHER: 1}
        with pytest.raises(NotOwner):
            await first.memory(ADA)
        (receipt,) = LookedAtJournal(file).append([said(BEN, "b0", LINE)])
        await first.wait_absorbed([receipt])
        assert (await first.memory(BEN)).num_interactions == 1
        assert (await second.memory(ADA)).num_interactions == 2
    assert [vars(one)["partition"] for one in caplog.records if one.message == "partition lost"] == [HOME]


async def test_forgetting_under_a_lease_that_is_stale_forgets_nothing(
    home: Path, file: SqliteFile, config: SiltstoneConfig
) -> None:
    async with two_nodes(home, file, config) as (first, second):
        await second.assign([HOME])
        with pytest.raises(NotOwner):
            await first.forget(ADA)
        assert (await second.memory(ADA)).num_interactions == 1
        assert HOME not in (await first.beat()).claim.epochs


class UnfencedStore(SqliteSnapshotStore):
    """The store without its protection: every commit is taken, under the newest epoch and from any position."""

    def commit(self, commit: Commit) -> None:
        lease = self.acquire(commit.lease.partition, "anybody")
        position = self.position(commit.lease.partition)
        end = max(position, commit.next_position)
        super().commit(Commit(lease, position, end, commit.snapshots))


async def test_without_the_fence_a_stale_owner_writes_over_what_the_new_one_has_learned(
    home: Path, file: SqliteFile, config: SiltstoneConfig
) -> None:
    async with two_nodes(home, file, config, UnfencedStore) as (first, second):
        is_stalled, may_go_on = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def stall_and_write() -> Snapshot | None:
            # On the worker's thread: until it has written, nothing else of this node goes on.
            stale = first._shard.memory_of(ADA)
            loop.call_soon_threadsafe(is_stalled.set)
            may_go_on.wait(60)
            first._shard.replace(stale)
            return SqliteSnapshotStore(file).load(ADA)

        writing = asyncio.create_task(first._ask(stall_and_write))
        await is_stalled.wait()
        await second.assign([HOME])
        await second.wait_absorbed(append(file, "a1"))
        may_go_on.set()
        found = await writing
        assert found is not None
        assert found.sequence == 1


async def test_with_the_fence_it_does_not(home: Path, file: SqliteFile, config: SiltstoneConfig) -> None:
    async with two_nodes(home, file, config) as (first, second):
        stale = await first._ask(lambda: first._shard.memory_of(ADA))
        await second.assign([HOME])
        await second.wait_absorbed(append(file, "a1"))
        with pytest.raises(NotOwner):
            await first._ask(lambda: first._shard.replace(stale))
        found = SqliteSnapshotStore(file).load(ADA)
        assert found is not None
        assert found.sequence == 2


async def test_a_partition_comes_back_to_the_node_that_had_it(
    home: Path, file: SqliteFile, config: SiltstoneConfig
) -> None:
    async with two_nodes(home, file, config) as (first, second):
        await first.release([HOME])
        await second.assign([HOME])
        await second.wait_absorbed(append(file, "a1"))
        await second.release([HOME])
        assert (await first.assign([HOME])).epochs == {HOME: 3, OTHER: 1}
        await first.wait_absorbed(append(file, "a2"))
        assert (await first.memory(ADA)).num_interactions == 3


class AwayStore(SqliteSnapshotStore):
    """Cannot write while `is_away`."""

    is_away = False

    def commit(self, commit: Commit) -> None:
        if type(self).is_away:
            raise Unavailable("the store", "it is away")
        super().commit(commit)


async def test_a_node_lets_go_although_the_store_is_away_and_the_next_owner_takes_it_in_anew(
    home: Path, file: SqliteFile, config: SiltstoneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AwayStore, "is_away", False)
    async with two_nodes(home, file, config, AwayStore) as (first, second):
        monkeypatch.setattr(AwayStore, "is_away", True)
        receipts = append(file, "a1")
        with pytest.raises(Unavailable, match="it is away"):
            await first.wait_absorbed(receipts)
        await first.release([HOME])
        monkeypatch.setattr(AwayStore, "is_away", False)
        await second.assign([HOME])
        await second.wait_absorbed(receipts)
        assert (await second.memory(ADA)).num_interactions == 2


async def test_who_watches_hears_of_every_commit(home: Path, file: SqliteFile, config: SiltstoneConfig) -> None:
    async with open_node_over(home, file, config) as node:
        await node.assign([HOME])
        told: dict[int, int] = {}
        async with asyncio.timeout(30):
            progress: Any = node.watch()
            append(file, "a0", "a1")
            async for news in progress:
                told |= news.positions
                if told.get(HOME) == 2:
                    break
            await progress.aclose()
