"""A Redis store by how many users it holds: opening it, taking over its partitions, committing, bringing users in."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Final

from siltstone.adapters.redis_config import RedisConfig
from siltstone.adapters.redis_server import RedisServer
from siltstone.adapters.redis_snapshots import RedisSnapshotStore
from siltstone.errors import Corrupt
from siltstone.journal.partition import partition_of
from siltstone.values import Commit, Lease, Snapshot, UserKey
from siltstone_services.benchmark.readings import Outcome, Reading, Say, at_most, ratio_readings

FLAT: Final = at_most(1.2, "x")
"""How much longer something may take with many users stored than with few."""
_PARTITIONS: Final = 64
_FILL_BATCH: Final = 10_000
"""Users of a partition stored in one commit: a commit costs a flush of the server's disk, however much is in it."""
_SMALL: Final = bytes(64)
_LARGE: Final = bytes(range(256)) * 2_400
"""A memory of the size that is common to all peers, 614 kB."""
_NUM_ACTIVE: Final = 64
_QUIET_S: Final = 0.2


def run_stored_redis(address: str, counts: Sequence[int], rounds: int, say: Say) -> Outcome:
    """Times one store each for so many users, by turns, by the clock: the server is a process of its own.

    Most memories are a few bytes, so that a million fit; those that are timed are of a real size. What is stored stays
    there, under names of its own: it takes a server that holds nothing else.
    """
    case = "stored users, Redis"
    if not address:
        return Outcome(case, absence="no Redis was given")
    server = RedisServer(RedisConfig(address))
    towns, bytes_a_user = dict[int, _Town](), 0.0
    try:
        for count in counts:
            before = _used_bytes(server)
            towns[count] = _Town(address, count, say)
            bytes_a_user = (_used_bytes(server) - before) / count
            towns[count].settle_active()
        seconds = {(count, what): list[float]() for count in counts for what in _Town.TIMED}
        for number in range(rounds):
            say(f"{case}: round {number + 1} of {rounds}")
            for count in counts if number % 2 else reversed(counts):
                _wait_until_quiet(server)
                for what, took_s in towns[count].turn().items():
                    seconds[count, what].append(took_s)
        used_bytes = _used_bytes(server)
    finally:
        server.close()
        for town in towns.values():
            town.close()
    readings = []
    for what in _Town.TIMED:
        for count in counts:
            took_ms = tuple(1e3 * one for one in seconds[count, what])
            readings.append(Reading(f"{case}, {what}, {count:,}", took_ms, "ms"))
        for count in counts[1:]:
            name = f"{case}, {what}, {count:,} / {counts[0]:,}"
            readings += ratio_readings(name, seconds[count, what], seconds[counts[0], what], FLAT)
    readings += [
        Reading(f"{case}, the server's memory for a small one, of {counts[-1]:,}", (bytes_a_user,), "bytes"),
        Reading(f"{case}, the server's memory, all of them", (used_bytes / 1e6,), "MB"),
    ]
    return Outcome(case, tuple(readings))


def _used_bytes(server: RedisServer) -> int:
    # What is stored, without the buffers of connections, which come and go.
    used: int = server.call(lambda client: client.info("memory")["used_memory_dataset"])
    return used


def _wait_until_quiet(server: RedisServer) -> None:
    """Waits while the server rewrites its append-only file: that takes a processor, whoever has filled the file."""
    while True:
        told = server.call(lambda client: client.info("persistence"))
        if not (told.get("aof_rewrite_in_progress") or told.get("aof_rewrite_scheduled")):
            return
        time.sleep(_QUIET_S)


class _Town:
    """A store with so many users in it, of whom some are asked for again and again, as Zipf has it."""

    TIMED: Final = ("start", "commit", "swap-in")

    def __init__(self, address: str, num_users: int, say: Say) -> None:
        self._config = RedisConfig(address, namespace=f"b{uuid.uuid4().hex}", num_partitions=_PARTITIONS)
        self._num_users, self._chance, self._sequence = num_users, random.Random(num_users), 1
        self._store = RedisSnapshotStore(self._config)
        self._leases = self._take_over()
        self._active = self._chance.sample(range(num_users), _NUM_ACTIVE)
        num_stored, by_partition = 0, dict[int, list[int]]()
        for user in range(num_users):
            by_partition.setdefault(self._partition(user), []).append(user)
        for users in by_partition.values():
            for start in range(0, len(users), _FILL_BATCH):
                say(f"stored users, Redis: {num_stored:,} of {num_users:,}")
                num_stored += len(part := users[start : start + _FILL_BATCH])
                self._commit(part, _SMALL)

    def settle_active(self) -> None:
        """Gives those who are asked for memories of a real size, and checks that all are there.

        Raises: Corrupt when the store does not hold as many users as were stored.
        """
        self._commit(self._active, _LARGE)
        if (found := self._store.count_users()) != self._num_users:
            raise Corrupt("the benchmark's store", f"{self._num_users} users", str(found))

    def turn(self) -> dict[str, float]:
        """Returns the seconds of each thing that is timed: of one user, and of a start, all that shards ask then."""
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
        self._store.users_by_core()
        for partition in self._leases:
            self._store.position(partition)

    def _take_over(self) -> dict[int, Lease]:
        return {partition: self._store.acquire(partition, "bench") for partition in range(_PARTITIONS)}

    def _partition(self, user: int) -> int:
        return partition_of(_key(user), _PARTITIONS)

    def _commit(self, users: Sequence[int], blob: bytes) -> None:
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
