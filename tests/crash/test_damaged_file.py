"""A flipped bit in the stored file is found, or does not matter; it never comes back as an answer."""

from __future__ import annotations

import random
import shutil
import sqlite3

import pytest

from siltstone.adapters.sqlite_file import PAGE_BYTES, SqliteConfig, SqliteFile
from siltstone.adapters.sqlite_journal import SqliteJournal
from siltstone.adapters.sqlite_snapshots import SqliteSnapshotStore
from siltstone.errors import Corrupt, SiltstoneError
from siltstone.journal.partition import partition_of, row_of
from siltstone.values import (
    Commit,
    Interaction,
    InteractionKind,
    Message,
    Parked,
    ParkReason,
    Role,
    Snapshot,
    UserKey,
)

CONFIG = SqliteConfig(num_partitions=2)
OWNERS = [UserKey("office", f"user{number}") for number in range(6)]
BLOB_BYTES = 90_000


def write_some(path):
    """Fills a file and returns what must be read from it after each write."""
    rng = random.Random(7)
    states = []
    with SqliteFile(path, CONFIG) as file:
        journal, store = SqliteJournal(file), SqliteSnapshotStore(file)
        messages = (Message(Role.USER, "The depot opens at seven. " * 20),)
        journal.append([Interaction(f"i{n}", OWNERS[n % 6], InteractionKind.DOCUMENT, n, messages) for n in range(60)])
        states.append(read_all(file))
        for partition in range(2):
            lease = store.acquire(partition, "shard")
            mine = [owner for owner in OWNERS if partition_of(owner, 2) == partition]
            for position in range(2):
                snapshots = tuple(
                    Snapshot.seal(owner, "core-1", position + 1, rng.randbytes(BLOB_BYTES)) for owner in mine
                )
                parked = Parked(partition, position, mine[0], f"i{position}", ParkReason.EMPTY, "none", b"payload")
                store.commit(Commit(lease, position, position + 1, snapshots, (parked,)))
                states.append(read_all(file))
        shutil.copy(path, path.with_suffix(".live"))
        shutil.copy(f"{path}-wal", path.with_suffix(".live-wal"))
    return states


def read_all(file):
    journal, store = SqliteJournal(file), SqliteSnapshotStore(file)
    return (
        [journal.read(partition, 0, 1_000) for partition in range(2)],
        journal.end_positions(),
        [store.position(partition) for partition in range(2)],
        [store.load(owner) for owner in OWNERS],
        list(store.parked()),
        list(store.parked(OWNERS[0])),
        store.count_users(),
    )


def reopened(path):
    """Returns what is read, or the error that says why not."""
    try:
        with SqliteFile(path, CONFIG) as file:
            return read_all(file)
    except SiltstoneError as error:
        return error


def flip(content, offset, bit):
    damaged = bytearray(content)
    damaged[offset] ^= 1 << bit
    return bytes(damaged)


def flips(content, seed, count):
    """Bits anywhere, and as many again where the tree's own bookkeeping is: the first bytes of a page."""
    rng = random.Random(seed)
    for _ in range(count):
        yield rng.randrange(len(content)), rng.randrange(8)
        yield rng.randrange(len(content) // PAGE_BYTES) * PAGE_BYTES + rng.randrange(64), rng.randrange(8)


def test_no_flipped_bit_of_the_file_comes_back_as_an_answer(tmp_path):
    path = tmp_path / "siltstone.db"
    whole = write_some(path)[-1]
    content = path.read_bytes()
    assert reopened(path) == whole
    num_found = 0
    for offset, bit in flips(content, seed=11, count=120):
        copy = tmp_path / "damaged.db"
        copy.write_bytes(flip(content, offset, bit))
        result = reopened(copy)
        assert isinstance(result, SiltstoneError) or result == whole, f"bit {bit} of byte {offset}"
        num_found += isinstance(result, Corrupt)
        for name in ("damaged.db", "damaged.db-wal", "damaged.db-shm"):
            (tmp_path / name).unlink(missing_ok=True)
    assert num_found > 50


def test_without_the_digests_a_flipped_bit_is_read_as_if_it_were_sound(tmp_path):
    path = tmp_path / "siltstone.db"
    whole = write_some(path)[-1]
    blob = whole[3][0].blob
    content = path.read_bytes()
    offset = content.index(blob[1_000:1_032])
    path.write_bytes(flip(content, offset, 3))
    connection = sqlite3.connect(path)
    (read,) = connection.execute("SELECT blob FROM snapshot_blob WHERE owner_row = ?", (row_of(OWNERS[0]),)).fetchone()
    connection.close()
    assert read != blob
    with SqliteFile(path, CONFIG) as file, pytest.raises(Corrupt):
        SqliteSnapshotStore(file).load(OWNERS[0])


def test_one_damaged_memory_leaves_the_others_readable_and_can_be_erased(tmp_path):
    path = tmp_path / "siltstone.db"
    whole = write_some(path)[-1]
    content = path.read_bytes()
    path.write_bytes(flip(content, content.index(whole[3][0].blob[1_000:1_032]), 3))
    with SqliteFile(path, CONFIG) as file:
        store = SqliteSnapshotStore(file)
        with pytest.raises(Corrupt):
            store.load(OWNERS[0])
        assert [store.load(owner) for owner in OWNERS[1:]] == whole[3][1:]
        assert store.erase(OWNERS[0], store.acquire(partition_of(OWNERS[0], 2), "shard"))
        assert store.load(OWNERS[0]) is None


def test_a_flipped_bit_of_the_log_gives_an_earlier_commit_whole_or_an_error(tmp_path):
    path = tmp_path / "siltstone.db"
    states = write_some(path)
    file, log = (path.with_suffix(suffix).read_bytes() for suffix in (".live", ".live-wal"))
    rng = random.Random(13)
    copy = tmp_path / "damaged.db"
    num_earlier = 0
    # The first half of the log makes the tables and the journal; without them there is nothing to compare.
    for _ in range(40):
        copy.write_bytes(file)
        copy.with_suffix(".db-wal").write_bytes(flip(log, rng.randrange(len(log) // 2, len(log)), rng.randrange(8)))
        result = reopened(copy)
        assert isinstance(result, SiltstoneError) or result in states
        num_earlier += not isinstance(result, SiltstoneError) and result != states[-1]
        for name in ("damaged.db", "damaged.db-wal", "damaged.db-shm"):
            (tmp_path / name).unlink(missing_ok=True)
    assert num_earlier > 0


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.7, 0.99])
def test_a_file_cut_short_is_an_error_or_empty(tmp_path, keep):
    path = tmp_path / "siltstone.db"
    write_some(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    result = reopened(path)
    if keep:
        assert isinstance(result, SiltstoneError)
    else:
        assert result[1] == {0: 0, 1: 0}
