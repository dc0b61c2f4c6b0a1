"""Shards as processes of their own that can be killed and stopped: `shard_process.py HOME` forks them off.

It reads one order a line and answers with one line of JSON: `fork SHARD` (a `Shard` as JSON) with the process id,
`wait PID` and `poll PID` with the exit status, null while it runs. What a shard does, it tells in its file of effects.

SIGUSR1 lets a shard stop itself just before its next commit, as a process does whose machine stalls there. SIGUSR2
lets it take its partitions over, whoever has them.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import importlib
import json
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tiny_cluster import LookedAtJournal
from tiny_home import tiny_config

from siltstone import faults
from siltstone.adapters.bm25_recall import Bm25Recall
from siltstone.adapters.core_store import CoreStore
from siltstone.adapters.redis_snapshots import RedisSnapshotStore
from siltstone.adapters.sqlite_file import SqliteFile
from siltstone.adapters.sqlite_partitions import read_partition
from siltstone.adapters.sqlite_snapshots import SqliteSnapshotStore
from siltstone.adapters.system_clock import SystemClock
from siltstone.config import SiltstoneConfig
from siltstone.crew import Crew
from siltstone.errors import InvalidInput, PositionConflict, SiltstoneError, StaleLease, Unavailable
from siltstone.journal.admit import decode
from siltstone.ports import Journal, SnapshotStore
from siltstone.values import Commit, Interaction, JournalRecord, Lease, Parked
from siltstone_services.cluster.backends import open_backends
from siltstone_services.lanes import open_lane
from siltstone_services.node import ShardNode

TORN_POINT = "torn.between"
CLUSTER_MODULES = ("aes_gcm_sealer", "kafka_journal", "master_key", "redis_key_vault")
PARENT_DIES = 1
"""What prctl is told so that no shard outlives the process that forked it off."""


@dataclass(frozen=True)
class Shard:
    """What a shard's process is to be. `ends` says where its journal and its store are, see `opened`."""

    home: str
    settings: dict[str, Any]
    ends: str
    partitions: list[int]
    effects: str
    store: str = "whole"
    node: str = "plain"
    fault: str = ""
    takes_at_start: bool = True


@contextmanager
def opened(config: SiltstoneConfig, ends: str) -> Iterator[tuple[Journal, SnapshotStore]]:
    """Gives journal and store: both in the file of the home ("sqlite"), the store in Valkey ("valkey"), or both on
    servers ("cluster")."""
    with ExitStack() as stack:
        if ends == "cluster":
            backends = stack.enter_context(open_backends(config))
            yield backends.journal, backends.store
            return
        file = stack.enter_context(SqliteFile(config.home_path / "siltstone.db", config.store))
        store: SnapshotStore = SqliteSnapshotStore(file)
        if ends == "valkey":
            store = stack.enter_context(RedisSnapshotStore(config.redis))
        yield LookedAtJournal(file), store


class WholeStore:
    """A store as it is, that tells of every commit what became of it."""

    def __init__(self, store: Any, tell: Callable[..., None]) -> None:
        self._store, self._tell = store, tell
        self.stops_before_commit = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def commit(self, commit: Commit) -> None:
        lease = commit.lease
        what = {"partition": lease.partition, "epoch": lease.epoch}
        what |= {"start": commit.expected_position, "end": commit.next_position}
        was_stopped = self.stops_before_commit
        if was_stopped:
            self.stops_before_commit = False
            with self._nobody_writing():
                self._tell("stopped", **what)
                # To this thread: sent to the process, it may be another one that stops first, and this one goes on.
                signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        try:
            self.write(commit)
        except (StaleLease, PositionConflict) as error:
            self._tell("refused", **what, error=type(error).__name__)
            raise
        self._tell("committed", **what)
        if was_stopped:
            self.after_stale_write()

    def _nobody_writing(self) -> AbstractContextManager[Any]:
        """Keeps other threads of this process from holding the file while it is stopped."""
        return self._store._file._write_lock if isinstance(self._store, SqliteSnapshotStore) else nullcontext()

    def write(self, commit: Commit) -> None:
        self._store.commit(commit)

    def after_stale_write(self) -> None:
        pass


class PositionFirst(WholeStore):
    """Without its protection: the position in one transaction, the memories in the next."""

    def write(self, commit: Commit) -> None:
        self._store.commit(replace(commit, snapshots=(), parked=()))
        self.between()
        at = commit.next_position
        self._store.commit(Commit(commit.lease, at, at, commit.snapshots, commit.parked))

    def between(self) -> None:
        faults.fault_point(TORN_POINT)


class Unfenced(WholeStore):
    """Without its protection: writes under whatever epoch and position are the newest, and then its machine dies."""

    def write(self, commit: Commit) -> None:
        partition = commit.lease.partition
        if isinstance(self._store, SqliteSnapshotStore):
            with self._store._file.reading() as connection:
                row = read_partition(connection, partition)
            epoch, at = row.epoch, row.next_position
        else:
            told = self._store._read(partition)
            epoch, at = int(told[0]), int(told[2])
        newest, end = Lease(partition, commit.lease.holder, epoch), max(at, commit.next_position)
        taken_in = tuple(one for one in commit.taken_in if at <= one.position < end)
        self._store.commit(Commit(newest, at, end, commit.snapshots, commit.parked, taken_in))

    def after_stale_write(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Careless(ShardNode):
    """Without its protection: what cannot be read is an error."""

    def _admit(self, record: JournalRecord) -> Interaction | Parked:
        return decode(record.payload)


class Credulous(ShardNode):
    """Without its protection: what can be read is absorbed."""

    def _admit(self, record: JournalRecord) -> Interaction | Parked:
        try:
            return decode(record.payload)
        except InvalidInput:
            return super()._admit(record)


STORES: dict[str, type[WholeStore]] = {
    "whole": WholeStore,
    "position-first": PositionFirst,
    "unfenced": Unfenced,
}
NODES: dict[str, type[ShardNode]] = {"plain": ShardNode, "careless": Careless, "credulous": Credulous}


@dataclass
class _Effects:
    """The file of effects of one process: a line is there whole or not at all."""

    path: Path
    _file: int = field(init=False)

    def __post_init__(self) -> None:
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def tell(self, what: str, **fields: Any) -> None:
        os.write(self._file, json.dumps({"what": what, **fields}).encode() + b"\n")


async def _take(node: ShardNode, partitions: list[int], tell: Callable[..., None]) -> None:
    while True:
        try:
            claim = await node.assign(partitions)
            tell("owner", epochs={str(partition): epoch for partition, epoch in claim.epochs.items()})
            return
        except Unavailable as error:
            tell("waits", error=str(error))
            await asyncio.sleep(0.05)


async def live(shard: Shard) -> None:
    """Is a shard until it is killed, or its worker has ended."""
    effects = _Effects(Path(shard.effects))
    config = tiny_config(Path(shard.home), shard.settings)
    loop = asyncio.get_running_loop()
    core = CoreStore(Path(shard.home)).load(config.core)
    with ExitStack() as stack:
        while True:
            try:
                journal, real_store = stack.enter_context(opened(config, shard.ends))
                break
            except Unavailable:
                await asyncio.sleep(0.05)
        store: Any = STORES[shard.store](real_store, effects.tell)
        node = NODES[shard.node](core, journal, store, Bm25Recall(), SystemClock(), config)
        async with node:
            takes: set[asyncio.Task[None]] = set()

            def take() -> None:
                takes.add(asyncio.ensure_future(_take(node, shard.partitions, effects.tell)))

            def stop_soon() -> None:
                store.stops_before_commit = True
                effects.tell("armed")

            loop.add_signal_handler(signal.SIGUSR1, stop_soon)
            loop.add_signal_handler(signal.SIGUSR2, take)
            effects.tell("ready")
            if shard.takes_at_start:
                take()
            while not node.has_ended:
                await asyncio.sleep(0.02)
            effects.tell("ended")
            # Nothing is put in order: whoever looks at what is left sees what a crash leaves.
            os._exit(3)


def _fork(shard: Shard) -> int:
    child = os.fork()
    if child:
        return child
    ctypes.CDLL(None).prctl(PARENT_DIES, signal.SIGKILL)
    os.dup2(os.open(f"{shard.effects}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 2)
    os.dup2(2, 1)
    if shard.fault:
        os.environ[faults.FAULT_VARIABLE] = shard.fault
        # The point was imported by name already; it looks its arming up in the module, which is filled anew.
        importlib.reload(faults)
    try:
        asyncio.run(live(shard))
    except SiltstoneError:
        traceback.print_exc()
    finally:
        os._exit(4)


def _status_of(pid: int, options: int) -> int | None:
    found, status = os.waitpid(pid, options)
    return os.waitstatus_to_exitcode(status) if found else None


def main(home: Path) -> None:
    logging.basicConfig(level=logging.WARNING)
    # What all of them need is imported and made once: by making one core ready.
    torch.set_num_threads(1)
    for name in CLUSTER_MODULES:
        importlib.import_module(f"siltstone.adapters.{name}")
    config = tiny_config(home)
    open_lane(CoreStore(home).load(config.core), config, Crew(1))
    gc.collect()
    gc.freeze()
    # A fork would not have a thread that was started here, but the locks it holds.
    assert len(os.listdir("/proc/self/task")) == 1
    for line in sys.stdin:
        order, _, what = line.strip().partition(" ")
        if order == "fork":
            answer: int | None = _fork(Shard(**json.loads(what)))
        else:
            answer = _status_of(int(what), os.WNOHANG if order == "poll" else 0)
        print(json.dumps(answer), flush=True)


def as_order(shard: Shard) -> str:
    return json.dumps(asdict(shard))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
