"""The clustered snapshot store: users' memories, positions, leases and parked interactions in Redis or Valkey.

All keys of a partition share one hash tag, so that one script changes them together, also in a Redis Cluster:

    {NAMESPACE:PARTITION}:part              epoch, holder, position, counts, the last commit, a checksum
    {NAMESPACE:PARTITION}:users             owner -> core of the owner's snapshot
    {NAMESPACE:PARTITION}:cores             core -> number of snapshots learned under it
    {NAMESPACE:PARTITION}:snap:OWNER        a snapshot's record
    {NAMESPACE:PARTITION}:ids               the window: digest of (owner, interaction id), by position
    {NAMESPACE:PARTITION}:parked, :payloads position -> record, and payload, of a parked interaction
    {NAMESPACE:PARTITION}:parked-of:OWNER   positions of an owner's parked interactions
    {NAMESPACE:PARTITION}:stage:COMMIT:N    a snapshot on its way, for a few minutes
    {NAMESPACE:PARTITION}:put:PUT           the right to commit objects that were put, for a few minutes

A large snapshot's record may point to an object elsewhere that has its body (see `redis_objects`).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Final

from siltstone.adapters.fingerprint import fingerprint
from siltstone.adapters.object_store import ObjectStore
from siltstone.adapters.redis_config import RedisConfig
from siltstone.adapters.redis_objects import Put, RedisObjects
from siltstone.adapters.redis_records import (
    Pointer,
    read_parked,
    read_pointer,
    read_snapshot,
    write_parked,
    write_pointer,
    write_snapshot,
)
from siltstone.adapters.redis_scripts import SCRIPTS
from siltstone.adapters.redis_server import RedisServer
from siltstone.adapters.redis_sweep import ObjectSweep
from siltstone.adapters.unsealed import Unsealed
from siltstone.errors import ConfigInvalid, Corrupt, InvalidInput, PositionConflict, StaleLease, Unavailable
from siltstone.faults import fault_point
from siltstone.journal.partition import partition_of
from siltstone.ports import Sealer
from siltstone.values import Commit, Lease, Parked, Snapshot, UserKey

STORE_VERSION: Final = 1
_STAGED_FOR_S: Final = 600
"""Seconds after which a snapshot that no commit came for is gone: longer than any commit goes on trying."""
_PARKED_AT_ONCE: Final = 64


class RedisSnapshotStore:
    """`ports.SnapshotStore` in a Redis or Valkey server or cluster. Safe for the threads of a process."""

    def __init__(self, config: RedisConfig, sealer: Sealer | None = None, objects: ObjectStore | None = None) -> None:
        """Checks the server and makes the store where there is none. Closes `objects` when it is closed.

        Raises: ConfigInvalid when the server refuses us or cannot be trusted with a store, or the store or its objects
        are others than are configured; Unavailable; Corrupt.
        """
        self.config = config
        self._sealer = Unsealed() if sealer is None else sealer
        self._server = RedisServer(config)
        self._server.check()
        self._prepare()
        self._object_store = objects
        self._objects = None if objects is None else RedisObjects(config, self._server, objects)
        if objects is None and self._server.call(lambda client: client.exists(f"{config.namespace}:objects")):
            raise ConfigInvalid("objects", "url: expected where this store's large memories are, found nothing")

    def close(self) -> None:
        """Closes the connections."""
        if self._object_store is not None:
            self._object_store.close()
        self._server.close()

    def __enter__(self) -> RedisSnapshotStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def load(self, owner: UserKey) -> Snapshot | None:
        """See `ports.SnapshotStore.load`: None also when the user's key was destroyed.

        A commit may take the object away to which the record has just pointed: then the record points to another one.
        Raises: Unavailable also when newer code wrote it.
        """
        missing: Pointer | None = None
        while (record := self._record_of(owner)) is not None:
            pointer = read_pointer(owner, record)
            if pointer is None:
                return read_snapshot(owner, record, self._sealer)
            if pointer == missing:
                raise Corrupt(f"memory of {owner}", f"the object {pointer.name}", "none of that name")
            if self._objects is None:
                raise Unavailable(f"memory of {owner}", "it is in an object store, and objects.url is empty here")
            if (content := self._objects.get(pointer.name)) is not None:
                return read_snapshot(owner, record, self._sealer, content)
            missing = pointer
        return None

    def _record_of(self, owner: UserKey) -> bytes | None:
        partition = partition_of(owner, self.config.num_partitions)
        users, key = self._key(partition, "users"), self._snapshot_key(partition, owner)
        record: bytes | None = self._server.call(lambda client: client.get(key))
        if record is None and self._server.call(lambda client: client.hexists(users, str(owner))):
            # It may have come between the two questions.
            record = self._server.call(lambda client: client.get(key))
            if record is None:
                raise Corrupt(f"memory of {owner}", "a record, as the partition has it listed", "none")
        return record

    def commit(self, commit: Commit) -> None:
        """Writes what one step of a partition changed, all or none; see `ports.SnapshotStore.commit`.

        1. Check that the commit is sound in itself: every digest, every owner, no step back.
        2. Put the large snapshots into the object store, if there is one: nothing points to them yet.
        3. Send the others, and the pointers, to keys of their own, which go by themselves if nobody comes for them.
        4. In one script: check the lease and the position, move the snapshots to their places, write the parked
           interactions, the ids and the position. Before it nothing has happened, after it everything has.
        5. Remove the objects that nothing points to now: those replaced, or of a refused commit those put.

        Each step may be the last one before a crash; objects to which nothing points then wait for a sweep. A cut
        connection can hide whether the fourth was done, so the third and it are sent again, for as long as the
        configuration's retry budget: the script knows the commit it did last.

        How durable it is when it returns is for the server's `appendfsync` to say: with `always` nothing is lost, with
        `everysec` a killed server may go back by a second or two, to a whole commit with its position. The owner of
        the partition is then told of a conflict, and must begin anew from what the store holds.
        """
        # 1.
        self._check(commit)
        fault_point("commit.checked")
        name = _name_of(commit)
        if self._objects is None:
            # 3. and 4.
            answer = self._server.call(partial(self._send, commit, name, None))
            fault_point("commit.durable")
        else:
            answer = self._commit_with(self._objects, commit, name)
        self._refuse(commit.lease, answer, commit.expected_position)

    def _commit_with(self, objects: RedisObjects, commit: Commit, name: str) -> list[Any]:
        """Does steps 2 to 5."""
        has_large = any(map(objects.is_large, commit.snapshots))
        answer: list[Any] = []
        with objects.one_at_a_time(commit.lease.partition):
            # What an earlier try has put may be too old by now, which only the script can say.
            for _ in range(2):
                # 2.
                put = objects.put(commit, name, self._sealer) if has_large else None
                # 3. and 4.
                answer = self._server.call(partial(self._send, commit, name, put))
                fault_point("commit.durable")
                if answer[0] != b"DAMAGED":
                    # 5.
                    objects.settle(commit, put, answer)
                if answer[0] != b"LATE":
                    break
        fault_point("commit.settled")
        return answer

    def _send(self, commit: Commit, name: str, put: Put | None, _: object) -> list[Any]:
        partition, lease = commit.lease.partition, commit.lease
        staged = [self._key(partition, f"stage:{name}:{index}") for index in range(len(commit.snapshots))]
        waiting: list[tuple[Any, ...]] = []
        num_bytes = 0
        pointers = {} if put is None else put.pointers
        self._sealer.prepare([snapshot.owner for snapshot in commit.snapshots if snapshot.owner not in pointers])
        for key, snapshot in zip(staged, commit.snapshots, strict=True):
            pointer = pointers.get(snapshot.owner)
            record = write_snapshot(snapshot, self._sealer) if pointer is None else write_pointer(snapshot, pointer)
            waiting.append(("SET", key, record, "EX", _STAGED_FOR_S))
            num_bytes += len(record)
            if num_bytes >= self.config.send_bytes:
                self._server.send(waiting)
                waiting, num_bytes = [], 0
        keys = [self._key(partition, kind) for kind in ("part", "users", "cores", "ids", "parked", "payloads")]
        keys.append(self._key(partition, "put:") if put is None else put.right)
        for key, snapshot in zip(staged, commit.snapshots, strict=True):
            keys += [key, self._snapshot_key(partition, snapshot.owner)]
        keys += [self._parked_key(partition, parked.owner) for parked in commit.parked]
        first_known = commit.next_position - self.config.id_window
        arguments: list[Any] = [lease.epoch, commit.expected_position, commit.next_position, name, first_known]
        arguments += [len(commit.snapshots), len(commit.parked), len(commit.taken_in), int(put is not None)]
        for snapshot in commit.snapshots:
            arguments += [str(snapshot.owner), snapshot.core]
        for parked in commit.parked:
            arguments += [parked.position, *write_parked(parked, self._sealer)]
        for taken in commit.taken_in:
            arguments += [_id_digest(taken.owner, taken.interaction_id), taken.position]
        fault_point("commit.staging")
        if put is not None:
            put.num_sent += 1
        waiting.append(("EVALSHA", SCRIPTS["commit"].sha1, len(keys), *keys, *arguments))
        answer: list[Any] = self._server.send(waiting)[-1]
        return answer

    def position(self, partition: int) -> int:
        """See `ports.SnapshotStore.position`."""
        self._check_partition(partition)
        _, _, position, _, _ = self._read(partition)
        return int(position)

    def acquire(self, partition: int, holder: str) -> Lease:
        """See `ports.SnapshotStore.acquire`. A lost answer may cost an epoch, which nobody then holds."""
        self._check_partition(partition)
        answer = self._server.run("acquire", [self._key(partition, "part")], [holder])
        self._refuse(Lease(partition, holder, 0), answer)
        return Lease(partition, holder, int(answer[1]))

    def parked(self, owner: UserKey | None = None) -> Iterator[Parked]:
        """See `ports.SnapshotStore.parked`.

        Raises: Corrupt also when one is missing.
        """
        if owner is not None:
            partition = partition_of(owner, self.config.num_partitions)
            found = self._server.call(lambda client: client.smembers(self._parked_key(partition, owner)))
            yield from self._parked_of(partition, sorted(map(int, found)))
            return
        for partition in range(self.config.num_partitions):
            keys = [self._key(partition, "part"), self._key(partition, "parked")]
            answer = self._server.run("parked", keys, [])
            self._refuse(Lease(partition, "", 0), answer)
            if len(answer[2]) != int(answer[1]):
                raise Corrupt("the parked interactions", answer[1].decode(), str(len(answer[2])))
            yield from self._parked_of(partition, sorted(map(int, answer[2])))

    def parked_at(self, partition: int, positions: Sequence[int]) -> list[Parked]:
        """See `ports.SnapshotStore.parked_at`."""
        self._check_partition(partition)
        return list(self._parked_of(partition, sorted(set(positions))))

    def _parked_of(self, partition: int, positions: Sequence[int]) -> Iterator[Parked]:
        """Yields those that are there. One erased meanwhile is not; one of which half is there is damaged."""
        records, payloads = self._key(partition, "parked"), self._key(partition, "payloads")
        for start in range(0, len(positions), _PARKED_AT_ONCE):
            part = positions[start : start + _PARKED_AT_ONCE]
            commands: list[tuple[Any, ...]] = [("HMGET", records, *part), ("HMGET", payloads, *part)]
            answers = self._server.call(partial(_send_all, self._server, commands))
            for position, record, payload in zip(part, *answers, strict=True):
                if record is None and payload is None:
                    continue
                if record is None or payload is None:
                    what = f"parked record {position} of partition {partition}"
                    raise Corrupt(what, "a record and a payload", "only one of them")
                yield read_parked(partition, position, record, payload, self._sealer)

    def taken_in(self, partition: int, ids: Sequence[tuple[UserKey, str]]) -> list[int | None]:
        """See `ports.SnapshotStore.taken_in`."""
        self._check_partition(partition)
        if not ids:
            return []
        digests = [_id_digest(owner, interaction_id) for owner, interaction_id in ids]
        found = self._server.call(lambda client: client.zmscore(self._key(partition, "ids"), digests))
        return [None if position is None else int(position) for position in found]

    def erase(self, owner: UserKey, lease: Lease) -> bool:
        """See `ports.SnapshotStore.erase`. Goes on when the server's memory is full.

        1. Remove the record and what is parked, durably. 2. Remove all objects of the user.

        Raises: Unavailable also when the object store is away: nothing is found of the user by then, and a repeat does
        the rest.
        The bytes stay in the server's append-only file until it is rewritten; sealed, they are unreadable once the
        user's key is destroyed. A lost answer may tell a repeat that there was no snapshot.
        """
        self._check_owner(owner, lease)
        kinds = ("part", "users", "cores", "parked", "payloads")
        keys = [self._key(lease.partition, kind) for kind in kinds]
        keys += [self._parked_key(lease.partition, owner), self._snapshot_key(lease.partition, owner)]
        with nullcontext() if self._objects is None else self._objects.one_at_a_time(lease.partition):
            # 1.
            answer = self._server.run_durably("erase", keys, [lease.epoch, str(owner)])
            self._refuse(lease, answer)
            fault_point("erase.recorded")
            # 2.
            had_objects = self._objects is not None and self._objects.erase(lease.partition, owner)
        return bool(answer[1]) or had_objects

    def sweep(self) -> ObjectSweep:
        """Returns a sweep for objects that no record points to.

        Raises: ConfigInvalid when there is no object store.
        """
        if self._objects is None:
            raise ConfigInvalid("objects", "url: expected an object store, found none named")
        return ObjectSweep(self.config, self._server, self._objects)

    def drop_replaced(self) -> int:
        """Removes now the replaced objects that are due; every commit does it beside. Returns how many there were."""
        return 0 if self._objects is None else self._objects.drop_due()

    def count_users(self) -> int:
        """See `ports.SnapshotStore.count_users`."""
        commands = [("HLEN", self._key(partition, "users")) for partition in range(self.config.num_partitions)]
        return sum(self._server.call(lambda _: self._server.send(commands)))

    def users_by_core(self) -> dict[str, int]:
        """See `ports.SnapshotStore.users_by_core`. Counted when they are written: a damaged one counts as it was."""
        commands = [("HGETALL", self._key(partition, "cores")) for partition in range(self.config.num_partitions)]
        found: Counter[str] = Counter()
        for counts in self._server.call(lambda _: self._server.send(commands)):
            pairs = counts.items() if isinstance(counts, dict) else zip(counts[::2], counts[1::2], strict=True)
            for core, num_users in pairs:
                found[core.decode()] += int(num_users)
        return dict(found)

    def _prepare(self) -> None:
        """Makes every partition, then the store's own record: a store that has one has all of its partitions."""
        key, wanted = f"{self.config.namespace}:store", f"{STORE_VERSION} {self.config.num_partitions}"
        found = self._server.call(lambda client: client.get(key))
        if found is None:
            for partition in range(self.config.num_partitions):
                self._server.run("make", [self._key(partition, "part")], [])
            self._server.call(lambda client: client.set(key, wanted, nx=True))
            found = self._server.call(lambda client: client.get(key))
        try:
            version, num_partitions = map(int, found.split())
        except ValueError as error:
            raise Corrupt("the store", "its version and its number of partitions", repr(found)[:40]) from error
        if version > STORE_VERSION:
            raise ConfigInvalid("redis", f"expected store version {STORE_VERSION} or older, found {version}")
        if num_partitions != self.config.num_partitions:
            wanted = str(self.config.num_partitions)
            raise ConfigInvalid("redis", f"expected {wanted} partitions, found a store with {num_partitions}")

    def _read(self, partition: int) -> list[Any]:
        answer = self._server.run("read", [self._key(partition, "part")], [])
        self._refuse(Lease(partition, "", 0), answer)
        return answer[1:]

    def _refuse(self, lease: Lease, answer: list[Any], expected_position: int = 0) -> None:
        """Raises what a script's answer says, unless it says that all is well."""
        match answer[0]:
            case b"OK":
                return
            case b"STALE":
                raise StaleLease(lease.partition, lease.epoch, int(answer[1]))
            case b"CONFLICT":
                raise PositionConflict(lease.partition, expected_position, int(answer[1]))
            case b"LATE":
                raise Unavailable("the store", "to put the memories has taken longer than objects.put_within_s")
            case b"UNSTAGED":
                raise Unavailable("the store", "it has lost a snapshot on its way")
            case _:
                raise Corrupt(f"partition {lease.partition}", "a record with its checksum", "none, or another one")

    def _check(self, commit: Commit) -> None:
        partition = commit.lease.partition
        if commit.next_position < commit.expected_position:
            raise InvalidInput("next_position", f"{commit.expected_position} or later", str(commit.next_position))
        for snapshot in commit.snapshots:
            self._check_owner(snapshot.owner, commit.lease)
            if (found := hashlib.sha256(snapshot.blob).hexdigest()) != snapshot.digest:
                raise Corrupt(f"memory of {snapshot.owner}", f"sha256 {snapshot.digest}", f"sha256 {found}")
        for parked in commit.parked:
            if parked.partition != partition:
                raise InvalidInput("parked.partition", str(partition), str(parked.partition))
        for taken in commit.taken_in:
            if not commit.expected_position <= taken.position < commit.next_position:
                between = f"{commit.expected_position} to {commit.next_position - 1}"
                raise InvalidInput("taken_in.position", between, str(taken.position))
        self._check_partition(partition)

    def _check_owner(self, owner: UserKey, lease: Lease) -> None:
        if (partition := partition_of(owner, self.config.num_partitions)) != lease.partition:
            raise InvalidInput("lease.partition", f"{partition}, where the user belongs", str(lease.partition))

    def _check_partition(self, partition: int) -> None:
        if not 0 <= partition < self.config.num_partitions:
            raise InvalidInput("partition", f"0 to {self.config.num_partitions - 1}", str(partition))

    def _key(self, partition: int, kind: str) -> str:
        return f"{{{self.config.namespace}:{partition}}}:{kind}"

    def _snapshot_key(self, partition: int, owner: UserKey) -> str:
        return self._key(partition, f"snap:{owner}")

    def _parked_key(self, partition: int, owner: UserKey) -> str:
        return self._key(partition, f"parked-of:{owner}")


def _send_all(server: RedisServer, commands: list[tuple[Any, ...]], _: object) -> list[Any]:
    return server.send(commands)


def _id_digest(owner: UserKey, interaction_id: str) -> bytes:
    return fingerprint(owner.tenant, owner.user, interaction_id)[:16]


def _name_of(commit: Commit) -> str:
    """Returns a name that only an equal commit has: by it the store knows one that is sent again."""
    lease = commit.lease
    fields: list[object] = [lease.partition, lease.epoch, commit.expected_position, commit.next_position]
    for snapshot in commit.snapshots:
        owner = snapshot.owner
        fields += [owner.tenant, owner.user, snapshot.core, snapshot.sequence, snapshot.digest]
    fields.append("parked")
    for parked in commit.parked:
        fields += [parked.position, parked.owner.tenant, parked.owner.user, parked.interaction_id]
        fields += [parked.reason.value, parked.detail, parked.payload]
    fields.append("taken in")
    for taken in commit.taken_in:
        fields += [taken.position, taken.owner.tenant, taken.owner.user, taken.interaction_id]
    return fingerprint(*fields).hex()[:32]
