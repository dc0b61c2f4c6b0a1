"""The master key, and the embedded file when it is sealed."""

from __future__ import annotations

import base64
import os
import sqlite3
import stat
import sys
from contextlib import ExitStack
from dataclasses import replace

import pytest

from siltstone.adapters.aes_gcm_sealer import AesGcmSealer
from siltstone.adapters.master_key import make_key, open_master_key
from siltstone.adapters.sealing_config import SealingConfig
from siltstone.adapters.sqlite_file import SqliteConfig, SqliteFile
from siltstone.adapters.sqlite_journal import SqliteJournal
from siltstone.adapters.sqlite_key_vault import SqliteKeyVault
from siltstone.adapters.sqlite_snapshots import SqliteSnapshotStore
from siltstone.config.reading import read_config
from siltstone.config.schema import describe_schema
from siltstone.errors import ConfigInvalid, Corrupt, Unavailable
from siltstone.journal.admit import decode
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

ADA = UserKey("office", "ada")
ONE = SqliteConfig(num_partitions=1)
MARKER = "Pickle comes on Fridays"
KEEPER = """import sys
data = sys.stdin.buffer.read()
if sys.argv[1] == "wrap": sys.stdout.buffer.write(b"kept:" + data[::-1])
elif data.startswith(b"kept:"): sys.stdout.buffer.write(data[5:][::-1])
else: sys.exit(3)
"""


@pytest.fixture
def master(tmp_path):
    path = tmp_path / "master.key"
    path.write_text(base64.b64encode(os.urandom(32)).decode() + "\n")
    return open_master_key(SealingConfig(master_key_file=str(path)))


def said(number):
    return Interaction(f"i{number}", ADA, InteractionKind.DOCUMENT, 1, (Message(Role.USER, MARKER),))


def fill(path, sealer):
    with SqliteFile(path, ONE, sealer) as file:
        journal, store = SqliteJournal(file), SqliteSnapshotStore(file)
        journal.append([said(number) for number in range(3)])
        parked = Parked(0, 1, ADA, "i1", ParkReason.EMPTY, "none", MARKER.encode())
        snapshot = Snapshot.seal(ADA, "core-1", 1, MARKER.encode() * 100)
        store.commit(Commit(store.acquire(0, "shard"), 0, 3, (snapshot,), (parked,)))
        return snapshot, parked


def bytes_beside(path):
    return b"".join(part.read_bytes() for part in path.parent.glob(f"{path.name}*"))


def test_a_sealed_file_holds_no_word_of_what_was_said_and_a_plain_one_does(tmp_path, master):
    fill(tmp_path / "plain.db", None)
    assert MARKER.encode() in bytes_beside(tmp_path / "plain.db")
    with SqliteKeyVault(tmp_path / "keys.db", master) as vault:
        snapshot, parked = fill(tmp_path / "sealed.db", AesGcmSealer(vault))
        assert MARKER.encode() not in bytes_beside(tmp_path / "sealed.db")
        with SqliteFile(tmp_path / "sealed.db", ONE, AesGcmSealer(vault)) as file:
            store = SqliteSnapshotStore(file)
            assert store.load(ADA) == snapshot
            assert list(store.parked()) == [parked]
            assert decode(SqliteJournal(file).read(0, 0, 1)[0].payload) == said(0)


def test_a_copy_made_before_a_user_was_forgotten_holds_nothing_that_can_be_read(tmp_path, master):
    with SqliteKeyVault(tmp_path / "keys.db", master) as vault:
        sealer = AesGcmSealer(vault)
        fill(tmp_path / "siltstone.db", sealer)
        with SqliteFile(tmp_path / "siltstone.db", ONE, sealer) as file:
            file.backup_to(tmp_path / "backup.db")
            store = SqliteSnapshotStore(file)
            assert store.erase(ADA, store.acquire(0, "shard"))
            assert SqliteJournal(file).erase(ADA) == 3
        with SqliteFile(tmp_path / "backup.db", ONE, AesGcmSealer(vault)) as file:
            store = SqliteSnapshotStore(file)
            assert store.load(ADA) is None
            assert [record.payload for record in SqliteJournal(file).read(0, 0, 10)] == [b""] * 3
            assert [parked.payload for parked in store.parked()] == [b""]
            # The user starts anew, in the copy as well.
            snapshot = Snapshot.seal(ADA, "core-1", 1, b"new")
            store.commit(Commit(store.acquire(0, "shard"), 3, 4, (snapshot,)))
            assert store.load(ADA) == snapshot


def test_a_copy_without_its_vault_is_damaged_not_empty(tmp_path, master):
    with SqliteKeyVault(tmp_path / "keys.db", master) as vault:
        fill(tmp_path / "siltstone.db", AesGcmSealer(vault))
    with ExitStack() as stack:
        vault = stack.enter_context(SqliteKeyVault(tmp_path / "others.db", master))
        file = stack.enter_context(SqliteFile(tmp_path / "siltstone.db", ONE, AesGcmSealer(vault)))
        with pytest.raises(Corrupt, match="neither"):
            SqliteSnapshotStore(file).load(ADA)
        with pytest.raises(Corrupt, match="neither"):
            SqliteJournal(file).read(0, 0, 10)


def test_a_plain_file_is_not_taken_for_a_sealed_one_nor_the_reverse(tmp_path, master):
    with SqliteKeyVault(tmp_path / "keys.db", master) as vault:
        SqliteFile(tmp_path / "plain.db", ONE).close()
        with pytest.raises(ConfigInvalid, match="expected a file whose content is sealed"):
            SqliteFile(tmp_path / "plain.db", ONE, AesGcmSealer(vault))
        SqliteFile(tmp_path / "sealed.db", ONE, AesGcmSealer(vault)).close()
        with pytest.raises(ConfigInvalid, match="in the clear, found a sealed one"):
            SqliteFile(tmp_path / "sealed.db", ONE)


def test_a_destroyed_key_is_on_no_page_of_the_vault_and_the_vault_is_private(tmp_path, master):
    path = tmp_path / "keys" / "users.db"
    with SqliteKeyVault(path, master) as vault:
        (key,) = vault.current([ADA])
        reader = sqlite3.connect(path)
        (wrapped,) = reader.execute("SELECT wrapped FROM user_key").fetchone()
        reader.close()
        assert key.secret not in bytes_beside(path)
        assert wrapped in bytes_beside(path)
        vault.destroy(ADA)
        assert wrapped not in bytes_beside(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_damaged_row_of_the_vault_is_found(tmp_path, master):
    path = tmp_path / "keys.db"
    with SqliteKeyVault(path, master) as vault:
        (key,) = vault.current([ADA])
    connection = sqlite3.connect(path)
    connection.execute("UPDATE user_key SET wrapped = x''")
    connection.commit()
    connection.close()
    with SqliteKeyVault(path, master) as vault:
        for call in (lambda: vault.find(ADA, key.name), lambda: vault.current([ADA])):
            with pytest.raises(Corrupt):
                call()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(ConfigInvalid, match="vault version"):
        SqliteKeyVault(path, master)


def test_a_wrapped_key_of_another_user_is_not_taken(master):
    key = make_key()
    wrapped = master.wrap_key(ADA, key)
    assert master.unwrap_key(ADA, key.name, wrapped) == key
    for owner, name in [(UserKey("office", "bob"), key.name), (ADA, "00" * 8)]:
        with pytest.raises(Corrupt):
            master.unwrap_key(owner, name, wrapped)
    with pytest.raises(Corrupt):
        master.unwrap_key(ADA, key.name, wrapped[:-1])
    assert key.secret.hex() not in repr(key)
    assert "secret" not in repr(key)


def test_a_program_can_keep_the_master_key(tmp_path):
    (tmp_path / "keeper.py").write_text(KEEPER)
    command = (sys.executable, str(tmp_path / "keeper.py"))
    master = open_master_key(SealingConfig(master_command=command))
    key = make_key()
    wrapped = master.wrap_key(ADA, key)
    assert wrapped.startswith(b"kept:")
    assert master.unwrap_key(ADA, key.name, wrapped) == key
    with pytest.raises(Unavailable):
        master.unwrap_key(ADA, key.name, b"other")
    with pytest.raises(Unavailable):
        open_master_key(SealingConfig(master_command=("/no/such/program",))).wrap_key(ADA, key)


def test_a_program_takes_over_from_a_file_and_the_reverse(tmp_path, master):
    (tmp_path / "keeper.py").write_text(KEEPER)
    program = open_master_key(SealingConfig(master_command=(sys.executable, str(tmp_path / "keeper.py"))))
    key = make_key()
    for old, new in ((master, program), (program, master)):
        wrapped = old.wrap_key(ADA, key)
        changing = replace(new, previous=old)
        anew = changing.rewrap_key(ADA, key.name, wrapped)
        assert changing.unwrap_key(ADA, key.name, wrapped) == key
        assert new.unwrap_key(ADA, key.name, anew) == key
        assert changing.rewrap_key(ADA, key.name, anew) is None
    away = open_master_key(SealingConfig(master_command=("/no/such/program",)))
    with pytest.raises(Unavailable):
        replace(away, previous=master).unwrap_key(ADA, key.name, program.wrap_key(ADA, key))


def test_the_previous_master_key_is_another_one(tmp_path, monkeypatch):
    for name, byte in (("OLD", 1), ("NEW", 2)):
        monkeypatch.setenv(name, base64.b64encode(bytes([byte]) * 32).decode())
    assert open_master_key(SealingConfig(master_key_variable="NEW")).previous is None
    assert open_master_key(SealingConfig(master_key_variable="NEW", previous_key_variable="OLD")).previous
    with pytest.raises(ConfigInvalid, match="found the same"):
        open_master_key(SealingConfig(master_key_variable="NEW", previous_key_variable="NEW"))
    with pytest.raises(ConfigInvalid, match="NOT_THERE"):
        open_master_key(SealingConfig(master_key_variable="NEW", previous_key_variable="NOT_THERE"))


@pytest.mark.parametrize("text", ["", "hush", base64.b64encode(bytes(16)).decode(), "hush" * 11 + "\n"])
def test_what_is_no_master_key_is_refused_and_not_shown(tmp_path, text):
    (tmp_path / "master.key").write_text(text)
    with pytest.raises(ConfigInvalid) as caught:
        open_master_key(SealingConfig(master_key_file=str(tmp_path / "master.key")))
    assert "hush" not in str(caught.value)


def test_a_sealing_configuration_names_one_master_key_or_none():
    assert not SealingConfig().is_on
    config = read_config(SealingConfig, {"master_command": ["kms", "--key", "7"]})
    assert (config.is_on, config.master_command) == (True, ("kms", "--key", "7"))
    assert "master_key_file" in describe_schema(SealingConfig)["properties"]
    for wrong in (
        {"master_key_file": "a", "master_key_variable": "b"},
        {"master_key_file": "a", "previous_key_file": "b", "previous_key_variable": "c"},
        {"previous_key_file": "b"},
        {"max_cached_keys": 0},
        {"cached_for_s": -1.0},
        {"command_timeout_s": 0.0},
    ):
        with pytest.raises(ConfigInvalid):
            read_config(SealingConfig, wrong)
    with pytest.raises(ConfigInvalid, match="none named"):
        open_master_key(SealingConfig())
