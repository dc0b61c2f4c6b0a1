"""The embedded journal: interactions in a SQLite file, in the order in which they were appended."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from siltstone.adapters.fingerprint import fingerprint, verify
from siltstone.adapters.seal_contexts import journal_context
from siltstone.adapters.sqlite_file import PAGE_BYTES, SqliteFile
from siltstone.adapters.sqlite_partitions import PartitionRow, read_partition, write_partition
from siltstone.errors import Corrupt
from siltstone.journal.admit import encode
from siltstone.journal.partition import partition_of
from siltstone.values import Interaction, JournalRecord, Parked, Receipt, UserKey

_COLUMNS = "partition, position, tenant, user, interaction_id, payload, digest"
_ALL: Final = 1 << 30
_PAGES_PER_RECORD = 3
"""Pages an append touches: the record's, the index's and the partition's."""


class SqliteJournal:
    """`ports.Journal` in one file. An erased record keeps its place and its id, with an empty payload."""

    def __init__(self, file: SqliteFile) -> None:
        self._file = file
        self._sealer = file.sealer
        self._num_partitions = file.config.num_partitions

    def append(self, interactions: Sequence[Interaction]) -> list[Receipt]:
        """See `ports.Journal.append`.

        Raises: InvalidInput when a text cannot be written as UTF-8: nothing was written. Corrupt.
        """
        payloads = [encode(interaction) for interaction in interactions]
        if not payloads:
            return []
        self._sealer.prepare([interaction.owner for interaction in interactions])
        payloads = [
            self._sealer.seal(interaction.owner, journal_context(interaction.id), payload)
            for interaction, payload in zip(interactions, payloads, strict=True)
        ]
        num_bytes = sum(map(len, payloads)) + _PAGES_PER_RECORD * PAGE_BYTES
        with self._file.writing(num_bytes) as connection:
            rows: dict[int, PartitionRow] = {}
            receipts = []
            for interaction, payload in zip(interactions, payloads, strict=True):
                partition = partition_of(interaction.owner, self._num_partitions)
                if (earlier := _find(connection, interaction)) is not None:
                    receipts.append(Receipt(interaction.id, earlier.partition, earlier.position, duplicate=True))
                    continue
                row = rows.get(partition) or read_partition(connection, partition)
                owner = interaction.owner
                fields = (partition, row.end_position, owner.tenant, owner.user, interaction.id, payload)
                connection.execute(
                    f"INSERT INTO journal_record ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (*fields, fingerprint(*fields)),
                )
                receipts.append(Receipt(interaction.id, partition, row.end_position, duplicate=False))
                rows[partition] = replace(row, end_position=row.end_position + 1)
            for row in rows.values():
                write_partition(connection, row)
        return receipts

    look_every_s = 0.0
    """See `ports.Journal.look_every_s`: only its own process appends to the file."""

    def follow(self, positions: Mapping[int, int]) -> None:
        """See `ports.Journal.follow`: nothing is to be fetched."""

    def leave(self, partitions: Sequence[int]) -> None:
        """See `ports.Journal.leave`."""

    def ready(self, positions: Mapping[int, int]) -> dict[int, int]:
        """See `ports.Journal.ready`: a read waits for nothing."""
        return dict.fromkeys(positions, _ALL)

    def overdue(self, positions: Mapping[int, int], now_ms: int) -> list[int]:
        """See `ports.Journal.overdue`: everything is kept."""
        return []

    def park(self, parked: Sequence[Parked]) -> None:
        """See `ports.Journal.park`: nobody else reads the file."""

    def read(self, partition: int, start: int, max_records: int) -> list[JournalRecord]:
        """See `ports.Journal.read`.

        Raises: InvalidInput for a partition that does not exist. Corrupt also when a record is missing.
        """
        self._file.check_partition(partition)
        with self._file.reading() as connection:
            end_position = read_partition(connection, partition).end_position
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM journal_record WHERE partition = ? AND position >= ?"
                " ORDER BY position LIMIT ?",
                (partition, start, max(max_records, 0)),
            ).fetchall()
        records = [_verified(row) for row in rows]
        expected = list(range(max(start, 0), min(max(start, 0) + max(max_records, 0), end_position)))
        if (found := [record.position for record in records]) != expected:
            missing = next(iter(set(expected) ^ set(found)))
            raise Corrupt(f"partition {partition}", f"positions up to {end_position}, without gaps", f"not {missing}")
        return [self._opened(record) for record in records]

    def _opened(self, record: JournalRecord) -> JournalRecord:
        if not record.payload:
            return record
        what = f"record {record.position} of partition {record.partition}"
        payload = self._sealer.open(what, record.owner, journal_context(record.interaction_id), record.payload)
        return replace(record, payload=payload or b"")

    def start_positions(self) -> dict[int, int]:
        """See `ports.Journal.start_positions`: everything is kept."""
        return dict.fromkeys(range(self._num_partitions), 0)

    def end_positions(self) -> dict[int, int]:
        """See `ports.Journal.end_positions`."""
        with self._file.reading() as connection:
            return {
                partition: read_partition(connection, partition).end_position
                for partition in range(self._num_partitions)
            }

    def erase(self, owner: UserKey) -> int:
        """See `ports.Journal.erase`: zero when there is nothing left to erase.

        Raises: Unavailable also when the bytes are deleted but still in the log, or the key is still there: call again.
        """
        with self._file.writing(PAGE_BYTES) as connection:
            rows = connection.execute(
                "SELECT partition, position, interaction_id FROM journal_record"
                " WHERE tenant = ? AND user = ? AND payload != x''",
                (owner.tenant, owner.user),
            ).fetchall()
            for partition, position, interaction_id in rows:
                digest = fingerprint(partition, position, owner.tenant, owner.user, interaction_id, b"")
                connection.execute(
                    "UPDATE journal_record SET payload = x'', digest = ? WHERE partition = ? AND position = ?",
                    (digest, partition, position),
                )
        self._file.scrub()
        # Copies of the file made before hold what was deleted, but not the key to it.
        self._sealer.forget(owner)
        return len(rows)


def _find(connection: sqlite3.Connection, interaction: Interaction) -> JournalRecord | None:
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM journal_record WHERE tenant = ? AND user = ? AND interaction_id = ?",
        (interaction.owner.tenant, interaction.owner.user, interaction.id),
    ).fetchone()
    return None if row is None else _verified(row)


def _verified(row: tuple[int, int, str, str, str, bytes, bytes]) -> JournalRecord:
    *fields, digest = row
    partition, position, tenant, user, interaction_id, payload, _ = row
    verify(f"record {position} of partition {partition}", digest, *fields)
    return JournalRecord(partition, position, UserKey(tenant, user), interaction_id, payload)
