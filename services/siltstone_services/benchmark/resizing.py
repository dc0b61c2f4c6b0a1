"""What users notice of shards that join and leave: how long their calls take before, and while it happens."""

from __future__ import annotations

import asyncio
import base64
import math
import os
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from siltstone.config import SiltstoneConfig
from siltstone.errors import SiltstoneError
from siltstone.ports import ShardHost
from siltstone.values import (
    AnswerEnd,
    Consent,
    GenerateRequest,
    Interaction,
    InteractionKind,
    Message,
    Role,
    Sampling,
    UserKey,
)
from siltstone_services.benchmark.planted_core import add_core, planted_config, train
from siltstone_services.benchmark.readings import Outcome, Reading, Say, at_most
from siltstone_services.wiring import cluster_host

T = TypeVar("T")

ANSWERED: Final = ("record", "generate", "score")
"""Calls that are answered at once, the first when what was said is durable."""
LEARNED: Final = "learn"
"""The wait until what was said is learned: as long as what was said before it takes, whether shards move or not."""
PAUSE: Final = at_most(1_000.0, "ms")
NONE: Final = at_most(0.0, "calls")
_NUM_USERS: Final = 8
_NUM_PARTITIONS: Final = 64
_MAX_TOKENS: Final = 6
_REST_S: Final = 0.1
"""Between two calls of a user: what is looked for is a pause, and not how much the machine can do."""
_QUESTION: Final = (Message(Role.USER, "Where was I on Thursday?"),)


@dataclass(frozen=True, slots=True)
class Call:
    """One call: what was asked for, when it was, and how long it took, seconds."""

    kind: str
    began_at_s: float
    took_s: float
    error: SiltstoneError | None = None


class Traffic:
    """Users who speak, ask and are scored all the time, each one call after the other; keeps how every call went."""

    def __init__(self, host: ShardHost, users: Sequence[UserKey], rest_s: float = _REST_S) -> None:
        self._host, self._users, self._rest_s = host, tuple(users), rest_s
        self.said: dict[UserKey, list[Interaction]] = {owner: [] for owner in users}
        self.calls: list[Call] = []
        self._is_over = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Traffic:
        for owner in self._users:
            self._tasks += [asyncio.create_task(self._speak(owner)), asyncio.create_task(self._ask(owner))]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Lets every call that runs end."""
        self._is_over.set()
        await asyncio.gather(*self._tasks)

    @property
    def failures(self) -> list[SiltstoneError]:
        """What calls failed with."""
        return [call.error for call in self.calls if call.error is not None]

    def took_s(self, kind: str, from_s: float, to_s: float) -> list[float]:
        """Returns how long those calls took that ran at any moment between two instants, shortest first."""
        during = [one for one in self.calls if one.kind == kind and one.began_at_s < to_s]
        return sorted(one.took_s for one in during if one.began_at_s + one.took_s > from_s)

    async def goes_on(self, num_calls: int) -> None:
        """Returns once so many more calls of every kind have ended."""
        before = len(self.calls)
        kinds: list[str] = []
        while not all(kinds.count(kind) >= num_calls for kind in (*ANSWERED, LEARNED)):
            await asyncio.sleep(0.01)
            kinds = [call.kind for call in self.calls[before:]]

    async def _timed(self, kind: str, call: Callable[[], Awaitable[T]]) -> T | None:
        began_at_s, answer, error = time.monotonic(), None, None
        try:
            answer = await call()
        except SiltstoneError as failure:
            error = failure
        self.calls.append(Call(kind, began_at_s, time.monotonic() - began_at_s, error))
        return answer

    async def _speak(self, owner: UserKey) -> None:
        while not self._is_over.is_set():
            number = len(self.said[owner])
            messages = (Message(Role.USER, f"I was in Oslo on day {number}."),)
            consent, kind = Consent(learn=True), InteractionKind.CONVERSATION
            one = Interaction(f"i{number}", owner, kind, 1, messages, consent=consent)
            self.said[owner].append(one)

            receipts = await self._timed("record", partial(self._host.record, [one]))
            if receipts is not None:
                await self._timed(LEARNED, partial(self._host.wait_absorbed, receipts))
            await asyncio.sleep(self._rest_s)

    async def _ask(self, owner: UserKey) -> None:
        request = GenerateRequest(owner, _QUESTION, Sampling(max_tokens=_MAX_TOKENS))

        async def answer() -> None:
            items = [item async for item in self._host.generate(request)]
            assert isinstance(items[-1], AnswerEnd)

        while not self._is_over.is_set():
            await self._timed("generate", answer)
            await asyncio.sleep(self._rest_s)
            await self._timed("score", lambda: self._host.score(owner, _QUESTION, ["In Oslo.", "In Lisbon."]))
            await asyncio.sleep(self._rest_s)


def run_resize(brokers: str, redis: str, seconds: float, num_times: int, folder: Path, say: Say) -> Outcome:
    """Times calls while nothing changes for so many seconds, and while a shard joins and leaves, so many times.

    Two shards on a Ray of this machine, a small core. By the clock, everything on the same machine.
    """
    case = "resize under load"
    if not brokers or not redis:
        return Outcome(case, absence="no brokers, or no Redis, were given")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="bench-") as name:
        return asyncio.run(_run(case, Path(name).absolute(), brokers, redis, seconds, num_times, say))


def _config(home: Path, brokers: str, redis: str) -> SiltstoneConfig:
    key = home / "master.key"
    key.write_text(base64.b64encode(os.urandom(32)).decode(), encoding="ascii")
    name = f"bench-{uuid.uuid4().hex}"
    settings: dict[str, Any] = {
        **{f"{part}.num_partitions": _NUM_PARTITIONS for part in ("kafka", "redis", "key_store")},
        "cluster.is_on": True,
        "cluster.num_shards": 2,
        # Three shards are to find room on a small machine.
        "cluster.cpus_per_shard": 0.25,
        "kafka.brokers": brokers,
        "kafka.topic": name,
        "kafka.parked_topic": f"{name}.parked",
        "kafka.replication_factor": 1,
        "kafka.min_insync_replicas": 1,
        "redis.address": redis,
        "redis.namespace": name,
        "key_store.address": redis,
        "key_store.namespace": f"{name}-keys",
        "sealing.master_key_file": str(key),
    }
    return planted_config(home, settings)


@asynccontextmanager
async def _traffic(config: SiltstoneConfig) -> AsyncIterator[tuple[ShardHost, Traffic]]:
    users = [UserKey("bench", f"user-{number}") for number in range(_NUM_USERS)]
    async with cluster_host(config) as host:
        traffic = Traffic(host, users)
        async with traffic:
            await traffic.goes_on(_NUM_USERS)
            yield host, traffic
        # Its calls have ended, and the shards are still there to be asked.
        for owner, said in traffic.said.items():
            if (found := (await host.memory(owner)).num_interactions) != len(said):
                raise _NotLearnedError(f"{owner} said {len(said)} things and has learned {found}")


class _NotLearnedError(Exception):
    pass


async def _run(case: str, home: Path, brokers: str, redis: str, seconds: float, num_times: int, say: Say) -> Outcome:
    add_core(home, train(0, seed=1))
    say(f"{case}: starting")
    changes: list[tuple[float, float]] = []
    try:
        async with _traffic(_config(home, brokers, redis)) as (host, traffic):
            say(f"{case}: nothing changes")
            start_s = time.monotonic()
            await asyncio.sleep(seconds)
            quiet = (start_s, time.monotonic())
            for number in range(num_times):
                say(f"{case}: {number + 1} of {num_times}")
                for num_shards in (3, 2):
                    start_s = time.monotonic()
                    await host.resize(num_shards)
                    changes.append((start_s, time.monotonic()))
    except _NotLearnedError as error:
        return Outcome(case, refusal=str(error))
    readings = [Reading("resize, calls that failed", (float(len(traffic.failures)),), "calls", NONE)]
    for kind in (*ANSWERED, LEARNED):
        before = traffic.took_s(kind, *quiet)
        during = sorted(one for change in changes for one in traffic.took_s(kind, *change))
        of = f"{len(during)} calls"
        for share, what in ((0.5, "p50"), (0.99, "p99"), (1.0, "longest")):
            old_ms, new_ms = 1e3 * _quantile(before, share), 1e3 * _quantile(during, share)
            readings.append(Reading(f"resize, {kind}, {what} before", (old_ms,), "ms", note=f"{len(before)} calls"))
            target = PAUSE if what == "p99" and kind in ANSWERED else None
            readings.append(Reading(f"resize, {kind}, {what} during", (new_ms,), "ms", target, note=of))
            if what == "p99":
                readings.append(Reading(f"resize, {kind}, p99, during / before", (new_ms / old_ms,), "x", note=of))
                if kind == LEARNED:
                    readings.append(
                        Reading(f"resize, {kind}, p99, longer by", (new_ms - old_ms,), "ms", PAUSE, note=of)
                    )
    took_s = tuple(end_s - start_s for start_s, end_s in changes)
    readings.append(Reading("resize, one shard more or less", took_s, "s"))
    return Outcome(case, tuple(readings))


def _quantile(ranked: Sequence[float], share: float) -> float:
    return ranked[min(len(ranked) - 1, math.ceil(share * len(ranked)) - 1)]
