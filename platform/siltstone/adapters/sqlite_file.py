"""One SQLite file: its connections, its single writer, its write-ahead log."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from siltstone.adapters.sqlite_schema import prepare
from siltstone.adapters.unsealed import Unsealed
from siltstone.errors import ConfigInvalid, Corrupt, InvalidInput, Unavailable
from siltstone.ports import Sealer

_TRY_LATER: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_READONLY,
    }
)
"""Primary result codes that say nothing about the stored bytes. Any other error of the database does."""

PAGE_BYTES: Final = 32_768
"""Measured: pages of 4 KiB read a 625 KB blob a fifth slower, pages of 64 KiB double what a small append writes."""

_READ_CACHE_KIB: Final = 2_048


@dataclass(frozen=True, slots=True)
class SqliteConfig:
    """How the embedded file is kept."""

    num_partitions: int = 16
    """Partitions of the journal, fixed when the file is made."""
    busy_timeout_ms: int = 5_000
    """How long a write waits for another process's write."""
    checkpoint_after_bytes: int = 16 * 1024 * 1024
    """Bytes written to the log after which they are moved into the file, in the background."""
    id_window: int = 4_096
    """Positions behind a partition's committed one within which a repeated interaction id is known as one."""


class SqliteFile:
    """One file that holds the journal and the snapshots, safe for the threads of a process and for many processes.

    One connection writes, under a lock; readers have connections of their own and never wait for it. Memory mapping
    stays off: an I/O error would be a SIGBUS instead of an error.
    """

    def __init__(self, path: Path, config: SqliteConfig | None = None, sealer: Sealer | None = None) -> None:
        """Opens the file, or makes it, readable by this user only. With a sealer, what users say is sealed in it.

        Raises: ConfigInvalid when the file cannot be used by this code or this configuration; Corrupt; Unavailable.
        """
        self.config = config or SqliteConfig()
        if not 1 <= self.config.num_partitions <= 1 << 16:
            raise ConfigInvalid("store", f"num_partitions: expected 1 to 65536, found {self.config.num_partitions}")
        self.path = path
        self.sealer: Sealer = Unsealed() if sealer is None else sealer
        self._write_lock = threading.Lock()
        self._idle_readers: deque[sqlite3.Connection] = deque()
        self._closed = False
        self._unmoved_bytes = 0
        self._wake = threading.Event()
        with translated():
            _create_private(path)
            self._writer = self._connect()
            try:
                self._enter_wal_mode()
                with self.writing(0) as connection:
                    prepare(connection, self.config.num_partitions, is_sealed=sealer is not None)
                mover_connection = self._connect()
            except BaseException:
                self._writer.close()
                raise
        self._mover = threading.Thread(
            target=self._move_log, args=(mover_connection,), name="siltstone-checkpoint", daemon=True
        )
        self._mover.start()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Gives a connection inside one read transaction: all its reads see the same commit."""
        with translated():
            try:
                connection = self._idle_readers.pop()
            except IndexError:
                connection = self._connect()
            try:
                self._refuse_closed()
                connection.execute("BEGIN")
                yield connection
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                if self._closed:
                    connection.close()
                else:
                    self._idle_readers.append(connection)

    @contextmanager
    def writing(self, estimated_bytes: int) -> Iterator[sqlite3.Connection]:
        """Gives the writing connection inside one transaction: durable when the block ends, undone when it raises."""
        with self._write_lock, translated():
            self._refuse_closed()
            connection = self._writer
            try:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                # SQLite has already undone the transaction after some errors.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            self._unmoved_bytes += estimated_bytes
            if self._unmoved_bytes >= self.config.checkpoint_after_bytes:
                self._wake.set()

    def scrub(self) -> None:
        """Moves the whole log into the file and empties it, so that bytes deleted before are on no page of either.

        Raises: Unavailable when a reader kept the log in use; what was deleted stays deleted, call again.
        """
        with self._write_lock, translated():
            self._refuse_closed()
            (busy, _, _) = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if busy:
                raise Unavailable("the store", "the log is in use and still holds erased bytes")
            self._unmoved_bytes = 0

    def backup_to(self, path: Path) -> None:
        """Copies the file as it is at one commit, while reads and writes go on. `path` must not exist yet."""
        with translated():
            _create_private(path, new=True)
            source, target = self._connect(), sqlite3.connect(path, isolation_level=None)
            try:
                source.backup(target)
            finally:
                target.close()
                source.close()
            _sync(path)
            _sync(path.parent)

    def check_partition(self, partition: int) -> None:
        """Raises InvalidInput for a partition this file does not have."""
        if not 0 <= partition < self.config.num_partitions:
            raise InvalidInput("partition", f"0 to {self.config.num_partitions - 1}", str(partition))

    def close(self) -> None:
        """Ends the background thread and closes the connections. A second call does nothing."""
        with self._write_lock:
            if self._closed:
                return
            self._closed = True
        self._wake.set()
        self._mover.join()
        while self._idle_readers:
            self._idle_readers.pop().close()
        self._writer.close()

    def __enter__(self) -> SqliteFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=self.config.busy_timeout_ms / 1000, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute("PRAGMA cell_size_check = ON")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute(f"PRAGMA cache_size = -{_READ_CACHE_KIB}")
        return connection

    def _enter_wal_mode(self) -> None:
        self._writer.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        deadline_s = time.monotonic() + self.config.busy_timeout_ms / 1000
        while True:
            try:
                # SQLite does not wait for a lock here by itself, whatever the timeout is.
                (mode,) = self._writer.execute("PRAGMA journal_mode = WAL").fetchone()
                break
            except sqlite3.OperationalError as error:
                if _primary_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline_s:
                    raise
                time.sleep(0.01)
        if mode != "wal":
            raise ConfigInvalid("store", f"expected a file system that can hold a write-ahead log, found mode {mode}")

    def _refuse_closed(self) -> None:
        if self._closed:
            raise Unavailable("the store", "it was closed")

    def _move_log(self, connection: sqlite3.Connection) -> None:
        try:
            while self._wake.wait() and not self._closed:
                self._wake.clear()
                # The lock failing, or the disk being full, is no loss: the log stays, and the next write wakes us.
                with suppress(sqlite3.Error):
                    # The bulk is moved while commits go on. Only the rest, what came meanwhile, is moved with the
                    # writer held, so that the log is all moved once and starts again from its beginning.
                    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                    with self._write_lock:
                        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                        self._unmoved_bytes = 0
        finally:
            connection.close()


@contextmanager
def translated() -> Iterator[None]:
    """Turns the errors of the database and the operating system into ours."""
    try:
        yield
    except sqlite3.DataError as error:
        raise InvalidInput("a stored field", "what the store can hold", str(error)) from error
    except sqlite3.ProgrammingError:
        raise
    except sqlite3.Error as error:
        if _primary_code(error) in _TRY_LATER:
            raise Unavailable("the store", str(error)) from error
        raise Corrupt("the store", "a sound database", str(error)) from error
    except OSError as error:
        raise Unavailable("the store", str(error)) from error


def _primary_code(error: sqlite3.Error) -> int:
    # Errors raised by Python's binding itself, for text that is not UTF-8, carry no code.
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)) & 0xFF


def _create_private(path: Path, *, new: bool = False) -> None:
    if path.exists() and not new:
        # Not to one that is there: the end of any descriptor ends the locks that this process holds on the file.
        return
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | (os.O_EXCL if new else 0), 0o600))
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
