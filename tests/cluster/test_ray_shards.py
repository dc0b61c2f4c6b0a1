"""The whole cluster: gateway, Ray actors, a Kafka-protocol broker, a Valkey. Shards are killed, and nothing shows."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import servers
from tiny_cluster import ONE_BY_ONE, USERS, blobs_of, embedded_blobs, stream_of
from tiny_home import add_tiny_core, asking, tiny_config

from siltstone.config import SiltstoneConfig
from siltstone.values import AnswerEnd, Interaction
from siltstone_services.client import SiltstoneClient
from siltstone_services.gateway import Gateway
from siltstone_services.wiring import cluster_host

pytestmark = pytest.mark.slow

NUM_PARTITIONS = 16


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    add_tiny_core(home)
    (home / "master.key").write_text(base64.b64encode(bytes(range(32))).decode())
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
            "kafka.brokers": f"127.0.0.1:{broker.port}",
            "kafka.topic": topic,
            "kafka.parked_topic": f"{topic}.parked",
            "kafka.replication_factor": 1,
            "kafka.min_insync_replicas": 1,
            "redis.address": f"redis://127.0.0.1:{store.port}",
            "key_store.address": f"redis://127.0.0.1:{store.port}",
            "key_store.namespace": "keys",
            "sealing.master_key_file": str(home / "master.key"),
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
