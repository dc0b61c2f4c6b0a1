"""The embedded snapshot store: users' memories, positions, leases and parked interactions in a SQLite file."""

from __future__ import annotations

import hashlib
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from siltstone.adapters.fingerprint import fingerprint, verify
from siltstone.adapters.seal_contexts import parked_context, snapshot_context
from siltstone.adapters.sqlite_file import PAGE_BYTES, SqliteFile
from siltstone.adapters.sqlite_partitions import PartitionRow, read_partition, write_partition
from siltstone.errors import Corrupt, InvalidInput, PositionConflict, StaleLease
from siltstone.faults import fault_point
from siltstone.journal.partition import partition_of, row_of
from siltstone.values import Commit, Lease, Parked, ParkReason, Snapshot, TakenIn, UserKey

_PARKED_COLUMNS = "partition, position, tenant, user, interaction_id, reason, detail, payload_digest, digest"

_PAGES_PER_SNAPSHOT = 3
"""Pages a small snapshot touches: its row's, its blob's and the partition's."""


class SqliteSnapshotStore:
    """`ports.SnapshotStore` in one file: one blob per user, overwritten in place."""

    def __init__(self, file: SqliteFile) -> None:
        self._file = file
        self._sealer = file.sealer
        self._num_partitions = file.config.num_partitions

    def load(self, owner: UserKey) -> Snapshot | None:
        """See `ports.SnapshotStore.load`."""
        with self._file.reading() as connection:
            found = _read_snapshot_row(connection, owner)
            if found is None:
                return None
            # Incremental reading fills the bytes at once; a SELECT would copy them a second time.
            with connection.blobopen("snapshot_blob", "blob", row_of(owner), readonly=True) as reader:
                sealed = reader.read()
        blob = self._sealer.open(f"memory of {owner}", owner, snapshot_context(found.core, found.sequence), sealed)
        if blob is None:
            return None
        _verify_blob(owner, found.digest, blob)
        return replace(found, blob=blob)

    def commit(self, commit: Commit) -> None:
        """Writes what one step of a partition changed, all or none; see `ports.SnapshotStore.commit`.

        1. Check that the commit is sound in itself: every digest, every owner, no step back.
        2. Seal it, and begin the transaction: from here no other writer can come between.
        3. Check the lease and the position.
        4. Write the snapshots.
        5. Write the parked interactions.
        6. Write what was taken in, and the partition's next position.
        7. Make it durable. Before this step ends nothing has happened, after it everything has.

        Each step may be the last one before a crash; the tests make it so. The time budget is the file's busy timeout.

        Raises: InvalidInput when a user is not of the lease's partition, or the position would go back.
        Corrupt when a blob does not match its digest. Nothing was written.
        """
        # 1. Check the commit in itself.
        self._check(commit)
        fault_point("commit.checked")
        # 2. Seal, and begin.
        commit = self._sealed(commit)
        num_bytes = sum(len(snapshot.blob) + _PAGES_PER_SNAPSHOT * PAGE_BYTES for snapshot in commit.snapshots)
        with self._file.writing(num_bytes) as connection:
            fault_point("commit.begun")
            # 3. Check the lease and the position.
            row = _fenced(connection, commit.lease)
            if row.next_position != commit.expected_position:
                raise PositionConflict(row.partition, commit.expected_position, row.next_position)
            fault_point("commit.fenced")
            # 4. Write the snapshots.
            num_new = sum(_write_snapshot(connection, snapshot) for snapshot in commit.snapshots)
            fault_point("commit.snapshots_written")
            # 5. Write the parked interactions.
            for parked in commit.parked:
                _write_parked(connection, parked)
            fault_point("commit.parked_written")
            # 6. Write what was taken in, and the position.
            for taken in commit.taken_in:
                _write_taken_in(connection, row.partition, taken)
            if commit.taken_in:
                first_known = commit.next_position - self._file.config.id_window
                window = (row.partition, first_known)
                connection.execute("DELETE FROM taken_in WHERE partition = ? AND position < ?", window)
            changed = replace(
                row,
                next_position=commit.next_position,
                num_snapshots=row.num_snapshots + num_new,
                num_parked=row.num_parked + len(commit.parked),
            )
            write_partition(connection, changed)
            fault_point("commit.position_written")
            # 7. Make it durable: the end of the block.
        fault_point("commit.durable")

    def _sealed(self, commit: Commit) -> Commit:
        """Returns the commit with everything in it as it is to be written. The digests stay those of the contents."""
        owners = [snapshot.owner for snapshot in commit.snapshots]
        self._sealer.prepare(owners + [parked.owner for parked in commit.parked])
        return replace(
            commit,
            snapshots=tuple(
                replace(one, blob=self._sealer.seal(one.owner, snapshot_context(one.core, one.sequence), one.blob))
                for one in commit.snapshots
            ),
            parked=tuple(
                replace(
                    one,
                    payload=self._sealer.seal(one.owner, parked_context(one.partition, one.position), one.payload),
                )
                for one in commit.parked
            ),
        )

    def position(self, partition: int) -> int:
        """See `ports.SnapshotStore.position`."""
        self._file.check_partition(partition)
        with self._file.reading() as connection:
            return read_partition(connection, partition).next_position

    def acquire(self, partition: int, holder: str) -> Lease:
        """See `ports.SnapshotStore.acquire`."""
        self._file.check_partition(partition)
        with self._file.writing(PAGE_BYTES) as connection:
            row = read_partition(connection, partition)
            row = replace(row, epoch=row.epoch + 1, holder=holder)
            write_partition(connection, row)
        return Lease(partition, holder, row.epoch)

    def parked(self, owner: UserKey | None = None) -> Iterator[Parked]:
        """See `ports.SnapshotStore.parked`. No transaction stays open between two of them.

        Raises: Corrupt also when one is missing.
        """
        with self._file.reading() as connection:
            found = _read_parked_rows(connection)
            expected = sum(read_partition(connection, p).num_parked for p in range(self._num_partitions))
        if len(found) != expected:
            raise Corrupt("the parked interactions", str(expected), str(len(found)))
        for parked_row, parked, payload_digest in found:
            if owner is None or owner == parked.owner:
                with self._file.reading() as connection:
                    payload = _read_parked_payload(connection, parked_row)
                if payload is not None:
                    yield self._opened(parked, payload_digest, payload)

    def parked_at(self, partition: int, positions: Sequence[int]) -> list[Parked]:
        """See `ports.SnapshotStore.parked_at`."""
        self._file.check_partition(partition)
        wanted = ", ".join(str(int(position)) for position in positions)
        with self._file.reading() as connection:
            rows = connection.execute(
                f"SELECT {_PARKED_COLUMNS}, payload FROM parked WHERE partition = ? AND position IN ({wanted})"
                " ORDER BY parked_row",
                (partition,),
            ).fetchall()
        found = []
        for *fields, digest, payload in rows:
            parked, payload_digest = _verified_parked(fields, digest)
            found.append(self._opened(parked, payload_digest, payload))
        return found

    def _opened(self, parked: Parked, digest: bytes, payload: bytes) -> Parked:
        what = f"parked record {parked.position} of partition {parked.partition}"
        verify(what, digest, payload)
        context = parked_context(parked.partition, parked.position)
        return replace(parked, payload=self._sealer.open(what, parked.owner, context, payload) or b"")

    def taken_in(self, partition: int, ids: Sequence[tuple[UserKey, str]]) -> list[int | None]:
        """See `ports.SnapshotStore.taken_in`.

        Raises: Corrupt when a row is not what was written.
        """
        self._file.check_partition(partition)
        with self._file.reading() as connection:
            first_known = read_partition(connection, partition).next_position - self._file.config.id_window
            found = [_read_taken_in(connection, partition, owner, name) for owner, name in ids]
        return [None if position is None or position < first_known else position for position in found]

    def erase(self, owner: UserKey, lease: Lease) -> bool:
        """See `ports.SnapshotStore.erase`. The bytes are gone from the file and its log when it returns.

        Raises: Unavailable also when they are deleted but still in the log: call again.
        InvalidInput when the user is not of the lease's partition.
        """
        self._check_owner(owner, lease)
        with self._file.writing(PAGE_BYTES) as connection:
            row = _fenced(connection, lease)
            key = (row_of(owner),)
            num_blobs = connection.execute("DELETE FROM snapshot_blob WHERE owner_row = ?", key).rowcount
            num_rows = connection.execute("DELETE FROM snapshot WHERE owner_row = ?", key).rowcount
            # A damaged memory may have only one of them; it counted as one.
            num_snapshots = max(num_blobs, num_rows)
            write_partition(connection, replace(row, num_snapshots=row.num_snapshots - num_snapshots))
            _erase_parked(connection, owner)
        self._file.scrub()
        return num_snapshots > 0

    def count_users(self) -> int:
        """See `ports.SnapshotStore.count_users`."""
        with self._file.reading() as connection:
            return sum(read_partition(connection, p).num_snapshots for p in range(self._num_partitions))

    def users_by_core(self) -> dict[str, int]:
        """See `ports.SnapshotStore.users_by_core`."""
        found: Counter[str] = Counter()
        with self._file.reading() as connection:
            for *fields, digest in connection.execute("SELECT * FROM snapshot"):
                found[fields[3] if fingerprint(*fields) == digest else ""] += 1
        return dict(found)

    def _check(self, commit: Commit) -> None:
        if commit.next_position < commit.expected_position:
            raise InvalidInput("next_position", f"{commit.expected_position} or later", str(commit.next_position))
        for snapshot in commit.snapshots:
            self._check_owner(snapshot.owner, commit.lease)
            _verify_blob(snapshot.owner, snapshot.digest, snapshot.blob)
        for parked in commit.parked:
            if parked.partition != commit.lease.partition:
                raise InvalidInput("parked.partition", str(commit.lease.partition), str(parked.partition))
        for taken in commit.taken_in:
            if not commit.expected_position <= taken.position < commit.next_position:
                between = f"{commit.expected_position} to {commit.next_position - 1}"
                raise InvalidInput("taken_in.position", between, str(taken.position))
        self._file.check_partition(commit.lease.partition)

    def _check_owner(self, owner: UserKey, lease: Lease) -> None:
        if (partition := partition_of(owner, self._num_partitions)) != lease.partition:
            raise InvalidInput("lease.partition", f"{partition}, where the user belongs", str(lease.partition))


def _fenced(connection: sqlite3.Connection, lease: Lease) -> PartitionRow:
    row = read_partition(connection, lease.partition)
    if row.epoch != lease.epoch:
        raise StaleLease(lease.partition, lease.epoch, row.epoch)
    return row


def _read_snapshot_row(connection: sqlite3.Connection, owner: UserKey) -> Snapshot | None:
    """Returns the user's snapshot without its blob. A row without a blob, or the reverse, is damage."""
    row = connection.execute("SELECT * FROM snapshot WHERE owner_row = ?", (row_of(owner),)).fetchone()
    has_blob = connection.execute("SELECT 1 FROM snapshot_blob WHERE owner_row = ?", (row_of(owner),)).fetchone()
    if row is None and has_blob is None:
        return None
    if row is None or has_blob is None:
        raise Corrupt(f"memory of {owner}", "a row and a blob", "only one of them")
    *fields, digest = row
    verify(f"memory of {owner}", digest, *fields)
    _, tenant, user, core, sequence, blob_digest = fields
    if (stored := UserKey(tenant, user)) != owner:
        raise Corrupt(f"memory of {owner}", f"the row of {owner}", f"the row of {stored}")
    return Snapshot(owner, core, sequence, b"", blob_digest)


def _write_snapshot(connection: sqlite3.Connection, snapshot: Snapshot) -> bool:
    """Writes a user's snapshot over the one before and returns whether it is the first."""
    is_new = _read_snapshot_row(connection, snapshot.owner) is None
    owner = snapshot.owner
    fields = (row_of(owner), owner.tenant, owner.user, snapshot.core, snapshot.sequence, snapshot.digest)
    digest = fingerprint(*fields)
    if is_new:
        connection.execute("INSERT INTO snapshot VALUES (?, ?, ?, ?, ?, ?, ?)", (*fields, digest))
        connection.execute("INSERT INTO snapshot_blob VALUES (?, ?)", (fields[0], snapshot.blob))
    else:
        connection.execute(
            "UPDATE snapshot SET core = ?, sequence = ?, blob_digest = ?, digest = ? WHERE owner_row = ?",
            (snapshot.core, snapshot.sequence, snapshot.digest, digest, fields[0]),
        )
        connection.execute("UPDATE snapshot_blob SET blob = ? WHERE owner_row = ?", (snapshot.blob, fields[0]))
    return is_new


def _verify_blob(owner: UserKey, digest: str, blob: bytes) -> None:
    if (found := hashlib.sha256(blob).hexdigest()) != digest:
        raise Corrupt(f"memory of {owner}", f"sha256 {digest}", f"sha256 {found}")


def _write_parked(connection: sqlite3.Connection, parked: Parked) -> None:
    fields = (
        parked.partition,
        parked.position,
        parked.owner.tenant,
        parked.owner.user,
        parked.interaction_id,
        parked.reason.value,
        parked.detail,
        fingerprint(parked.payload),
    )
    connection.execute(
        f"INSERT INTO parked ({_PARKED_COLUMNS}, payload) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*fields, fingerprint(*fields), parked.payload),
    )


def _write_taken_in(connection: sqlite3.Connection, partition: int, taken: TakenIn) -> None:
    fields = (partition, taken.position, _id_digest(taken.owner, taken.interaction_id))
    # A repeat that was not seen as one leaves the first in its place.
    connection.execute("INSERT OR IGNORE INTO taken_in VALUES (?, ?, ?, ?)", (*fields, fingerprint(*fields)))


def _read_taken_in(connection: sqlite3.Connection, partition: int, owner: UserKey, interaction_id: str) -> int | None:
    key = (partition, _id_digest(owner, interaction_id))
    row = connection.execute("SELECT * FROM taken_in WHERE partition = ? AND id_digest = ?", key).fetchone()
    if row is None:
        return None
    *fields, digest = row
    verify(f"the id taken in at {fields[1]} of partition {partition}", digest, *fields)
    position: int = fields[1]
    return position


def _id_digest(owner: UserKey, interaction_id: str) -> bytes:
    return fingerprint(owner.tenant, owner.user, interaction_id)[:16]


def _erase_parked(connection: sqlite3.Connection, owner: UserKey) -> None:
    key = (owner.tenant, owner.user)
    counts = connection.execute(
        "SELECT partition, count(*) FROM parked WHERE tenant = ? AND user = ? GROUP BY partition", key
    ).fetchall()
    connection.execute("DELETE FROM parked WHERE tenant = ? AND user = ?", key)
    for partition, num_parked in counts:
        row = read_partition(connection, partition)
        write_partition(connection, replace(row, num_parked=row.num_parked - num_parked))


def _read_parked_rows(connection: sqlite3.Connection) -> list[tuple[int, Parked, bytes]]:
    """Returns every parked interaction without its payload, as (row, interaction, digest of the payload)."""
    found: list[tuple[int, Parked, bytes]] = []
    for row in connection.execute(f"SELECT parked_row, {_PARKED_COLUMNS} FROM parked ORDER BY parked_row"):
        parked_row, *fields, digest = row
        parked, payload_digest = _verified_parked(fields, digest)
        if found and parked_row <= found[-1][0]:
            raise Corrupt("the parked interactions", f"a row after {found[-1][0]}", f"row {parked_row}")
        found.append((parked_row, parked, payload_digest))
    return found


def _verified_parked(fields: Sequence[Any], digest: bytes) -> tuple[Parked, bytes]:
    """Returns a parked interaction without its payload, and the digest of that."""
    partition, position, tenant, user, interaction_id, reason, detail, payload_digest = fields
    verify(f"parked record {position} of partition {partition}", digest, *fields)
    owner = UserKey(tenant, user)
    return Parked(partition, position, owner, interaction_id, ParkReason(reason), detail, b""), payload_digest


def _read_parked_payload(connection: sqlite3.Connection, parked_row: int) -> bytes | None:
    """Returns a payload, or None when it was erased since the rows were read."""
    row = connection.execute("SELECT payload FROM parked WHERE parked_row = ?", (parked_row,)).fetchone()
    if row is not None:
        payload: bytes = row[0]
        return payload
    # The plus sign makes SQLite look at every row: a damaged page can hide a row from a search by its key.
    if connection.execute("SELECT 1 FROM parked WHERE +parked_row = ?", (parked_row,)).fetchone():
        raise Corrupt("the parked interactions", f"row {parked_row} by its key", "none")
    return None
