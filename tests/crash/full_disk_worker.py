"""Fills its disk, as far as its own limit on file sizes lets it, and checks what is left: `full_disk_worker.py FILE`.

Exit status 0: refused cleanly and resumed. The limit is given in bytes above what the files have; none with 0.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from siltstone.adapters.sqlite_file import SqliteFile
from siltstone.adapters.sqlite_journal import SqliteJournal
from siltstone.adapters.sqlite_snapshots import SqliteSnapshotStore
from siltstone.errors import Unavailable
from siltstone.journal.partition import partition_of
from siltstone.values import Commit, Interaction, InteractionKind, Message, Role, Snapshot, UserKey

OWNER = UserKey("office", "ada")
NEVER_REFUSED = 3


def snapshot(sequence: int) -> Snapshot:
    return Snapshot.seal(OWNER, "core-1", sequence, b"%d" % (sequence % 10) * 300_000)


def document(number: int) -> Interaction:
    return Interaction(f"i{number}", OWNER, InteractionKind.DOCUMENT, 0, (Message(Role.USER, "x" * 200_000),))


def main(path: Path, spare_bytes: int) -> int:
    with SqliteFile(path) as file:
        journal, store = SqliteJournal(file), SqliteSnapshotStore(file)
        home = partition_of(OWNER, file.config.num_partitions)
        lease = store.acquire(home, "shard")
        journal.append([document(0)])
        store.commit(Commit(lease, 0, 1, (snapshot(1),)))
        if spare_bytes:
            largest = max(p.stat().st_size for p in path.parent.iterdir())
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest + spare_bytes, resource.RLIM_INFINITY))
        refused: set[str] = set()
        position, end = 1, 1
        for _ in range(40):
            try:
                store.commit(Commit(lease, position, position + 1, (snapshot(position + 1),)))
                position += 1
            except Unavailable:
                refused.add("commit")
            try:
                journal.append([document(end)])
                end += 1
            except Unavailable:
                refused.add("append")
            assert store.position(home) == position
            assert store.load(OWNER) == snapshot(position)
            assert journal.end_positions()[home] == end
            if refused == {"commit", "append"}:
                break
        else:
            return NEVER_REFUSED
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        store.commit(Commit(lease, position, position + 1, (snapshot(position + 1),)))
        (receipt,) = journal.append([document(end)])
        assert (receipt.position, receipt.duplicate) == (end, False)
    with SqliteFile(path) as file:
        journal, store = SqliteJournal(file), SqliteSnapshotStore(file)
        assert store.load(OWNER) == snapshot(position + 1)
        assert [r.interaction_id for r in journal.read(home, 0, 1_000)] == [f"i{n}" for n in range(end + 1)]
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
