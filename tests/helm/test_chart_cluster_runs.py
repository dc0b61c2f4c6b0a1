"""The rendered gateway of a cluster joins a Ray that asks for the token, and serves over a real broker and store."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import signal
import subprocess
import sysconfig
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import servers
import tiny_home
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pod_here import Machine
from rendering import containers, only, render

from siltstone_services.client import SiltstoneClient

TOKEN = "t" * 64
RAY = Path(sysconfig.get_path("scripts")) / "ray"
PARTITIONS = {"num_partitions": 16}


def values(broker: int, store: int, port: int) -> dict[str, Any]:
    topic = f"t{uuid.uuid4().hex}"
    return {
        "config": {
            "gateway": {"port": port, "drain_budget_s": 5},
            "memory": {"num_layers": 2, "rank": 4},
            "engine": {"num_threads": 1},
            "cluster": {"num_shards": 2, "cpus_per_shard": 0.5},
            "kafka": {
                **PARTITIONS,
                "brokers": f"127.0.0.1:{broker}",
                "security": "PLAINTEXT",
                "username": "",
                "topic": topic,
                "parked_topic": f"{topic}.parked",
                "replication_factor": 1,
                "min_insync_replicas": 1,
            },
            "redis": {**PARTITIONS, "address": f"redis://127.0.0.1:{store}"},
            "key_store": {**PARTITIONS, "address": f"redis://127.0.0.1:{store}", "namespace": "keys"},
            "objects": {"url": "", "endpoint": "", "region": "", "access_key": ""},
            "mlflow": {"address": ""},
        },
        "secrets": {
            **{part: {"existingSecret": ""} for part in ("kafka", "redis", "keyStore", "objects", "mlflow")},
            "sealing": {"existingSecret": "master"},
            "rayToken": {"existingSecret": "ray-token"},
        },
        "sleep": {"night": "", "schedule": ""},
    }


@dataclass(frozen=True)
class RayHere:
    """A Ray on this machine, apart from any other: its files and its port are its own."""

    environment: dict[str, str]
    address: str

    def start(self, *options: str) -> None:
        command = [str(RAY), "start", "--disable-usage-stats", *options]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def machine(newest_helm: str, tmp_path: Path) -> Iterator[Machine]:
    with servers.tansu(tmp_path / "tansu") as broker, servers.valkey(tmp_path / "valkey") as store:
        rendered = render(newest_helm, "cluster", values(broker.port, store.port, servers.free_port()))
        found = Machine(tmp_path, rendered)
        tiny_home.add_tiny_core(found.place("/var/lib/siltstone"))
        key = found.place("/etc/siltstone-secrets/sealing") / "master.key"
        key.write_bytes(base64.b64encode(bytes(range(32))))
        found.write_config()
        head = only(rendered, "RayCluster")["spec"]["headGroupSpec"]["rayStartParams"]
        assert head["num-cpus"] == "0"
        yield found


@pytest.fixture
def ray_here(machine: Machine) -> Iterator[RayHere]:
    # Ray's sockets lie in it, and the name of a socket is short.
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    port = servers.free_port()
    environment = {**machine.environment({"auth_token": TOKEN}), "RAY_TMPDIR": folder}
    environment["PATH"] = os.pathsep.join([str(RAY.parent), environment["PATH"]])
    found = RayHere(environment, f"127.0.0.1:{port}")
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.callback(stop_ray, folder)
        # The head and the workers in one, and as many cores as the workers would have.
        found.start("--head", f"--port={port}", "--num-cpus=2", "--num-gpus=0", "--include-dashboard=false")
        yield found


def stop_ray(folder: str) -> None:
    """Ends the processes of this Ray, and of no other: each names the folder in its command."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if folder.encode() in entry.read_bytes():
                os.kill(int(entry.parent.name), signal.SIGKILL)
        except OSError:
            continue


def start_node_beside(machine: Machine, ray_here: RayHere) -> None:
    """Starts the gateway's own Ray node with the rendered words, but for the head's address and who waits for it."""
    sidecar = next(container for container in containers({"spec": machine.pod}) if container["name"] == "ray-node")
    assert sidecar["command"] == ["ray", "start"]
    assert sidecar["restartPolicy"] == "Always"
    address, *options = sidecar["args"]
    assert address == "--address=demo-siltstone-ray-head-svc:6379"
    assert "--block" in options
    kept = [option for option in options if option not in ("--block", "--disable-usage-stats")]
    ray_here.start(f"--address={ray_here.address}", *kept)
    # What the sidecar's startup probe looks for; /tmp is the pod's own there.
    test, is_socket, path = sidecar["startupProbe"]["exec"]["command"]
    assert (test, is_socket) == ("test", "-S")
    assert Path(path.replace("/tmp", ray_here.environment["RAY_TMPDIR"], 1)).is_socket()


async def test_the_rendered_gateway_joins_ray_by_its_token_and_learns(machine: Machine, ray_here: RayHere) -> None:
    start_node_beside(machine, ray_here)
    probes = [machine.container[f"{name}Probe"] for name in ("startup", "readiness", "liveness")]
    port = probes[0]["grpc"]["port"]
    more = {"RAY_TMPDIR": ray_here.environment["RAY_TMPDIR"]}
    with machine.running({"auth_token": TOKEN}, more) as (process, said):
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            for probe in probes:
                asked = health_pb2.HealthCheckRequest(service=probe["grpc"].get("service", ""))
                reply = await stub.Check(asked, timeout=120, wait_for_ready=True)
                assert reply.status == health_pb2.HealthCheckResponse.SERVING, said
        async with SiltstoneClient(f"127.0.0.1:{port}", timeout_s=60.0) as client:
            async with asyncio.timeout(120):
                # It serves as soon as somebody owns everything; the second shard may come a little later.
                while sorted(len(shard.partitions) for shard in await client.shards()) != [8, 8]:
                    await asyncio.sleep(0.1)
            await client.record([tiny_home.said(tiny_home.ADA, "one", "I live in Oslo.")], wait_absorbed=True)
            assert (await client.status()).num_users_stored == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(machine.pod["terminationGracePeriodSeconds"]) == 0, said


def test_the_rendered_gateway_is_refused_with_another_token(machine: Machine, ray_here: RayHere) -> None:
    more = {"RAY_TMPDIR": ray_here.environment["RAY_TMPDIR"]}
    with machine.running({"auth_token": "x" * 64}, more) as (process, said):
        assert process.wait(120) != 0
    assert not any("siltstone listens" in line for line in said), said
