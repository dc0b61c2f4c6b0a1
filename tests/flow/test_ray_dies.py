"""A Ray that the server started and that dies: the server ends, and the next one goes on."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
import servers
from server_process import up
from tiny_cluster import ONE_BY_ONE, USERS, cluster_settings, embedded_blobs, stream_of
from tiny_home import add_tiny_core, write_config

from siltstone.values import Interaction
from siltstone_services.client import SiltstoneClient
from siltstone_services.home import find_server


def raylets_of(parent: int) -> list[int]:
    """Returns the processes of nodes of Ray that a process has started."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            name, _, rest = (entry / "stat").read_text().rpartition(")")
        except OSError:
            continue
        if name.endswith("(raylet") and int(rest.split()[1]) == parent:
            found.append(int(entry.name))
    return found


async def teach(home: Path, stream: list[Interaction]) -> dict[object, bytes]:
    """Lets a home's server learn a stream, and returns everybody's memory."""
    async with SiltstoneClient(find_server(home).address, timeout_s=120.0) as client:
        for start in range(0, len(stream), 10):
            await client.record(stream[start : start + 10], wait_absorbed=True)
        exports = {owner: await client.export(owner) for owner in USERS}
    return {owner: export.snapshot.blob for owner, export in exports.items() if export.snapshot is not None}


async def test_a_ray_of_our_own_that_dies_ends_the_server_and_the_next_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    add_tiny_core(home)
    stream = stream_of(2)
    half = len(stream) // 2
    with servers.tansu(tmp_path / "tansu") as broker, servers.valkey(tmp_path / "valkey") as store:
        settings = {
            **ONE_BY_ONE,
            **{f"{part}.num_partitions": 16 for part in ("kafka", "redis", "key_store")},
            "cluster.is_on": True,
            "cluster.cpus_per_shard": 0.5,
            **cluster_settings(home, store.port, broker.port),
            "gateway.max_call_s": 120.0,
        }
        write_config(home, settings)
        with monkeypatch.context() as patch:
            # The shards serve on until Ray itself says that their node is dead: soon, here.
            patch.setenv("RAY_health_check_period_ms", "300")
            with up(home) as (process, log):
                await teach(home, stream[:half])
                (raylet,) = raylets_of(process.pid)
                os.kill(raylet, signal.SIGKILL)
                assert await asyncio.to_thread(process.wait, 120) == 5
        assert any("Ray has died" in line for line in log)
        with up(home):
            found = await teach(home, stream[half:])
    assert found == await embedded_blobs(home, stream)
