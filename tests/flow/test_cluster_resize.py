"""Shards join and leave a cluster that serves: nobody's call fails, and nothing is learned twice or not at all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_cluster import NUM_PARTITIONS, ONE_BY_ONE, USERS, blobs_of, embedded_blobs, open_cluster
from tiny_home import add_tiny_core, asking, open_host, said, tiny_config

from siltstone.adapters.system_clock import SystemClock
from siltstone.errors import Cancelled, InvalidInput, NotFound, SiltstoneError, WrongState
from siltstone.placement.coordinator import ShardState
from siltstone.values import AnswerEnd
from siltstone_services.benchmark.resizing import Traffic
from siltstone_services.client import SiltstoneClient
from siltstone_services.cluster.conductor import Conductor
from siltstone_services.gateway import Gateway
from siltstone_services.operator_desk import operator_desk

PATIENT = {
    **ONE_BY_ONE,
    **{f"cluster.{name}_s": 60.0 for name in ("stalled_after", "assign_budget", "release_budget", "follow_budget")},
}
"""Budgets that no slow machine uses up: nothing is then taken from a shard for being late."""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    add_tiny_core(home)
    return home


def shares(conductor: Conductor) -> dict[str, int]:
    return {name: len(conductor.coordinator.partitions_of(name)) for name in conductor.coordinator.shards}


async def test_a_shard_is_added_and_one_removed_under_load_and_nobody_notices(
    home: Path, record_property: Callable[[str, object], None]
) -> None:
    users = USERS[:6]
    async with open_cluster(home, PATIENT) as (host, conductor, fleet):
        async with Traffic(host, users, 0.05) as traffic:
            await traffic.goes_on(3)
            start_s = time.monotonic()
            await host.resize(3)
            assert sorted(shares(conductor).values()) == [5, 5, 6]
            assert tuple(fleet.names) == ("shard-0", "shard-1", "shard-2")
            await traffic.goes_on(3)
            await host.resize(2)
            assert sorted(shares(conductor).values()) == [8, 8]
            end_s = time.monotonic()
            await traffic.goes_on(3)
        assert traffic.failures == []
        assert tuple(fleet.names) == ("shard-0", "shard-1")
        assert conductor.coordinator.num_takeovers == 0, "something was taken from a shard instead of being let go"
        for kind in ("observe", "generate", "score"):
            longest_s = [max(traffic.took_s(kind, *when), default=0.0) for when in ((0.0, start_s), (start_s, end_s))]
            record_property(f"longest {kind}, before / during (s)", f"{longest_s[0]:.3f} / {longest_s[1]:.3f}")
            print(f"{kind}: longest before {longest_s[0]:.3f} s, during {longest_s[1]:.3f} s")
        found = await blobs_of(host, users)
    stream = [one for owner in users for one in traffic.said[owner]]
    assert found == await embedded_blobs(home, stream, users)


async def test_a_running_answer_ends_on_the_shard_that_leaves_before_its_process_does(home: Path) -> None:
    async with open_cluster(home, ONE_BY_ONE, num_shards=2) as (host, conductor, fleet):
        # The user's memory moves on while the answer runs: no other shard could end it.
        owner = next(one for one in USERS if conductor.coordinator.owner_of(host._home_of(one)).shard == "shard-1")
        await host.wait_absorbed(await host.record([said(owner, "a0", "I live in Oslo.")]))
        items = host.generate(asking(owner, "Where do I live?", max_tokens=300))
        await anext(items)
        resizing = asyncio.create_task(host.resize(1))
        await host.wait_absorbed(await host.record([said(owner, "a1", "I was born in Lisbon.")]))
        rest = [item async for item in items]
        assert isinstance(rest[-1], AnswerEnd)
        assert rest[-1].snapshot_sequence == 1
        await resizing
        assert tuple(fleet.names) == ("shard-0",)
        assert (await host.memory(owner)).num_interactions == 2


async def test_an_answer_that_takes_too_long_does_not_keep_a_shard(home: Path) -> None:
    settings = {**ONE_BY_ONE, "cluster.leave_budget_s": 0.01}
    async with open_cluster(home, settings) as (host, conductor, fleet):
        owner = next(one for one in USERS if conductor.coordinator.owner_of(host._home_of(one)).shard == "shard-1")
        items = host.generate(asking(owner, "Where do I live?", max_tokens=300))
        await anext(items)
        await host.resize(1)
        # The next owner has the same state, and goes on with it.
        rest = [item async for item in items]
        assert isinstance(rest[-1], AnswerEnd)
        assert tuple(fleet.names) == ("shard-0",)


async def test_who_comes_back_under_an_old_name_gets_its_share(home: Path) -> None:
    async with open_cluster(home) as (host, conductor, _):
        for num_shards in (1, 3, 1, 2):
            await host.resize(num_shards)
            assert sorted(shares(conductor)) == [f"shard-{number}" for number in range(num_shards)]
            assert sum(shares(conductor).values()) == NUM_PARTITIONS


async def test_a_dead_shard_is_the_first_to_leave(home: Path) -> None:
    async with open_cluster(home) as (host, conductor, fleet):
        fleet.may_restart.clear()
        await fleet.links["shard-0"].die()
        await conductor.wait_for(lambda: set(conductor.coordinator.shards) == {"shard-1"}, 30, "it", "it is not missed")
        await host.resize(1)
        assert tuple(fleet.names) == ("shard-1",)
        assert shares(conductor) == {"shard-1": NUM_PARTITIONS}


async def test_another_number_takes_the_place_of_one_that_there_is_no_room_for(home: Path) -> None:
    async with open_cluster(home) as (host, conductor, fleet):
        fleet.has_room.clear()
        first, second = asyncio.create_task(host.resize(3)), asyncio.create_task(host.resize(3))
        await asyncio.sleep(0)
        # A caller that goes away ends nothing.
        first.cancel()
        await asyncio.wait({first})
        assert not second.done()
        await host.resize(1)
        with pytest.raises(Cancelled, match="the change to 3 shards"):
            await second
        assert shares(conductor) == {"shard-0": NUM_PARTITIONS}


async def test_a_change_that_was_given_up_while_a_shard_left_keeps_it(home: Path) -> None:
    async with open_cluster(home, PATIENT) as (host, conductor, fleet):
        fleet.links["shard-1"].may_release.clear()
        leaving = asyncio.create_task(host.resize(1))
        states = conductor.coordinator
        await conductor.wait_for(lambda: states.shards["shard-1"] is ShardState.DRAINING, 30, "it", "it does not leave")
        staying = asyncio.create_task(host.resize(2))
        with pytest.raises(Cancelled):
            await leaving
        fleet.links["shard-1"].may_release.set()
        await staying
        assert shares(conductor) == {"shard-0": 8, "shard-1": 8}
        assert fleet.num_restarts == 0


async def test_an_operator_resizes_by_the_interface_however_long_it_takes(home: Path) -> None:
    config = tiny_config(home, {"gateway.max_call_s": 2.0})
    async with (
        open_cluster(home) as (host, _, fleet),
        operator_desk(config) as operator,
        Gateway(host, config.gateway, config.admission, SystemClock(), operator) as gateway,
        SiltstoneClient(gateway.address, timeout_s=60.0) as client,
    ):
        fleet.has_room.clear()
        asyncio.get_running_loop().call_later(1.5, fleet.has_room.set)
        told = await client.cluster.resize(3)
        assert sorted(len(shard.partitions) for shard in told) == [5, 5, 6]
        assert told == await client.shards()
        for wrong in (0, NUM_PARTITIONS + 1):
            with pytest.raises(InvalidInput, match="num_shards"):
                await client.cluster.resize(wrong)


async def test_nobody_resizes_where_there_is_no_operators_desk(home: Path) -> None:
    config = tiny_config(home)
    async with (
        open_cluster(home) as (host, _, fleet),
        Gateway(host, config.gateway, config.admission, SystemClock()) as gateway,
        SiltstoneClient(gateway.address, timeout_s=60.0) as client,
    ):
        with pytest.raises(NotFound, match="method"):
            await client.cluster.resize(3)
        assert len(fleet.names) == 2


@pytest.mark.parametrize("num_shards", [0, -1, NUM_PARTITIONS + 1])
async def test_a_number_that_is_none_of_shards_is_refused(home: Path, num_shards: int) -> None:
    async with open_cluster(home) as (host, _, fleet):
        with pytest.raises(InvalidInput, match="num_shards"):
            await host.resize(num_shards)
        assert len(fleet.names) == 2


async def test_one_process_cannot_be_resized(home: Path) -> None:
    async with open_host(home) as host:
        with pytest.raises(WrongState, match="one process"):
            await host.resize(2)


async def test_under_load_a_shard_that_leaves_undrained_is_noticed(home: Path) -> None:
    """The control to a change under load: the same traffic, and a shard that goes without giving anything up."""
    async with open_cluster(home, PATIENT) as (host, conductor, fleet):
        async with Traffic(host, USERS[:6], 0.05) as traffic:
            await traffic.goes_on(3)
            conductor.part("shard-1")
            await fleet.end("shard-1")
            await traffic.goes_on(3)
        assert traffic.failures or conductor.coordinator.num_takeovers > 0
        assert shares(conductor) == {"shard-0": NUM_PARTITIONS}


async def test_a_shard_that_ends_without_giving_up_anything_is_noticed(home: Path) -> None:
    """The control: what the tests above look at is seen to differ."""
    async with open_cluster(home, ONE_BY_ONE) as (host, conductor, fleet):
        owner = next(one for one in USERS if conductor.coordinator.owner_of(host._home_of(one)).shard == "shard-1")
        await host.wait_absorbed(await host.record([said(owner, "a0", "I live in Oslo.")]))
        items = host.generate(asking(owner, "Where do I live?", max_tokens=300))
        await anext(items)
        recorded = await host.record([said(owner, "a1", "I was born in Lisbon.")])
        conductor.part("shard-1")
        await fleet.end("shard-1")
        await host.wait_absorbed(recorded)
        with pytest.raises(SiltstoneError, match="the rest of the answer"):
            [item async for item in items]
        assert conductor.coordinator.num_takeovers > 0
