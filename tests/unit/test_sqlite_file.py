"""What the one file does beyond the ports: its version, its locks, its size, its traces."""

from __future__ import annotations

import random
import sqlite3
import stat
import threading

import pytest

from siltstone.adapters.fingerprint import fingerprint
from siltstone.adapters.sqlite_file import SqliteConfig, SqliteFile
from siltstone.adapters.sqlite_journal import SqliteJournal
from siltstone.adapters.sqlite_schema import APPLICATION_ID, FILE_SCHEMA_VERSION, prepare
from siltstone.adapters.sqlite_snapshots import SqliteSnapshotStore
from siltstone.errors import ConfigInvalid, Corrupt, Unavailable
from siltstone.journal.partition import partition_of
from siltstone.values import (
    Commit,
    Interaction,
    InteractionKind,
    Message,
    Parked,
    ParkReason,
    Role,
    Snapshot,
    TakenIn,
    UserKey,
)

OWNER = UserKey("office", "ada")
HOME = partition_of(OWNER, 16)
MARKER = b"the password is swordfish"


def document(name, text="The depot opens at seven.", user="ada"):
    return Interaction(name, UserKey("office", user), InteractionKind.DOCUMENT, 0, (Message(Role.USER, text),))


def bytes_of(path):
    return b"".join(p.read_bytes() for p in path.parent.glob(f"{path.name}*") if not p.name.endswith("-shm"))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "siltstone.db"


def test_the_file_is_readable_by_its_user_only(path):
    with SqliteFile(path) as file:
        SqliteJournal(file).append([document("i0")])
        assert {stat.S_IMODE(p.stat().st_mode) for p in path.parent.iterdir()} == {0o600}


def test_many_may_make_the_same_file_at_once(path):
    errors, barrier = [], threading.Barrier(4)

    def opener(number):
        barrier.wait()
        try:
            with SqliteFile(path) as file:
                SqliteJournal(file).append([document(f"i{number}")])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=opener, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with SqliteFile(path) as file:
        assert SqliteJournal(file).end_positions()[HOME] == 4


def test_another_number_of_partitions_is_refused(path):
    SqliteFile(path, SqliteConfig(num_partitions=16)).close()
    with pytest.raises(ConfigInvalid, match="expected 8 partitions, found a file with 16"):
        SqliteFile(path, SqliteConfig(num_partitions=8))


def test_a_number_of_partitions_that_cannot_be_is_refused_before_a_file_is_made(path):
    with pytest.raises(ConfigInvalid):
        SqliteFile(path, SqliteConfig(num_partitions=0))
    assert not path.exists()


def test_a_file_of_a_newer_version_is_refused_with_both_versions(path):
    with SqliteFile(path) as file, file.writing(0) as connection:
        prepare(connection, 16, FILE_SCHEMA_VERSION + 1, {FILE_SCHEMA_VERSION: lambda _: None})
    with pytest.raises(ConfigInvalid, match=f"version {FILE_SCHEMA_VERSION} or older, found {FILE_SCHEMA_VERSION + 1}"):
        SqliteFile(path)


def test_an_older_file_is_carried_forward_step_by_step_or_not_at_all(path):
    def first(connection):
        connection.execute("CREATE TABLE first (value INTEGER)")

    def second(connection):
        connection.execute("INSERT INTO first VALUES (2)")

    def failing(connection):
        raise RuntimeError

    old = FILE_SCHEMA_VERSION
    with SqliteFile(path) as file:
        with pytest.raises(RuntimeError), file.writing(0) as connection:
            prepare(connection, 16, old + 2, {old: first, old + 1: failing})
        with file.writing(0) as connection:
            prepare(connection, 16)
            prepare(connection, 16, old + 2, {old: first, old + 1: second})
        with file.reading() as connection:
            assert connection.execute("SELECT value FROM first").fetchall() == [(2,)]


def test_a_file_of_the_first_version_is_carried_forward_with_what_is_in_it(path):
    with SqliteFile(path) as file:
        before = SqliteJournal(file).append([document("i0")])
        with file.writing(0) as connection:
            # What the first version was: no table of what was taken in, no word of sealing.
            connection.execute("DROP TABLE taken_in")
            connection.execute("DELETE FROM file_property WHERE name = 'is_sealed'")
            value = ("schema_version", 1)
            connection.execute("REPLACE INTO file_property VALUES (?, ?, ?)", (*value, fingerprint(*value)))
    with SqliteFile(path) as file:
        journal, store = SqliteJournal(file), SqliteSnapshotStore(file)
        assert [record.interaction_id for record in journal.read(HOME, 0, 10)] == [before[0].interaction_id]
        owner = document("i0").owner
        store.commit(Commit(store.acquire(HOME, "shard"), 0, 1, (), taken_in=(TakenIn(0, owner, "i0"),)))
        assert store.taken_in(HOME, [(owner, "i0"), (owner, "i1")]) == [0, None]


def test_a_file_of_another_program_is_refused_and_left_alone(path):
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (value INTEGER)")
    connection.execute("INSERT INTO theirs VALUES (1)")
    connection.commit()
    connection.close()
    with pytest.raises(ConfigInvalid, match="a file of Siltstone"):
        SqliteFile(path)
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT name FROM sqlite_schema").fetchall() == [("theirs",)]
    connection.close()


def test_a_file_that_is_no_database_is_refused(path):
    path.write_bytes(random.Random(1).randbytes(100_000))
    with pytest.raises(Corrupt):
        SqliteFile(path)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(Unavailable):
        SqliteFile(tmp_path / "nowhere" / "siltstone.db")


def test_a_closed_file_refuses_everything_and_closes_again(path):
    file = SqliteFile(path)
    journal = SqliteJournal(file)
    file.close()
    file.close()
    for call in (lambda: journal.append([document("i0")]), journal.end_positions, file.scrub):
        with pytest.raises(Unavailable):
            call()


def test_a_write_that_another_process_keeps_waiting_is_refused_and_changes_nothing(path):
    with SqliteFile(path, SqliteConfig(busy_timeout_ms=20)) as file:
        journal, store = SqliteJournal(file), SqliteSnapshotStore(file)
        lease = store.acquire(HOME, "shard")
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        commit = Commit(lease, 0, 1, (Snapshot.seal(OWNER, "core-1", 1, b"memory"),))
        for call in (lambda: journal.append([document("i0")]), lambda: store.commit(commit)):
            with pytest.raises(Unavailable, match="locked"):
                call()
        assert (journal.end_positions()[HOME], store.position(HOME), store.load(OWNER)) == (0, 0, None)
        other.execute("ROLLBACK")
        other.close()
        journal.append([document("i0")])
        store.commit(commit)
        assert (journal.end_positions()[HOME], store.position(HOME)) == (1, 1)


def test_what_is_erased_is_on_no_page_of_the_file_nor_of_its_log(path):
    rng = random.Random(3)
    with SqliteFile(path) as file:
        journal, store = SqliteJournal(file), SqliteSnapshotStore(file)
        lease = store.acquire(HOME, "shard")
        for number in range(30):
            journal.append([document(f"i{number}", f"{MARKER.decode()} {number}"), document(f"i{number}", user="bob")])
            blob = MARKER + rng.randbytes(rng.randrange(200_000))
            parked = Parked(HOME, number, OWNER, f"i{number}", ParkReason.TOO_LARGE, "", MARKER)
            store.commit(Commit(lease, number, number + 1, (Snapshot.seal(OWNER, "core-1", 1, blob),), (parked,)))
        assert MARKER in bytes_of(path)
        assert store.erase(OWNER, lease)
        assert journal.erase(OWNER) == 30
        assert MARKER not in bytes_of(path)
        journal.append([document("after")])
    assert MARKER not in bytes_of(path)


def test_a_plain_delete_leaves_the_bytes_in_the_file(path):
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA secure_delete = OFF")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE theirs (payload BLOB)")
    connection.execute("INSERT INTO theirs VALUES (?)", (MARKER,))
    connection.execute("DELETE FROM theirs")
    connection.close()
    assert MARKER in bytes_of(path)


def test_an_erase_that_a_reader_holds_up_says_so_and_is_finished_by_the_next(path):
    with SqliteFile(path, SqliteConfig(busy_timeout_ms=20)) as file:
        journal = SqliteJournal(file)
        journal.append([document("i0", MARKER.decode())])
        with file.reading() as connection:
            connection.execute("SELECT count(*) FROM journal_record").fetchone()
            with pytest.raises(Unavailable, match="still holds erased bytes"):
                journal.erase(OWNER)
        assert journal.read(HOME, 0, 1)[0].payload == b""
        assert MARKER in bytes_of(path)
        assert journal.erase(OWNER) == 0
        assert MARKER not in bytes_of(path)


def test_overwriting_snapshots_keeps_file_and_log_bounded(path):
    rng = random.Random(4)
    num_bytes = 200_000
    with SqliteFile(path, SqliteConfig(checkpoint_after_bytes=500_000)) as file:
        store = SqliteSnapshotStore(file)
        lease = store.acquire(HOME, "shard")
        for sequence in range(150):
            blob = rng.randbytes(num_bytes - rng.randrange(2) * 40_000)
            snapshot = Snapshot.seal(OWNER, "core-1", sequence, blob)
            store.commit(Commit(lease, sequence, sequence + 1, (snapshot,)))
        assert len(bytes_of(path)) < 60 * num_bytes
    assert path.stat().st_size < 6 * num_bytes


def test_a_backup_is_a_whole_file_of_its_own(path, tmp_path):
    with SqliteFile(path) as file:
        journal, store = SqliteJournal(file), SqliteSnapshotStore(file)
        journal.append([document("i0")])
        snapshot = Snapshot.seal(OWNER, "core-1", 1, b"memory" * 20_000)
        store.commit(Commit(store.acquire(HOME, "shard"), 0, 1, (snapshot,)))
        file.backup_to(tmp_path / "backup.db")
        with pytest.raises(Unavailable):
            file.backup_to(tmp_path / "backup.db")
        journal.append([document("i1")])
    with SqliteFile(tmp_path / "backup.db") as copy:
        assert SqliteJournal(copy).end_positions()[HOME] == 1
        assert SqliteSnapshotStore(copy).load(OWNER) == snapshot


def test_a_row_that_lies_about_its_owner_is_found(path):
    with SqliteFile(path) as file:
        store = SqliteSnapshotStore(file)
        store.commit(Commit(store.acquire(HOME, "shard"), 0, 1, (Snapshot.seal(OWNER, "core-1", 1, b"memory"),)))
        with file.writing(0) as connection:
            connection.execute("UPDATE snapshot SET user = 'eve'")
        with pytest.raises(Corrupt):
            store.load(OWNER)


@pytest.mark.parametrize("table", ["snapshot", "snapshot_blob", "parked", "journal_record", "partition"])
def test_a_row_that_vanished_is_missed(path, table):
    with SqliteFile(path) as file:
        journal, store = SqliteJournal(file), SqliteSnapshotStore(file)
        journal.append([document("i0")])
        parked = Parked(HOME, 0, OWNER, "i0", ParkReason.EMPTY, "", b"")
        snapshot = Snapshot.seal(OWNER, "core-1", 1, b"memory")
        store.commit(Commit(store.acquire(HOME, "shard"), 0, 1, (snapshot,), (parked,)))
        plain = sqlite3.connect(path, isolation_level=None)
        plain.execute(f"DELETE FROM {table}")
        plain.close()
        with pytest.raises(Corrupt):
            _ = store.load(OWNER), list(store.parked()), journal.read(HOME, 0, 9), store.position(HOME)


def test_the_file_says_whose_it_is(path):
    SqliteFile(path).close()
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
