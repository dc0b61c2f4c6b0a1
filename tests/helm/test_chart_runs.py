"""The rendered gateway, started on this machine as the container would be, answers the rendered probes."""

from __future__ import annotations

import base64
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import tiny_home
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rendering import Manifest, only, render

# Small and quick; nothing of it is what the test is about.
SMALL: dict[str, Any] = {
    "memory": {"num_layers": 2, "rank": 4},
    "engine": {"num_threads": 1},
}
START = "from siltstone_services.cli import main; main()"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


class Machine:
    """Stands for the container: its volumes are folders of this machine, so what names a mount is told anew."""

    def __init__(self, folder: Path, manifests: list[Manifest]) -> None:
        self.pod = only(manifests, "Deployment")["spec"]["template"]["spec"]
        (self.container,) = self.pod["containers"]
        self._config = only(manifests, "ConfigMap")["data"]
        self._places = {m["mountPath"]: folder / m["name"] for m in self.container["volumeMounts"]}
        for place in self._places.values():
            place.mkdir(exist_ok=True)

    def place(self, path: str) -> Path:
        return self._places[path]

    def here(self, text: str) -> str:
        """Returns a text of the pod with the paths of this machine in it: longer ones first, each once."""
        mounts = sorted(self._places, key=len, reverse=True)
        pattern = "|".join(re.escape(path) for path in mounts)
        return re.sub(rf"(?:{pattern})(?![\w.-])", lambda found: str(self._places[found[0]]), text)

    def write_config(self) -> None:
        for name, text in self._config.items():
            (self.place("/etc/siltstone") / name).write_text(self.here(text), encoding="utf-8")

    @contextmanager
    def running(self) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
        """Gives the started gateway, and what it has said."""
        assert self.container["command"] == ["siltstone"]
        command = [sys.executable, "-c", START, *map(self.here, self.container["args"])]
        rendered = {variable["name"]: self.here(variable["value"]) for variable in self.container["env"]}
        # Of this machine only how Python is found; everything else is what the pod would have.
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**environment, **rendered}
        )
        said: list[str] = []
        assert process.stdout is not None
        reader = threading.Thread(target=said.extend, args=(process.stdout,))
        reader.start()
        try:
            yield process, said
        finally:
            process.kill()
            process.wait()
            reader.join()
            process.stdout.close()


def ask(probe: dict[str, Any], stub: health_pb2_grpc.HealthStub) -> int:
    """Asks what the kubelet would ask for a probe; waits for the server, as a start takes its time."""
    asked = health_pb2.HealthCheckRequest(service=probe["grpc"].get("service", ""))
    status: int = stub.Check(asked, timeout=90, wait_for_ready=True).status
    return status


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
