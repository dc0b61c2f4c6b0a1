"""The tables of the registry's file: versions, the head with the champion, the history; every row has its digest."""

from __future__ import annotations

import sqlite3
from dataclasses import astuple, dataclass
from typing import Final

from siltstone.adapters.fingerprint import fingerprint, verify
from siltstone.adapters.version_json import read_lineage, read_verdict, write_lineage, write_verdict
from siltstone.errors import ConfigInvalid, Corrupt, NotFound
from siltstone.sleep_values import Champion, CoreVersion, VersionMove, VersionState

APPLICATION_ID: Final = 0x53494C56
"""`SILV`: marks the file as a registry of ours."""

SCHEMA_VERSION: Final = 1

_TABLES: Final = (
    """CREATE TABLE version (
        number INTEGER PRIMARY KEY, core TEXT NOT NULL, state TEXT NOT NULL, lineage BLOB NOT NULL,
        created_ms INTEGER NOT NULL, evidence_digest TEXT NOT NULL, verdict BLOB NOT NULL,
        first_served_epoch INTEGER NOT NULL, seal TEXT NOT NULL, digest BLOB NOT NULL
    )""",
    """CREATE TABLE head (
        one INTEGER PRIMARY KEY CHECK (one = 1), number INTEGER NOT NULL, core TEXT NOT NULL, epoch INTEGER NOT NULL,
        num_versions INTEGER NOT NULL, num_moves INTEGER NOT NULL, last_move BLOB NOT NULL, digest BLOB NOT NULL
    )""",
    """CREATE TABLE move (
        sequence INTEGER PRIMARY KEY, number INTEGER NOT NULL, core TEXT NOT NULL, before TEXT NOT NULL,
        after TEXT NOT NULL, epoch INTEGER NOT NULL, moved_at_ms INTEGER NOT NULL, digest BLOB NOT NULL
    )""",
    "CREATE TRIGGER move_stays BEFORE UPDATE ON move BEGIN SELECT RAISE(ABORT, 'history is only added to'); END",
    "CREATE TRIGGER move_is_kept BEFORE DELETE ON move BEGIN SELECT RAISE(ABORT, 'history is only added to'); END",
)


@dataclass(frozen=True, slots=True)
class Head:
    """The champion (number 0: none yet), and how many versions and moves there are, so that a missing row is noticed.

    `last_move` is the digest of the newest move, which covers the one before it, and so all of them.
    """

    number: int = 0
    core: str = ""
    epoch: int = 0
    num_versions: int = 0
    num_moves: int = 0
    last_move: bytes = b""

    @property
    def champion(self) -> Champion | None:
        """The version that serves."""
        return Champion(self.number, self.core, self.epoch) if self.epoch else None


def prepare(connection: sqlite3.Connection) -> None:
    """Creates the tables in a new file, inside the caller's transaction.

    Raises: ConfigInvalid when the file is another program's or newer than this code.
    """
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (num_tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application_id == 0 and num_tables == 0:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        for table in _TABLES:
            connection.execute(table)
        write_head(connection, Head())
    elif application_id != APPLICATION_ID:
        raise ConfigInvalid(
            "the registry", f"expected a registry of Siltstone, found application id {application_id:#x}"
        )
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version != SCHEMA_VERSION:
        raise ConfigInvalid("the registry", f"expected file version {SCHEMA_VERSION}, found {version}")


def read_head(connection: sqlite3.Connection) -> Head:
    """Returns the verified head.

    Raises: Corrupt.
    """
    row = connection.execute("SELECT * FROM head").fetchone()
    if row is None:
        raise Corrupt("the registry", "a head", "none")
    _, *fields, digest = row
    verify("the registry's head", digest, *fields)
    return Head(*fields)


def write_head(connection: sqlite3.Connection, head: Head) -> None:
    """Replaces the head."""
    fields = astuple(head)
    connection.execute("REPLACE INTO head VALUES (1, ?, ?, ?, ?, ?, ?, ?)", (*fields, fingerprint(*fields)))


def read_version(connection: sqlite3.Connection, number: int) -> CoreVersion:
    """Returns a verified version.

    Raises: NotFound; Corrupt.
    """
    row = connection.execute("SELECT * FROM version WHERE number = ?", (number,)).fetchone()
    if row is None:
        if 1 <= number <= read_head(connection).num_versions:
            raise Corrupt(f"version {number}", "a row", "none")
        raise NotFound("version", str(number))
    return _parse_version(row)


def read_versions(connection: sqlite3.Connection) -> tuple[CoreVersion, ...]:
    """Returns every version, by number.

    Raises: Corrupt, also when one is missing.
    """
    versions = tuple(map(_parse_version, connection.execute("SELECT * FROM version ORDER BY number")))
    expected = list(range(1, read_head(connection).num_versions + 1))
    if (found := [version.number for version in versions]) != expected:
        raise Corrupt("the registry", f"versions 1 to {len(expected)}", f"{len(found)} of them")
    return versions


def write_version(connection: sqlite3.Connection, version: CoreVersion) -> None:
    """Writes a version over what was there."""
    fields = (
        version.number,
        version.digest,
        version.state.value,
        write_lineage(version.lineage),
        version.created_ms,
        version.evidence_digest,
        write_verdict(version.verdict) if version.verdict else b"",
        version.first_served_epoch,
        version.seal,
    )
    connection.execute("REPLACE INTO version VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*fields, fingerprint(*fields)))


def add_move(connection: sqlite3.Connection, head: Head, move: VersionMove) -> bytes:
    """Adds a line after the last one the head knows and returns its digest, for the head."""
    fields = _move_fields(move)
    digest = fingerprint(head.last_move, *fields)
    connection.execute("INSERT INTO move VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (head.num_moves + 1, *fields, digest))
    return digest


def read_moves(connection: sqlite3.Connection) -> tuple[VersionMove, ...]:
    """Returns the history, oldest first.

    Raises: Corrupt when a line is missing, was changed, or stands in another order.
    """
    head, last, moves = read_head(connection), b"", []
    for sequence, *fields, digest in connection.execute("SELECT * FROM move ORDER BY sequence"):
        verify(f"line {sequence} of the history", digest, last, *fields)
        number, core, before, after, epoch, moved_at_ms = fields
        came_from = VersionState(before) if before else None
        moves.append(VersionMove(number, core, came_from, VersionState(after), epoch, moved_at_ms))
        last = digest
    if (len(moves), last) != (head.num_moves, head.last_move):
        raise Corrupt("the history", f"{head.num_moves} lines", f"{len(moves)}")
    return tuple(moves)


def _move_fields(move: VersionMove) -> tuple[int, str, str, str, int, int]:
    before = move.before.value if move.before else ""
    return (move.number, move.digest, before, move.after.value, move.epoch, move.moved_at_ms)


def _parse_version(row: tuple[int, str, str, bytes, int, str, bytes, int, str, bytes]) -> CoreVersion:
    *fields, digest = row
    verify(f"version {row[0]}", digest, *fields)
    number, core, state, lineage, created_ms, evidence_digest, verdict, first_served_epoch, seal, _ = row
    return CoreVersion(
        number,
        core,
        VersionState(state),
        read_lineage(lineage),
        created_ms,
        evidence_digest,
        read_verdict(verdict) if verdict else None,
        first_served_epoch,
        seal,
    )
