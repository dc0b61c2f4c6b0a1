"""A pod of the chart on this machine: its volumes are folders, its gateway a process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc
from rendering import Manifest, only

START = "from siltstone_services.cli import main; main()"


class Machine:
    """Stands for the container: its volumes are folders of this machine, so what names a mount is told anew."""

    def __init__(self, folder: Path, manifests: list[Manifest], pod: dict[str, Any] | None = None) -> None:
        """`pod` is the spec of the one that is meant; otherwise it is the gateway's."""
        self.pod = pod or only(manifests, "Deployment")["spec"]["template"]["spec"]
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

    def environment(self, secrets: Mapping[str, str]) -> dict[str, str]:
        """Returns what the gateway would be given: of this machine only how Python is found. `secrets` by key."""
        found = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        for variable in self.container["env"]:
            if "value" in variable:
                found[variable["name"]] = self.here(variable["value"])
            else:
                found[variable["name"]] = secrets[variable["valueFrom"]["secretKeyRef"]["key"]]
        return found

    @contextmanager
    def running(
        self, secrets: Mapping[str, str] | None = None, more: Mapping[str, str] | None = None
    ) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
        """Gives the started gateway, and what it has said. `more` is of this machine: where Ray keeps its files."""
        assert self.container["command"] == ["siltstone"]
        command = [sys.executable, "-c", START, *map(self.here, self.container["args"])]
        environment = {**self.environment(secrets or {}), **(more or {})}
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
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
