"""A shard in small, run as a process of its own so that it can be killed: `absorb_worker.py FILE TASK`.

A user's memory is a hash chain over the payloads, so order, loss and repetition all show.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path

from siltstone.adapters.sqlite_file import SqliteConfig, SqliteFile
from siltstone.adapters.sqlite_journal import SqliteJournal
from siltstone.adapters.sqlite_snapshots import SqliteSnapshotStore
from siltstone.errors import PositionConflict, StaleLease
from siltstone.faults import fault_point
from siltstone.values import Commit, JournalRecord, Lease, Parked, ParkReason, Snapshot, UserKey

CONFIG = SqliteConfig(num_partitions=4, checkpoint_after_bytes=400_000)
"""The log is moved often, so that kills also fall into that."""

BATCH = 3
BLOB_BYTES = 50_000
"""A memory is padded to this size, so that a commit spans several pages."""
FENCED = 7
"""Exit status of a writer that was refused."""


def fold(memory: Snapshot | None, record: JournalRecord) -> Snapshot:
    chain = memory.blob[:32] if memory else bytes(32)
    chain = hashlib.sha256(chain + record.payload).digest()
    blob = chain + chain[:1] * (BLOB_BYTES - len(chain))
    return Snapshot.seal(record.owner, "core-1", memory.sequence + 1 if memory else 1, blob)


def fold_all(records: Iterable[JournalRecord]) -> dict[UserKey, Snapshot]:
    """What the memories must be in the end."""
    memories: dict[UserKey, Snapshot] = {}
    for record in records:
        memories[record.owner] = fold(memories.get(record.owner), record)
    return memories


def next_commit(journal: SqliteJournal, store: SqliteSnapshotStore, lease: Lease) -> Commit | None:
    position = store.position(lease.partition)
    records = journal.read(lease.partition, position, BATCH)
    if not records:
        return None
    memories: dict[UserKey, Snapshot] = {}
    for record in records:
        memories[record.owner] = fold(memories.get(record.owner) or store.load(record.owner), record)
    last = records[-1]
    parked = Parked(
        lease.partition, last.position, last.owner, last.interaction_id, ParkReason.EMPTY, "for the test", b"x"
    )
    return Commit(lease, position, last.position + 1, tuple(memories.values()), (parked,))


def commit_in_two_transactions(store: SqliteSnapshotStore, commit: Commit) -> None:
    """The protocol without its protection: the memories first, the position after."""
    start = commit.expected_position
    store.commit(Commit(commit.lease, start, start, commit.snapshots, commit.parked))
    fault_point("worker.between")
    store.commit(Commit(commit.lease, start, commit.next_position, ()))


def commit_unfenced(store: SqliteSnapshotStore, commit: Commit) -> None:
    """A write without its protection: under whatever lease and position are the newest."""
    lease = store.acquire(commit.lease.partition, "unfenced")
    position = store.position(lease.partition)
    store.commit(Commit(lease, position, position, commit.snapshots))


def main(path: Path, task: str) -> int:
    with SqliteFile(path, CONFIG) as file:
        journal, store = SqliteJournal(file), SqliteSnapshotStore(file)
        leases = [store.acquire(partition, "worker") for partition in range(CONFIG.num_partitions)]
        if task in ("pause", "pause-unfenced"):
            commit = next(c for lease in leases if (c := next_commit(journal, store, lease)) is not None)
            print("paused", flush=True)
            sys.stdin.readline()
            try:
                (store.commit if task == "pause" else lambda c: commit_unfenced(store, c))(commit)
            except (StaleLease, PositionConflict):
                return FENCED
            return 0
        for lease in leases:
            while (commit := next_commit(journal, store, lease)) is not None:
                if task == "exact":
                    store.commit(commit)
                elif task == "one":
                    store.commit(commit)
                    return 0
                else:
                    commit_in_two_transactions(store, commit)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
