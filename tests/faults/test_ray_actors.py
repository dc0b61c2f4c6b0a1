"""Shards as actors of Ray, killed again and again, whether Ray sends calls again or not; and Ray itself begun anew."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import servers
from effects import SETTINGS, Tally, faultless, record_figures, send, stream_of, tally
from halting_actor import ACTORS, ANYBODY, NOBODY, Halt
from ray_server import NUM_SENT, NUM_USERS
from shard_fleet import place_at
from tiny_cluster import cluster_settings
from tiny_home import tiny_config

from siltstone.adapters.system_clock import SystemClock
from siltstone.config import SiltstoneConfig
from siltstone.memory.user_memory import UserMemory
from siltstone.values import Interaction, UserKey
from siltstone_services.cluster.backends import open_backends
from siltstone_services.cluster.conductor import Conductor
from siltstone_services.cluster.resizing import Resizing
from siltstone_services.cluster.router import ClusterHost
from siltstone_services.cluster.shard_actor import ShardActor

pytestmark = pytest.mark.slow

SEED = 9
RAY: dict[str, Any] = {
    **SETTINGS,
    "cluster.is_on": True,
    "cluster.cpus_per_shard": 0.5,
    # With retries a call to an actor that has died waits for the next one: that is not to pass for a stall.
    "cluster.stalled_after_s": 20.0,
    "cluster.follow_budget_s": 60.0,
    "gateway.max_call_s": 120.0,
}
NewHome = Callable[[], Path]


@pytest.fixture
def settings(
    new_home: NewHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Path, dict[str, Any]]]:
    # An actor's process finds what the test brings along.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    home = new_home()
    with servers.tansu(tmp_path / "tansu") as broker, servers.valkey(tmp_path / "valkey") as store:
        yield home, {**RAY, **cluster_settings(home, store.port, broker.port)}


@asynccontextmanager
async def ray_host(
    config: SiltstoneConfig, task_retries: int, actor: type[ShardActor]
) -> AsyncIterator[tuple[ClusterHost, Conductor, Any]]:
    """Gives the host of a cluster as the server does, whose actors' calls Ray sends again so often."""
    from siltstone_services.cluster.ray_session import joined
    from siltstone_services.cluster.ray_shards import RayShards

    class Retrying(RayShards):
        max_task_retries = task_retries
        actor_class = actor

    with ExitStack() as stack:
        backends = await asyncio.to_thread(stack.enter_context, open_backends(config))
        stack.enter_context(joined(config.cluster))
        fleet = await asyncio.to_thread(Retrying, config)
        try:
            async with Conductor(config.kafka.num_partitions, fleet, backends.journal, config.cluster) as conductor:
                await conductor.wait_for(lambda: conductor.coordinator.is_settled, 300, "the cluster", "no shards")
                resizing = Resizing(conductor, fleet, config.kafka.num_partitions, config.cluster)
                try:
                    yield ClusterHost(conductor, resizing, backends, SystemClock(), config), conductor, fleet
                finally:
                    await resizing.close()
                await conductor.close(config.cluster.release_budget_s)
        finally:
            await fleet.stop()


async def pid_of(fleet: Any, name: str) -> int:
    """Returns the process of an actor, once there is one that answers."""
    import ray

    while True:
        try:
            return int(await fleet.link(name).actor.__ray_call__.remote(lambda _: os.getpid()))
        except ray.exceptions.RayError:
            await asyncio.sleep(0.1)


async def ask_on(host: Any, stream: Sequence[Interaction], is_over: asyncio.Event) -> int:
    """Asks for users' memories until it is over; returns how often. No call may fail."""
    rng, num_asked = random.Random(SEED), 0
    while not is_over.is_set():
        await host.memory(rng.choice(stream).owner)
        num_asked += 1
        await asyncio.sleep(0.05)
    return num_asked


Moment = Callable[[int], Awaitable[None]]
"""Waits for the instant in which the process with this id is to be killed."""


@dataclass(frozen=True)
class Killed:
    """What became of a stream while actors were killed."""

    tally: Tally
    num_parked: int
    num_asked: int
    back_s: tuple[float, ...]
    took_s: float


async def kill_actors(
    settings: tuple[Path, dict[str, Any]],
    stream: Sequence[Interaction],
    num_kills: int,
    moment: Moment,
    expected: Mapping[UserKey, UserMemory],
    task_retries: int = 0,
    actor: type[ShardActor] = ShardActor,
) -> Killed:
    """Sends a stream in as many parts as actors are killed, one in the middle of each."""
    home, given = settings
    config = tiny_config(home, given)
    rng, back_s, num_a_part = random.Random(SEED), [], len(stream) // num_kills
    async with ray_host(config, task_retries, actor) as (host, conductor, fleet):
        started_s, is_over = time.monotonic(), asyncio.Event()
        asking = asyncio.create_task(ask_on(host, stream, is_over))
        for number in range(num_kills):
            victim = rng.choice(list(fleet.names))
            pid = await pid_of(fleet, victim)
            part = asyncio.create_task(send(host, stream[number * num_a_part : (number + 1) * num_a_part]))
            await moment(pid)
            incarnation = conductor.beats[victim].incarnation if victim in conductor.beats else ""
            killed_s = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            await part

            def is_back(victim: str = victim, before: str = incarnation) -> bool:
                beat = conductor.beats.get(victim)
                return beat is not None and beat.incarnation != before and conductor.coordinator.is_settled

            await conductor.wait_for(is_back, 120, victim, "it does not come back")
            back_s.append(time.monotonic() - killed_s)
        is_over.set()
        num_asked = await asking
        took_s = time.monotonic() - started_s
    with place_at(home, "cluster", given) as place:
        found = tally(config, place.store, stream, expected)
        num_parked = len(list(place.store.parked()))
    return Killed(found, num_parked, num_asked, tuple(sorted(back_s)), took_s)


@pytest.mark.parametrize("task_retries", [0, -1])
async def test_actors_that_are_killed_leave_the_same_memories_whether_ray_sends_again_or_not(
    task_retries: int, settings: tuple[Path, dict[str, Any]], new_home: NewHome
) -> None:
    num_kills = 10
    stream, rng = stream_of(1_000, NUM_USERS, SEED), random.Random(SEED)

    async def sometime(pid: int) -> None:
        await asyncio.sleep(rng.uniform(0.0, 0.4))

    expected = await faultless(new_home(), SETTINGS, stream)
    found = await kill_actors(settings, stream, num_kills, sometime, expected, task_retries)
    record_figures(
        f"Ray actors killed, task retries {task_retries}",
        interactions=len(stream),
        kills=num_kills,
        **asdict(found.tally),
        parked=found.num_parked,
        asked_meanwhile=found.num_asked,
        failed=0,
        settled_after_s=[round(one, 1) for one in found.back_s],
        seconds=round(found.took_s, 1),
    )
    assert (found.tally, found.num_parked) == (Tally(NUM_USERS, 0, 0, 0), 0)
    assert found.num_asked > 0


async def reached(halt: Halt, goes_on: Callable[[], bool]) -> None:
    """Returns once a commit waits to be killed, while there is what commits."""
    async with asyncio.timeout(60):
        while not halt.is_reached:
            assert goes_on(), "nothing commits any more"
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("place", ACTORS)
async def test_actors_killed_at_a_place_of_a_commit_do_harm_only_where_it_is_torn(
    place: str, settings: tuple[Path, dict[str, Any]], new_home: NewHome
) -> None:
    """ "torn" is the negative control: it writes the position first, and the memories next."""
    num_kills = 2
    stream, halt = stream_of(100, NUM_USERS, SEED), Halt(settings[0])

    async def in_a_commit(pid: int) -> None:
        halt.want(pid)
        await reached(halt, lambda: True)

    expected = await faultless(new_home(), SETTINGS, stream)
    found = await kill_actors(settings, stream, num_kills, in_a_commit, expected, actor=ACTORS[place])
    record_figures(f"Ray actors killed in a commit, {place}", kills=num_kills, **asdict(found.tally))
    if place == "torn":
        assert found.tally.lost == num_kills
        assert 0 < found.tally.differing <= num_kills
    else:
        assert found.tally == Tally(NUM_USERS, 0, 0, 0)


class Head:
    """A Ray of its own, apart from every process of this test: its head can be killed with all that is on it."""

    def __init__(self) -> None:
        # Short: Ray puts sockets into it.
        self.folder = Path(tempfile.mkdtemp(prefix="head", dir="/tmp"))
        self.port = servers.free_port()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", f"--port={self.port}"]
        command += ["--num-cpus=2", "--include-dashboard=false", f"--temp-dir={self.folder}", "--disable-usage-stats"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=120)

    def pids(self) -> set[int]:
        """The processes of this Ray: those that are told where its folder is, and their children."""
        found, parents = set(), {}
        # One of them is not told of the folder, but of the address.
        marks = (str(self.folder).encode(), f":{self.port}\0--host=".encode())
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit():
                    pid = int(entry.name)
                    parents[pid] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                    command = (entry / "cmdline").read_bytes()
                    if pid != os.getpid() and any(mark in command for mark in marks):
                        found.add(pid)
            except OSError:
                continue
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return found

    def kill(self) -> None:
        """Kills everything at once, as when the machine of the head goes."""
        for _ in range(20):
            for pid in self.pids():
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            if not self.pids():
                return
            time.sleep(0.1)


@contextmanager
def head() -> Iterator[Head]:
    one = Head()
    try:
        one.start()
        yield one
    finally:
        one.kill()
        subprocess.run(["rm", "-rf", str(one.folder)], check=False)


@contextmanager
def serving(home: Path, part: str, kind: str) -> Iterator[subprocess.Popen[bytes]]:
    """Gives a server's process that sends a part of the stream, and says when it has begun and when it is through."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name("ray_server.py")), str(home), part, str(SEED), kind]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"begun\n"
            yield server
        finally:
            server.kill()


@pytest.mark.parametrize("place", ACTORS)
async def test_a_cluster_whose_head_was_killed_goes_on_on_the_next_one(
    place: str, settings: tuple[Path, dict[str, Any]], new_home: NewHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head, every actor and the gateway, at a place of a commit. "torn" is the negative control."""
    # A head asks for a token where one lies about from an earlier Ray, and who joins it shows none unless told to.
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    home, given = settings
    stream, halt = stream_of(NUM_SENT, NUM_USERS, SEED), Halt(home)
    with head() as ray_head:
        given = {**given, "cluster.ray_address": ray_head.address}
        (home / "settings.json").write_text(json.dumps(given))
        with serving(home, "0:200", place) as server:
            await asyncio.sleep(0.5)
            halt.want(ANYBODY)
            await reached(halt, lambda: server.poll() is None)
            ray_head.kill()
        halt.want(NOBODY)
        await asyncio.to_thread(ray_head.start)
        with serving(home, "0:300", place) as server:
            assert server.stdout is not None
            assert await asyncio.to_thread(server.stdout.readline) == b"through\n"
            assert server.wait(120) == 0
    expected = await faultless(new_home(), SETTINGS, stream)
    with place_at(home, "cluster", given) as place_of:
        found = tally(tiny_config(home, given), place_of.store, stream, expected)
    record_figures(f"Ray's head killed and begun anew, {place}", interactions=len(stream), heads=1, **asdict(found))
    if place == "torn":
        assert found.lost > 0
        assert found.differing > 0
    else:
        assert found == Tally(NUM_USERS, 0, 0, 0)
