"""The tables of the embedded file, its version, and the way from one version to the next."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from typing import Final

from siltstone.adapters.fingerprint import fingerprint, verify
from siltstone.errors import ConfigInvalid, Corrupt

FILE_SCHEMA_VERSION: Final = 2

APPLICATION_ID: Final = 0x53494C54
"""`SILT`: marks the file as ours in its first page."""

Migration = Callable[[sqlite3.Connection], None]

_TAKEN_IN: Final = """CREATE TABLE taken_in (
        partition INTEGER NOT NULL, position INTEGER NOT NULL, id_digest BLOB NOT NULL, digest BLOB NOT NULL,
        PRIMARY KEY (partition, position), UNIQUE (partition, id_digest)
    ) WITHOUT ROWID"""

MIGRATIONS: Final[Mapping[int, Migration]] = {1: lambda connection: _to_version_2(connection)}
"""For every older file version, the step that turns it into the next. All steps run in one transaction."""

# The blobs have a table of their own, so that the rows beside them stay dense, and a row keyed by an integer is found
# in one descent. Their size rarely changes, and SQLite overwrites a row of the same size in place.
_TABLES: Final = (
    """CREATE TABLE file_property (
        name TEXT PRIMARY KEY, value INTEGER NOT NULL, digest BLOB NOT NULL
    ) WITHOUT ROWID""",
    """CREATE TABLE partition (
        partition INTEGER PRIMARY KEY, end_position INTEGER NOT NULL, next_position INTEGER NOT NULL,
        epoch INTEGER NOT NULL, holder TEXT NOT NULL, num_snapshots INTEGER NOT NULL, num_parked INTEGER NOT NULL,
        digest BLOB NOT NULL
    )""",
    """CREATE TABLE journal_record (
        partition INTEGER NOT NULL, position INTEGER NOT NULL,
        tenant TEXT NOT NULL, user TEXT NOT NULL, interaction_id TEXT NOT NULL,
        payload BLOB NOT NULL, digest BLOB NOT NULL,
        PRIMARY KEY (partition, position), UNIQUE (tenant, user, interaction_id)
    ) WITHOUT ROWID""",
    """CREATE TABLE snapshot (
        owner_row INTEGER PRIMARY KEY, tenant TEXT NOT NULL, user TEXT NOT NULL, core TEXT NOT NULL,
        sequence INTEGER NOT NULL, blob_digest TEXT NOT NULL, digest BLOB NOT NULL
    )""",
    """CREATE TABLE snapshot_blob (
        owner_row INTEGER PRIMARY KEY REFERENCES snapshot (owner_row), blob BLOB NOT NULL
    )""",
    """CREATE TABLE parked (
        parked_row INTEGER PRIMARY KEY, partition INTEGER NOT NULL, position INTEGER NOT NULL,
        tenant TEXT NOT NULL, user TEXT NOT NULL, interaction_id TEXT NOT NULL,
        reason TEXT NOT NULL, detail TEXT NOT NULL, payload_digest BLOB NOT NULL, digest BLOB NOT NULL,
        payload BLOB NOT NULL
    )""",
    _TAKEN_IN,
)


def prepare(
    connection: sqlite3.Connection,
    num_partitions: int,
    newest_version: int = FILE_SCHEMA_VERSION,
    migrations: Mapping[int, Migration] = MIGRATIONS,
    *,
    is_sealed: bool = False,
) -> None:
    """Creates the tables, or brings those of an older version up to date, inside the caller's transaction.

    Raises: ConfigInvalid when the file is another program's, newer than this code, has another number of partitions,
    or is sealed and should not be, or the reverse.
    """
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (num_tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application_id == 0 and num_tables == 0:
        _create(connection, num_partitions, is_sealed)
    elif application_id != APPLICATION_ID:
        raise ConfigInvalid("store", f"expected a file of Siltstone, found application id {application_id:#x}")
    version = _read_property(connection, "schema_version")
    if version > newest_version:
        raise ConfigInvalid("store", f"expected file version {newest_version} or older, found {version}")
    for older in range(version, newest_version):
        migrations[older](connection)
        _write_property(connection, "schema_version", older + 1)
    if (found := _read_property(connection, "num_partitions")) != num_partitions:
        raise ConfigInvalid("store", f"expected {num_partitions} partitions, found a file with {found}")
    if bool(_read_property(connection, "is_sealed")) != is_sealed:
        wanted, found_so = ("sealed", "one in the clear") if is_sealed else ("in the clear", "a sealed one")
        raise ConfigInvalid("store", f"expected a file whose content is {wanted}, found {found_so}")


def _create(connection: sqlite3.Connection, num_partitions: int, is_sealed: bool) -> None:
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    for table in _TABLES:
        connection.execute(table)
    _write_property(connection, "schema_version", FILE_SCHEMA_VERSION)
    _write_property(connection, "num_partitions", num_partitions)
    _write_property(connection, "is_sealed", int(is_sealed))
    for partition in range(num_partitions):
        fields = (partition, 0, 0, 0, "", 0, 0)
        connection.execute("INSERT INTO partition VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*fields, fingerprint(*fields)))


def _to_version_2(connection: sqlite3.Connection) -> None:
    connection.execute(_TAKEN_IN)
    _write_property(connection, "is_sealed", 0)


def _read_property(connection: sqlite3.Connection, name: str) -> int:
    row = connection.execute("SELECT value, digest FROM file_property WHERE name = ?", (name,)).fetchone()
    if row is None:
        raise Corrupt("the store", f"the property {name}", "none")
    verify(f"the store's {name}", row[1], name, row[0])
    value: int = row[0]
    return value


def _write_property(connection: sqlite3.Connection, name: str, value: int) -> None:
    row = (name, value, fingerprint(name, value))
    connection.execute("INSERT OR REPLACE INTO file_property VALUES (?, ?, ?)", row)
