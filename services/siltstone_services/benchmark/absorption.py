"""What absorbing costs beside the engine's own work, and that too much of it is refused rather than piled up."""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from google.rpc import error_details_pb2

from siltstone.adapters.bm25_recall import Bm25Recall
from siltstone.adapters.core_store import CoreStore
from siltstone.adapters.system_clock import SystemClock
from siltstone.config import SiltstoneConfig
from siltstone.errors import Corrupt, Overloaded
from siltstone.journal.admit import AdmissionLimits, Refusal, admit
from siltstone.journal.partition import partition_of
from siltstone.memory.absorber import Absorber, Absorbers
from siltstone.memory.committing import Committer
from siltstone.memory.shard import Shard, ShardConfig
from siltstone.memory.user_memory import UserMemory
from siltstone.ports import Journal, SnapshotStore
from siltstone.values import (
    Consent,
    Interaction,
    InteractionKind,
    JournalRecord,
    Message,
    Parked,
    Receipt,
    Role,
    UserKey,
)
from siltstone_services.benchmark.planted_core import add_core, planted_config, train
from siltstone_services.benchmark.readings import Outcome, Reading, Say, at_least, at_most, ratio_readings
from siltstone_services.benchmark.timing import Turn, take_turns
from siltstone_services.benchmark.update import LEARNED_TOKENS, absorb, check_update
from siltstone_services.benchmark.world import CORE_NAME, World
from siltstone_services.journal_and_store import open_journal_and_store
from siltstone_services.shard import EmbeddedHost
from siltstone_services.status import to_status

OF_ENGINE: Final = at_least(0.8, "x")
WITHIN: Final = at_most(1.0, "x")
OVERLOAD: Final = 10
_PARTITIONS: Final = 16
_LOOK_S: Final = 0.002
_TICK_S: Final = 0.02
_WATCH_S: Final = 0.1
_CALL: Final = 16
"""Interactions of one call of a producer."""
_MAX_LAG: Final = 256
_USERS: Final = 64
_ROUNDS_A_TURN: Final = 4
"""Rounds of everybody in one turn of a measurement: the first has nothing before it, the last nothing beside it."""


def _settings_of(brokers: str, redis: str, folder: Path) -> dict[str, Any]:
    """Returns the settings of a sealed journal and store: the servers' where both are given, else those of a file."""
    key, name = folder / "master.key", uuid.uuid4().hex
    key.write_text(base64.b64encode(os.urandom(32)).decode(), encoding="ascii")
    settings: dict[str, Any] = {
        "sealing.master_key_file": str(key),
        "sealing.cached_for_s": 3600.0,
        "store.num_partitions": _PARTITIONS,
        "memory.rank": 8,
        "shard.max_lag_interactions": _MAX_LAG,
    }
    if brokers and redis:
        settings |= {"cluster.is_on": True, "kafka.brokers": brokers, "kafka.topic": f"bench-{name}"}
        settings |= {"kafka.replication_factor": 1, "kafka.min_insync_replicas": 1}
        settings |= {f"{part}.num_partitions": _PARTITIONS for part in ("kafka", "redis", "key_store")}
        settings |= {"redis.address": redis, "redis.namespace": f"b{name}"}
        settings |= {"key_store.address": redis, "key_store.namespace": f"k{name}"}
    return settings


@contextmanager
def _place(brokers: str, redis: str, folder: Path) -> Iterator[SiltstoneConfig]:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="bench-") as name:
        yield planted_config(Path(name), _settings_of(brokers, redis, Path(name)))


def _name_of(brokers: str, redis: str) -> str:
    """Returns what is measured, in words."""
    return "Kafka and Redis" if brokers and redis else "the embedded file"


# The engine by itself, and the same through journal and store.


@dataclass(slots=True)
class _BareRoom:
    """The same users, who say as much, with nothing but the engine: what they become is held and nothing else."""

    world: World
    absorber: Absorber
    memories: list[UserMemory]
    said: list[list[Interaction]] = field(default_factory=list)

    def hear(self, num_times: int = 1) -> None:
        """Has all that is said at hand."""
        for number in range(num_times):
            name = f"said-{self.memories[0].num_interactions + number + 1}"
            self.said.append([self.world.said(one.owner, name, LEARNED_TOKENS) for one in self.memories])

    def absorb(self) -> None:
        """Absorbs it."""
        for said in self.said:
            work = [(memory, [one]) for memory, one in zip(self.memories, said, strict=True)]
            self.memories = absorb(self.absorber, work)
        self.said.clear()


@dataclass(slots=True)
class _Room:
    """Users of a shard who all say something each time."""

    world: World
    journal: Journal
    shard: Shard
    owners: Sequence[UserKey]
    committer: Committer
    num_said: int = 0

    def hear(self, num_times: int = 1) -> None:
        """Has all that is said durable, and at hand."""
        for _ in range(num_times):
            self.num_said += 1
            name = f"said-{self.num_said}"
            self.journal.append([self.world.said(one, name, LEARNED_TOKENS) for one in self.owners])
        while sum(self.journal.ready(self.shard.positions).values()) < num_times * len(self.owners):
            time.sleep(_LOOK_S)

    def absorb(self) -> None:
        """Takes it in, absorbs it and commits, as a worker does: one round is absorbed while another is on its way."""
        wanted = self.num_said * len(self.owners)
        while self.shard.num_absorbed < wanted:
            if (taken := self.shard.gather()) is None:
                self._end_commit()
                continue
            for _ in self.shard.absorb(taken):
                pass
            self.shard.end_commit()
            self.shard.begin_commit(taken, self.committer)
        if self.shard.num_absorbed > wanted or self.shard.num_parked:
            raise Corrupt("the shard's rounds", f"{wanted} absorbed", f"{self.shard.num_absorbed}")

    def _end_commit(self) -> None:
        if self.shard.is_committing:
            self.shard.end_commit()
        else:
            time.sleep(_LOOK_S)


def _admit(record: JournalRecord) -> Interaction | Parked:
    decided = admit(record.payload, AdmissionLimits())
    if isinstance(decided, Refusal):
        raise Corrupt("a benchmark's interaction", "one that is admitted", decided.detail)
    return decided


def _room(world: World, journal: Journal, store: SnapshotStore, num_users: int, committer: Committer) -> _Room:
    shard = Shard(
        journal,
        store,
        _admit,
        Absorbers({CORE_NAME: world.absorber()}),
        CORE_NAME,
        world.deltas,
        partial(partition_of, num_partitions=_PARTITIONS),
        ShardConfig(max_round_interactions=num_users),
    )
    shard.take([store.acquire(partition, "bench") for partition in range(_PARTITIONS)])
    return _Room(world, journal, shard, _neighbours(num_users), committer)


def _neighbours(num_users: int) -> list[UserKey]:
    """Returns users each of whom has a partition of their own: a round is one thing said by each, a commit of each."""
    found: dict[int, UserKey] = {}
    for number in itertools.count():
        owner = UserKey("bench", f"user-{number}")
        found.setdefault(partition_of(owner, _PARTITIONS), owner)
        if len(found) == num_users:
            break
    return list(found.values())


def run_absorb_share(
    world: World, num_users: int, rounds: int, brokers: str, redis: str, folder: Path, say: Say
) -> Outcome:
    """Times rounds of users who each say something, by turns: the bare engine, and all that makes it durable.

    The latter reads and opens the records, admits them, absorbs, seals the memories and commits them, by the clock;
    what was said in a turn is durable in its end. Everybody has a partition, and so a commit, to themselves.
    """
    case = f"absorb through {_name_of(brokers, redis)}, {world.name}, {num_users} users x {LEARNED_TOKENS} tokens"
    if complaint := check_update(world):
        return Outcome(case, refusal=complaint)
    say(case)
    with (
        _place(brokers, redis, folder) as config,
        open_journal_and_store(config) as (journal, store),
        ThreadPoolExecutor(1) as committer,
    ):
        users = _room(world, journal, store, num_users, committer)
        nothing = [UserMemory.empty(owner, CORE_NAME, world.deltas) for owner in users.owners]
        bare_users = _BareRoom(world, world.absorber(), nothing)
        turns = {
            "bare": Turn(bare_users.absorb, partial(bare_users.hear, _ROUNDS_A_TURN), warm=False),
            "through": Turn(users.absorb, partial(users.hear, _ROUNDS_A_TURN), warm=False),
        }
        for room in (bare_users, users):
            room.hear()
            room.absorb()
        seconds = take_turns(turns, rounds, waits=True)
    bare, through, num_updates = seconds["bare"], seconds["through"], _ROUNDS_A_TURN * num_users
    return Outcome(
        case,
        (
            *ratio_readings(f"{case}, of the bare engine's", bare, through, OF_ENGINE),
            Reading(case, tuple(num_updates / one for one in through), "updates/s"),
            Reading(f"{case}, bare engine", tuple(num_updates / one for one in bare), "updates/s"),
        ),
    )


# Ten times as much as can be absorbed.


@dataclass(slots=True)
class _Flood:
    """What producers have seen who do not wait."""

    host: EmbeddedHost
    receipts: list[Receipt] = field(default_factory=list)
    num_offered: int = 0
    num_refused: int = 0
    complaint: str = ""

    def said(self, num: int) -> list[Interaction]:
        """Returns interactions of users in turn, each a new one."""
        start, self.num_offered = self.num_offered, self.num_offered + num
        text, consent = Message(Role.USER, "I have moved my desk to the third floor."), Consent(learn=True)
        return [
            Interaction(
                f"said-{at}", UserKey("bench", f"user-{at % _USERS}"), InteractionKind.DOCUMENT, 1, (text,), "", consent
            )
            for at in range(start, start + num)
        ]

    async def call(self, said: Sequence[Interaction]) -> None:
        """Records, and takes a refusal for what it is."""
        try:
            self.receipts += await self.host.record(said)
        except Overloaded as error:
            self.num_refused += len(said)
            details = to_status(error).details
            if not any(one.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for one in details):
                self.complaint = "a refusal does not say when to try again"

    async def pour(self, per_s: float, for_s: float) -> None:
        """Offers so many a second, whatever becomes of them: for so long, and until it is more than may wait."""
        calls, start_s, poured = set[asyncio.Task[None]](), time.perf_counter(), 0
        while (passed_s := time.perf_counter() - start_s) < for_s or poured < 3 * _MAX_LAG:
            while poured + _CALL <= per_s * passed_s:
                poured += _CALL
                calls.add(task := asyncio.create_task(self.call(self.said(_CALL))))
                task.add_done_callback(calls.discard)
            await asyncio.sleep(_TICK_S)
        await asyncio.gather(*calls)


async def _watch(host: EmbeddedHost, lags: list[int]) -> None:
    while True:
        lags.append((await host.status()).lag_interactions)
        await asyncio.sleep(_WATCH_S)


async def _flood(host: EmbeddedHost, for_s: float) -> tuple[_Flood, dict[str, float]]:
    flood = _Flood(host)
    # As much as may wait, several times: first so that keys, connections and memories are there.
    for _ in range(3):
        start_s = time.perf_counter()
        told = await host.record(flood.said(_MAX_LAG // 2))
        flood.receipts += told
        await host.wait_absorbed(told)
    usual = _MAX_LAG // 2 / (time.perf_counter() - start_s)
    lags, before, offered = list[int](), (await host.status()).num_absorbed, flood.num_offered
    watching, start_s = asyncio.create_task(_watch(host, lags)), time.perf_counter()
    await flood.pour(OVERLOAD * 1.1 * usual, for_s)
    passed_s = time.perf_counter() - start_s
    absorbed = (await host.status()).num_absorbed - before
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching
    offered = flood.num_offered - offered
    end_s = time.perf_counter()
    parked = await host.wait_absorbed(flood.receipts)
    found = (await host.status()).num_absorbed
    if parked or found != len(flood.receipts):
        flood.complaint = f"{len(flood.receipts)} were taken in and {found} absorbed"
    elif not flood.num_refused:
        flood.complaint = "nothing was refused: there was no overload"
    return flood, {
        "usual": usual,
        "absorbed": absorbed / passed_s,
        "offered": offered / passed_s,
        "refused": flood.num_refused / offered,
        "lag": max(lags),
        "worked off": time.perf_counter() - end_s,
    }


def run_overload(for_s: float, brokers: str, redis: str, folder: Path, say: Say) -> Outcome:
    """Offers a shard ten times what it absorbs, from producers who do not wait, and watches what waits.

    A small core, so that much is said; producers and shard share one process, so that less is absorbed meanwhile
    than a shard by itself absorbs. What was taken in must be absorbed, once, and what was refused must say when to come
    again.
    """
    case = f"overload, {_name_of(brokers, redis)}"
    say(case)

    async def run(config: SiltstoneConfig, journal: Journal, store: SnapshotStore) -> tuple[_Flood, dict[str, float]]:
        core = CoreStore(config.home_path).load(config.core)
        async with EmbeddedHost(core, journal, store, Bm25Recall(), SystemClock(), config) as host:
            return await _flood(host, for_s)

    with _place(brokers, redis, folder) as config:
        add_core(config.home_path, train(0, 1))
        with open_journal_and_store(config) as (journal, store):
            flood, found = asyncio.run(run(config, journal, store))
    if flood.complaint:
        return Outcome(case, refusal=flood.complaint)
    return Outcome(
        case,
        (
            Reading(f"{case}, largest lag / its limit", (found["lag"] / _MAX_LAG,), "x", WITHIN),
            Reading(f"{case}, offered / absorbed", (found["offered"] / found["absorbed"],), "x", at_least(10, "x")),
            Reading(f"{case}, offered", (found["offered"],), "/s"),
            Reading(f"{case}, absorbed meanwhile", (found["absorbed"],), "/s"),
            Reading(f"{case}, absorbed before", (found["usual"],), "/s"),
            Reading(f"{case}, refused", (100 * found["refused"],), "%"),
            Reading(f"{case}, until all is absorbed", (found["worked off"],), "s"),
        ),
    )
