"""The row of a partition: where its journal ends, how far it was absorbed, and who may write it."""

from __future__ import annotations

import sqlite3
from dataclasses import astuple, dataclass

from siltstone.adapters.fingerprint import fingerprint, verify
from siltstone.errors import Corrupt


@dataclass(frozen=True, slots=True)
class PartitionRow:
    """What the file knows of a partition. The counts tell a reader of the tables when rows are missing."""

    partition: int
    end_position: int
    next_position: int
    epoch: int
    holder: str
    num_snapshots: int
    num_parked: int


def read_partition(connection: sqlite3.Connection, partition: int) -> PartitionRow:
    """Returns the verified row of a partition.

    Raises: Corrupt.
    """
    row = connection.execute("SELECT * FROM partition WHERE partition = ?", (partition,)).fetchone()
    if row is None:
        raise Corrupt(f"partition {partition}", "a row", "none")
    *fields, digest = row
    verify(f"partition {partition}", digest, *fields)
    return PartitionRow(*fields)


def write_partition(connection: sqlite3.Connection, row: PartitionRow) -> None:
    """Replaces the row of a partition."""
    fields = astuple(row)
    connection.execute("REPLACE INTO partition VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*fields, fingerprint(*fields)))
