"""The whole cluster: gateway, Ray actors, a Kafka-protocol broker, a Valkey. Shards are killed, and nothing shows."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import servers
from tiny_cluster import ONE_BY_ONE, USERS, blobs_of, cluster_settings, embedded_blobs, stream_of
from tiny_home import add_tiny_core, asking, tiny_config

from siltstone.config import SiltstoneConfig
from siltstone.errors import Unavailable
from siltstone.values import AnswerEnd, Interaction
from siltstone_services.benchmark.resizing import Traffic
from siltstone_services.client import SiltstoneClient
from siltstone_services.gateway import Gateway
from siltstone_services.wiring import cluster_host

NUM_PARTITIONS = 16


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    add_tiny_core(home)
    return home


@pytest.fixture
def settings(home: Path, tmp_path: Path) -> Iterator[dict[str, Any]]:
    with servers.tansu(tmp_path / "tansu") as broker, servers.valkey(tmp_path / "valkey") as store:
        parts = ("kafka", "redis", "key_store")
        topic = f"t{uuid.uuid4().hex}"
        yield {
            **ONE_BY_ONE,
            **{f"{part}.num_partitions": NUM_PARTITIONS for part in parts},
            "cluster.is_on": True,
            "cluster.cpus_per_shard": 0.5,
            "cluster.stalled_after_s": 4.0,
            "kafka.topic": topic,
            "kafka.parked_topic": f"{topic}.parked",
            **cluster_settings(home, store.port, broker.port),
            "gateway.max_call_s": 120.0,
        }


@asynccontextmanager
async def served(config: SiltstoneConfig) -> AsyncIterator[tuple[Any, SiltstoneClient]]:
    from siltstone.adapters.system_clock import SystemClock

    async with (
        cluster_host(config) as host,
        Gateway(host, config.gateway, config.admission, SystemClock()) as gateway,
        SiltstoneClient(gateway.address, timeout_s=120.0) as client,
    ):
        yield host, client


async def teach(client: SiltstoneClient, stream: list[Interaction]) -> None:
    for start in range(0, len(stream), 10):
        await client.record(stream[start : start + 10], wait_absorbed=True)


def pids_of(host: Any) -> dict[str, int]:
    """Returns the process of every shard."""
    import ray

    links = {name: host._conductor.link(name) for name in host._conductor._fleet.names}
    ask = {name: link.actor.__ray_call__.remote(lambda _: os.getpid()) for name, link in links.items()}
    return {name: ray.get(pid) for name, pid in ask.items()}


def nicenesses(pid: int) -> set[int]:
    return {os.getpriority(os.PRIO_PROCESS, int(task.name)) for task in Path(f"/proc/{pid}/task").iterdir()}


async def until_ended(pid: int) -> None:
    async with asyncio.timeout(30):
        while Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.1)


async def until_shares(client: SiltstoneClient, *shares: int) -> None:
    async with asyncio.timeout(90):
        while sorted(len(shard.partitions) for shard in await client.shards()) != sorted(shares):
            await asyncio.sleep(0.1)


async def test_shards_that_are_killed_and_stopped_learn_every_interaction_once(
    home: Path, settings: dict[str, Any]
) -> None:
    config = tiny_config(home, settings)
    stream = stream_of(5)
    fifth = len(stream) // 5
    async with served(config) as (host, client):
        await until_shares(client, 8, 8)
        await teach(client, stream[:fifth])
        answered, end = await client.answer(asking(USERS[0], "Where do I live?"))
        assert isinstance(end, AnswerEnd)
        assert end.snapshot_sequence == 1
        assert answered

        # Killed: nobody asks Ray, as when a machine kills what takes its memory.
        before = await asyncio.to_thread(pids_of, host)
        # Opened on threads that give way, they give way no longer, with none of theirs, nor to the gateway.
        assert {nice for pid in before.values() for nice in nicenesses(pid)} == {os.getpriority(os.PRIO_PROCESS, 0)}
        sending = asyncio.create_task(teach(client, stream[fifth : 2 * fifth]))
        asked = [asyncio.create_task(client.answer(asking(user, "Where do I live?"))) for user in USERS[:6]]
        await asyncio.sleep(0.1)
        os.kill(before["shard-0"], signal.SIGKILL)
        await sending
        await asyncio.gather(*asked)
        await until_shares(client, 8, 8)
        after = await asyncio.to_thread(pids_of, host)
        assert after["shard-0"] != before["shard-0"]
        assert after["shard-1"] == before["shard-1"]
        await teach(client, stream[2 * fifth : 3 * fifth])

        # Stopped for longer than it may be late: its partitions go, and what it still does then changes nothing.
        os.kill(after["shard-1"], signal.SIGSTOP)
        try:
            await teach(client, stream[3 * fifth : 4 * fifth])
        finally:
            os.kill(after["shard-1"], signal.SIGCONT)
        await teach(client, stream[4 * fifth :])
        await until_shares(client, 8, 8)

        found = await blobs_of(host)
        status = await client.status()
        assert (status.num_users_stored, status.num_parked) == (len(USERS), 0)
        epochs = [place.epoch for shard in await client.shards() for place in shard.partitions]
        assert min(epochs) >= 2
    assert found == await embedded_blobs(home, stream)


async def test_shards_join_and_leave_under_load_and_nobody_notices(home: Path, settings: dict[str, Any]) -> None:
    config = tiny_config(home, {**settings, "cluster.stalled_after_s": 60.0})
    users = USERS[:6]
    async with served(config) as (host, client):
        async with Traffic(host, users) as traffic:
            await traffic.goes_on(3)
            pids = await asyncio.to_thread(pids_of, host)
            await host.resize(3)
            assert sorted(len(shard.partitions) for shard in await client.shards()) == [5, 5, 6]
            await traffic.goes_on(3)
            joined = await asyncio.to_thread(pids_of, host)
            assert set(joined) == {*pids, "shard-2"}
            await host.resize(1)
            assert [len(shard.partitions) for shard in await client.shards()] == [16]
            await traffic.goes_on(3)
            await host.resize(2)
            assert sorted(len(shard.partitions) for shard in await client.shards()) == [8, 8]
            await traffic.goes_on(3)
        assert traffic.failures == []
        assert host._conductor.coordinator.num_takeovers == 0
        for name in ("shard-1", "shard-2"):
            await until_ended(joined[name])
        found = await blobs_of(host, users)
    stream = [one for owner in users for one in traffic.said[owner]]
    assert found == await embedded_blobs(home, stream, users)


async def test_what_ray_has_no_room_for_is_told_and_changes_nothing(home: Path, settings: dict[str, Any]) -> None:
    config = tiny_config(home, {**settings, "cluster.start_budget_s": 30.0})
    async with served(config) as (host, client):
        # It serves as soon as somebody owns everything; the second shard may come a little later.
        await until_shares(client, 8, 8)
        host._resizing._fleet._cluster = replace(config.cluster, start_budget_s=2.0, cpus_per_shard=1_000.0)
        with pytest.raises(Unavailable, match="no room for another shard"):
            await host.resize(3)
        assert sorted(len(shard.partitions) for shard in await client.shards()) == [8, 8]
        assert host._conductor.members == ("shard-0", "shard-1")
