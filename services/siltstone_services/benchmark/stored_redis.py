"""A Redis store by how many users it holds: opening it, taking over its partitions, committing, bringing users in."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Final

from siltstone.adapters.redis_config import RedisConfig
from siltstone.adapters.redis_snapshots import RedisSnapshotStore
from siltstone.journal.partition import partition_of
from siltstone.values import Commit, Lease, Snapshot, UserKey
from siltstone_services.benchmark.readings import Outcome, Reading, Say, at_most

FLAT: Final = at_most(1.2, "x")
"""How much longer something may take with many users stored than with few."""
_PARTITIONS: Final = 64
_FILL_BATCH: Final = 20_000
_SMALL: Final = bytes(64)
_LARGE: Final = bytes(range(256)) * 2_400
"""A memory of the size that is common to all peers, 614 kB."""
_NUM_ACTIVE: Final = 64


def run_stored_redis(address: str, counts: Sequence[int], rounds: int, say: Say) -> Outcome:
    """Times one store each for so many users, by turns, by the clock: the server is a process of its own.

    Most memories are a few bytes, so that a million fit; those that are timed are of a real size. What is stored stays
    there, under names of its own: it takes a server that holds nothing else.
    """
    case = "stored users, Redis"
    if not address:
        return Outcome(case, absence="no Redis was given")
    towns = {count: _Town(address, count, say) for count in counts}
    try:
        seconds = {(count, what): list[float]() for count in counts for what in _Town.TIMED}
        for number in range(rounds):
            for count in counts if number % 2 else reversed(counts):
                for what, took_s in towns[count].turn().items():
                    seconds[count, what].append(took_s)
    finally:
        for town in towns.values():
            town.close()
    readings = []
    for what in _Town.TIMED:
        first = seconds[counts[0], what]
        for count in counts:
            took_ms = tuple(1e3 * one for one in seconds[count, what])
            readings.append(Reading(f"{case}, {what}, {count:,}", took_ms, "ms"))
        for count in counts[1:]:
            ratios = tuple(many / few for many, few in zip(seconds[count, what], first, strict=True))
            readings.append(Reading(f"{case}, {what}, {count:,} / {counts[0]:,}", ratios, "x", FLAT))
    return Outcome(case, tuple(readings))


class _Town:
    """A store with so many users in it, of whom some are asked for again and again, as Zipf has it."""

    TIMED: Final = ("start", "commit", "swap-in")

    def __init__(self, address: str, num_users: int, say: Say) -> None:
        self._config = RedisConfig(address, namespace=f"b{uuid.uuid4().hex}", num_partitions=_PARTITIONS)
        self._num_users, self._chance, self._sequence = num_users, random.Random(num_users), 1
        self._store = RedisSnapshotStore(self._config)
        self._leases = self._take_over()
        for start in range(0, num_users, _FILL_BATCH):
            say(f"stored users, Redis: {start:,} of {num_users:,}")
            self._commit(range(start, min(num_users, start + _FILL_BATCH)), _SMALL)
        self._active = self._chance.sample(range(num_users), _NUM_ACTIVE)
        self._commit(self._active, _LARGE)

    def turn(self) -> dict[str, float]:
        """Returns the seconds of each thing that is timed, of one user."""
        took = {"start": _timed(self._start)}
        user = self._active[min(int(self._chance.paretovariate(1.0)), _NUM_ACTIVE) - 1]
        took["commit"] = _timed(lambda: self._commit([user], _LARGE))
        took["swap-in"] = _timed(lambda: self._load(user))
        return took

    def close(self) -> None:
        """Closes the connections. What was stored stays."""
        self._store.close()

    def _start(self) -> None:
        self._store.close()
        self._store = RedisSnapshotStore(self._config)
        self._leases = self._take_over()

    def _take_over(self) -> dict[int, Lease]:
        return {partition: self._store.acquire(partition, "bench") for partition in range(_PARTITIONS)}

    def _partition(self, user: int) -> int:
        return partition_of(_key(user), _PARTITIONS)

    def _commit(self, users: Sequence[int] | range, blob: bytes) -> None:
        by_partition: dict[int, list[Snapshot]] = {}
        self._sequence += 1
        for user in users:
            sealed = Snapshot.seal(_key(user), "bench", self._sequence, blob)
            by_partition.setdefault(self._partition(user), []).append(sealed)
        for partition, part in by_partition.items():
            at = self._store.position(partition)
            self._store.commit(Commit(self._leases[partition], at, at, tuple(part)))

    def _load(self, user: int) -> None:
        snapshot = self._store.load(_key(user))
        assert snapshot is not None
        assert snapshot.blob == _LARGE


def _key(user: int) -> UserKey:
    return UserKey("bench", f"user-{user}")


def _timed(work: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    work()
    return time.perf_counter() - start_s
