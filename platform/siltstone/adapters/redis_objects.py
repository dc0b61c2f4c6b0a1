"""Large memories outside Redis: their objects are put before the commit that points to them, and go after it.

An object's name says what it is and whose:

    NAMESPACE-STORE/PARTITION/OWNER/EPOCH-SEQUENCE-PUT-SHA256

STORE is drawn when a store first gets objects and is kept in Redis: two stores never meet in one bucket. OWNER is a
digest, EPOCH the lease's under which it was put. PUT is drawn for every commit that is tried, so that a name is one
writer's alone: who is refused may remove what it has put, whatever anybody else has committed.

What is in Redis is the truth. An object that no record points to is waste; after a crash or a lost answer it stays
until a sweep.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from siltstone.adapters.fingerprint import fingerprint
from siltstone.adapters.object_store import ObjectStore
from siltstone.adapters.redis_config import RedisConfig
from siltstone.adapters.redis_records import Pointer, seal_snapshot
from siltstone.adapters.redis_server import RedisServer
from siltstone.errors import ConfigInvalid, Corrupt, SiltstoneError, Unavailable
from siltstone.faults import fault_point
from siltstone.ports import Sealer
from siltstone.values import Commit, Lease, Snapshot, UserKey

_LOG: Final = logging.getLogger(__name__)
_MARK: Final = "store"
_DROPPED_AT_ONCE: Final = 256
_MORE: Final = 0.05
"""How much longer than a right lasts is waited for its end, for clocks that do not go alike."""


@dataclass(slots=True)
class Put:
    """What was put for one commit, and the right to commit it, which ends by itself."""

    commit: str
    drawn: str
    right: str
    """The key in Redis without which the commit is refused."""
    ends_at_s: float
    pointers: dict[UserKey, Pointer] = field(default_factory=dict)
    num_sent: int = 0
    """How often the commit was sent: after the first time, no answer is about all of them."""

    @property
    def may_last(self) -> bool:
        """Whether the right may still be there; Redis knows."""
        return time.monotonic() < self.ends_at_s


@dataclass(frozen=True, slots=True)
class _Waste:
    due_at_s: float
    partition: int
    owner: UserKey
    name: str


@dataclass(slots=True)
class _Partition:
    lock: threading.Lock = field(default_factory=threading.Lock)
    put: Put | None = None
    """What a commit has put of which nobody knows yet whether it was done."""


class RedisObjects:
    """The objects of one store. Safe for the threads of a process."""

    def __init__(self, config: RedisConfig, server: RedisServer, objects: ObjectStore) -> None:
        """Finds the store's own folder, or makes it.

        Raises: ConfigInvalid when it is not where the configuration says; Unavailable.
        """
        self._config, self._server, self._objects = config, server, objects
        self._home = f"{config.namespace}-{self._find_store()}"
        self._partitions: dict[int, _Partition] = {}
        self._lock = threading.Lock()
        self._waste: list[_Waste] = []
        self._is_dropping = False

    def is_large(self, snapshot: Snapshot) -> bool:
        """Says whether a snapshot is kept as an object."""
        return len(snapshot.blob) >= self._objects.config.min_bytes

    @property
    def settled_after_s(self) -> float:
        """Seconds after which it is known of everything that is put now whether a record will point to it."""
        return (1 + _MORE) * max(self._objects.config.put_within_s, self._objects.config.keep_replaced_s)

    @property
    def num_waiting(self) -> int:
        """Objects that are removed when their time has come."""
        with self._lock:
            return len(self._waste)

    def get(self, name: str) -> bytes | None:
        """Returns an object; None when it is not there.

        Raises: Unavailable, also when none of the store's objects is there.
        """
        content = self._objects.get(name)
        if content is None:
            self._check_mark()
        return content

    @contextmanager
    def one_at_a_time(self, partition: int) -> Iterator[None]:
        """Lets one thread alone commit to a partition or erase in it: neither may remove what the other is putting."""
        with self._of(partition).lock:
            yield

    def put(self, commit: Commit, name: str, sealer: Sealer) -> Put:
        """Writes the large snapshots of a commit, or finds what an earlier try of the same commit has put.

        1. Take the right to commit what will be put: it ends after a while, so that a sweep knows what to wait for.
        2. Put every object, some at a time.
        Raises: Unavailable when Redis or the object store is away: nothing of the commit is done.
        """
        known = self._of(commit.lease.partition)
        if known.put is None or known.put.commit != name or not known.put.may_last:
            self._give_up(commit.lease.partition)
            # 1.
            known.put = self._begin(commit, name)
            fault_point("commit.entitled")
        put = known.put
        # 2.
        large = [one for one in commit.snapshots if self.is_large(one) and one.owner not in put.pointers]
        sealer.prepare([snapshot.owner for snapshot in large])
        sealed = ((snapshot, seal_snapshot(snapshot, sealer)) for snapshot in large)
        self._objects.each(lambda one: self._put_one(commit.lease, put, *one), sealed)
        fault_point("commit.put")
        return put

    def _begin(self, commit: Commit, name: str) -> Put:
        drawn, lasts_s = secrets.token_hex(8), self._objects.config.put_within_s
        right = self._key(commit.lease.partition, f"put:{drawn}")
        self._server.call(lambda client: client.set(right, "", px=int(lasts_s * 1000)))
        # Counted from the answer, and a little more, for clocks that do not go alike: by then it has ended.
        return Put(name, drawn, right, time.monotonic() + (1 + _MORE) * lasts_s)

    def _put_one(self, lease: Lease, put: Put, snapshot: Snapshot, body: bytes) -> None:
        sha256 = hashlib.sha256(body).hexdigest()
        folder = self.folder_of(lease.partition, snapshot.owner)
        pointer = Pointer(f"{folder}/{lease.epoch}-{snapshot.sequence}-{put.drawn}-{sha256}", len(body), sha256)
        self._objects.put(pointer.name, body)
        put.pointers[snapshot.owner] = pointer
        fault_point("commit.putting")

    def _give_up(self, partition: int) -> None:
        """Leaves what was put for a commit that nobody has asked for again: waste, unless it was done all the same."""
        known = self._of(partition)
        if known.put is not None:
            with self._lock:
                for owner, pointer in known.put.pointers.items():
                    self._waste.append(_Waste(known.put.ends_at_s, partition, owner, pointer.name))
        known.put = None

    def settle(self, commit: Commit, put: Put | None, answer: list[Any]) -> None:
        """Takes in the answer to a commit: what no record points to any more is removed, at once or in a while.

        At once is for what was never pointed to. The rest waits: a server that goes back a moment points to it again.
        """
        partition = commit.lease.partition
        if put is not None:
            self._of(partition).put = None
        now, before = ([name.decode() for name in names] for names in answer[2:4])
        put_by = {} if put is None else {owner: pointer.name for owner, pointer in put.pointers.items()}
        at_s = time.monotonic()
        later_s = at_s + self._objects.config.keep_replaced_s
        mine_at_s = later_s
        if answer[0] != b"OK" and put is not None:
            mine_at_s = at_s if put.num_sent == 1 else max(later_s, put.ends_at_s)
        with self._lock:
            for snapshot, is_there, was_there in zip(commit.snapshots, now, before, strict=True):
                if was_there != is_there and _is_name(was_there):
                    self._waste.append(_Waste(later_s, partition, snapshot.owner, was_there))
                mine = put_by.get(snapshot.owner)
                if mine is not None and mine != is_there:
                    self._waste.append(_Waste(mine_at_s, partition, snapshot.owner, mine))
            is_due = not self._is_dropping and any(one.due_at_s <= at_s for one in self._waste)
            self._is_dropping = self._is_dropping or is_due
        if is_due:
            self._objects.beside(self._drop_beside)

    def _drop_beside(self) -> None:
        try:
            self.drop_due()
        except SiltstoneError as error:
            _LOG.warning("objects are left for a sweep", extra={"error": str(error)})
        finally:
            with self._lock:
                self._is_dropping = False

    def drop_due(self) -> int:
        """Removes what is waste for long enough, unless a record points to it again; returns how many objects.

        Raises: Unavailable; what was to be removed is then left for a sweep.
        """
        at_s, num_dropped = time.monotonic(), 0
        while True:
            with self._lock:
                due = [one for one in self._waste if one.due_at_s <= at_s]
                self._waste = [one for one in self._waste if one.due_at_s > at_s] + due[_DROPPED_AT_ONCE:]
                del due[_DROPPED_AT_ONCE:]
            if not due:
                return num_dropped
            names = []
            for partition in sorted({one.partition for one in due}):
                of_it = [one for one in due if one.partition == partition]
                pointed = self.pointers(partition, [one.owner for one in of_it])
                names += [one.name for one, name in zip(of_it, pointed, strict=True) if name not in (one.name, "?")]
            fault_point("commit.dropping")
            self._objects.delete(names)
            num_dropped += len(names)

    def erase(self, partition: int, owner: UserKey) -> bool:
        """Removes all objects of an owner whose record is gone, and returns whether there were any.

        Raises: Unavailable; call again.
        """
        # What was put for a commit of unknown end may be among them: no later try may count on it.
        self._give_up(partition)
        folder = self.folder_of(partition, owner)
        names = self._objects.names_in(folder)
        if not names:
            self._check_mark()
        self._objects.delete(f"{folder}/{name}" for name in names)
        self._objects.remove_folder(folder)
        return bool(names)

    def pointers(self, partition: int, owners: Sequence[UserKey]) -> list[str]:
        """Returns what the owners' records point to: "" of one with its body, "-" for none, "?" when it cannot be told.

        Raises: Unavailable; Corrupt.
        """
        found: list[str] = []
        for start in range(0, len(owners), _DROPPED_AT_ONCE):
            keys = [self._key(partition, "part")]
            keys += [self._key(partition, f"snap:{owner}") for owner in owners[start : start + _DROPPED_AT_ONCE]]
            answer = self._server.run("pointers", keys, [])
            if answer[0] != b"OK":
                raise Corrupt(f"partition {partition}", "a record with its checksum", "none, or another one")
            found += [name.decode() for name in answer[1]]
        return found

    def listed(self, partition: int) -> dict[str, list[str]]:
        """Returns the names of all objects of a partition by the folder they are in.

        Raises: Unavailable.
        """
        above = f"{self._home}/{partition}"
        folders = [f"{above}/{name}" for name in self._objects.names_in(above)]
        names = self._objects.each(self._objects.names_in, folders)
        return {
            folder: [f"{folder}/{name}" for name in inside]
            for folder, inside in zip(folders, names, strict=True)
            if inside
        }

    def delete(self, names: Sequence[str]) -> None:
        """Removes objects.

        Raises: Unavailable.
        """
        self._objects.delete(names)

    def _find_store(self) -> str:
        key = f"{self._config.namespace}:objects"
        found = self._server.call(lambda client: client.get(key))
        if found is None:
            drawn = secrets.token_hex(8)
            mark = f"{self._config.namespace}-{drawn}/{_MARK}"
            self._objects.put(mark, b"The memories of a store of Siltstone.\n")
            self._server.call(lambda client: client.set(key, drawn, nx=True))
            found = self._server.call(lambda client: client.get(key))
            if found.decode() != drawn:
                # Somebody else was first.
                self._objects.delete([mark])
        store: str = found.decode()
        if self._objects.get(f"{self._config.namespace}-{store}/{_MARK}") is None:
            reason = "expected the object store in which this store has its memories, found none of them there"
            raise ConfigInvalid("objects", f"url: {reason}")
        return store

    def _check_mark(self) -> None:
        """Tells an object that is missing from a folder that is not mounted, or a bucket that was emptied."""
        if self._objects.get(f"{self._home}/{_MARK}") is None:
            raise Unavailable("the object store", "the mark of this store is not there any more: is it another folder?")

    def _of(self, partition: int) -> _Partition:
        with self._lock:
            return self._partitions.setdefault(partition, _Partition())

    def folder_of(self, partition: int, owner: UserKey) -> str:
        """Returns the folder of an owner's objects."""
        return f"{self._home}/{partition}/{fingerprint(str(owner)).hex()[:32]}"

    def _key(self, partition: int, kind: str) -> str:
        return f"{{{self._config.namespace}:{partition}}}:{kind}"


def _is_name(pointer: str) -> bool:
    return pointer not in ("", "-", "?")
