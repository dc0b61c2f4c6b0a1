"""The rendered gateway, started on this machine as the container would be, answers the rendered probes."""

from __future__ import annotations

import base64
import signal
from pathlib import Path
from typing import Any

import grpc
import pytest
import tiny_home
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pod_here import Machine, ask
from rendering import render
from servers import free_port

# Small and quick; nothing of it is what the test is about.
SMALL: dict[str, Any] = {
    "memory": {"num_layers": 2, "rank": 4},
    "engine": {"num_threads": 1},
}


def embedded(port: int) -> dict[str, Any]:
    return {
        "core": {"source": ""},
        "config": {"gateway": {"port": port, "drain_budget_s": 5}, **SMALL},
        "secrets": {"sealing": {"existingSecret": "master"}},
        "sleep": {"night": "", "schedule": ""},
    }


@pytest.fixture
def machine(newest_helm: str, tmp_path: Path) -> Machine:
    found = Machine(tmp_path, render(newest_helm, "embedded", embedded(free_port())))
    tiny_home.add_tiny_core(found.place("/var/lib/siltstone"))
    key = found.place("/etc/siltstone-secrets/sealing") / "master.key"
    key.write_bytes(base64.b64encode(bytes(range(32))))
    found.write_config()
    return found


def test_the_rendered_gateway_serves_answers_its_probes_and_ends_in_time(machine: Machine) -> None:
    probes = {name: machine.container[f"{name}Probe"] for name in ("startup", "readiness", "liveness")}
    with machine.running() as (process, said):
        port = probes["startup"]["grpc"]["port"]
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            for name, probe in probes.items():
                assert ask(probe, stub) == health_pb2.HealthCheckResponse.SERVING, (name, said)
            with pytest.raises(grpc.RpcError) as unknown:
                ask({"grpc": {"port": port, "service": "siltstone.proto.v1.Misspelt"}}, stub)
            assert unknown.value.code() == grpc.StatusCode.NOT_FOUND
        process.send_signal(signal.SIGTERM)
        assert process.wait(machine.pod["terminationGracePeriodSeconds"]) == 0
    assert any("siltstone listens at 0.0.0.0:" in line for line in said), said
    assert any('"gateway stopped"' in line for line in said), said


def test_the_rendered_gateway_does_not_start_without_the_secret_it_was_told_of(machine: Machine) -> None:
    (machine.place("/etc/siltstone-secrets/sealing") / "master.key").unlink()
    with machine.running() as (process, said):
        assert process.wait(90) == 2
    assert any("master.key" in line for line in said), said
