"""The embedded registry: who serves and who may, in a SQLite file; the cores themselves in signed folders beside it."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from siltstone.adapters.signing import FolderSigner
from siltstone.adapters.sqlite_file import translated
from siltstone.adapters.sqlite_versions import (
    Head,
    add_move,
    prepare,
    read_head,
    read_moves,
    read_version,
    read_versions,
    write_head,
    write_version,
)
from siltstone.adapters.version_folders import VersionFolders
from siltstone.errors import ConfigInvalid, Corrupt, InvalidInput, NotFound, StaleEpoch, Unavailable, WrongState
from siltstone.faults import fault_point
from siltstone.ports import Clock
from siltstone.sleep_values import Champion, CoreVersion, Lineage, Verdict, VersionMove, VersionState
from siltstone.versions.lifecycle import PASSED_THE_GATE, discard, judge, predecessor, retire, succeed


@dataclass(frozen=True, slots=True)
class RegistryConfig:
    """How the registry's file is kept."""

    busy_timeout_ms: int = 30_000
    """How long a change waits for another process's change."""


class SqliteRegistry:
    """`ports.VersionRegistry` under one home, safe for the threads of a process and for many processes.

    The file is the truth about states, the champion and the epoch. A folder is written before the row that names it,
    so a row never names what is not there.
    """

    def __init__(self, home: Path, signer: FolderSigner, clock: Clock, config: RegistryConfig | None = None) -> None:
        """Opens the registry of a home, or makes it, and removes what a killed writer left.

        Raises: ConfigInvalid when the file is not a registry of this code; Corrupt; Unavailable.
        """
        self._folders, self._clock = VersionFolders(home, signer), clock
        self._config = config or RegistryConfig()
        self._lock, self._closed = threading.Lock(), False
        # Opening a new file twice at once would race for its journal mode, which SQLite does not wait for.
        with self._folders.writing(), translated():
            self._connection = self._open(self._folders.root / "registry.db")
            try:
                with self._changing() as connection:
                    prepare(connection)
                self._folders.sweep(self.list())
            except BaseException:
                self.close()
                raise

    def record(self, core: Path, lineage: Lineage, evidence: bytes) -> CoreVersion:
        """See `ports.VersionRegistry.record`."""
        _check_evidence(evidence)
        with self._folders.writing():
            # Only who holds the folders' lock adds versions: the number stays free until it is used below.
            versions = self.list()
            for known in versions:
                if (known.digest, known.lineage.sleep_id) == (core.name, lineage.sleep_id):
                    return known
            self._folders.sweep(versions)
            digest = hashlib.sha256(evidence).hexdigest()
            now_ms = self._clock.now_ms()
            number = len(versions) + 1
            candidate = CoreVersion(number, core.name, VersionState.CANDIDATE, lineage, now_ms, digest)
            sealed = self._folders.write(candidate, core, evidence)
            with self._changing() as connection:
                head = read_head(connection)
                self._store(connection, replace(head, num_versions=number), (None, sealed))
        return sealed

    def set_verdict(self, number: int, verdict: Verdict) -> CoreVersion:
        """See `ports.VersionRegistry.set_verdict`."""
        with self._folders.writing():
            candidate = self.show(number)
            judged = judge(candidate, verdict)
            folder = self._folders.verify(candidate)
            evidence = (folder / "evidence.json").read_bytes()
            sealed = self._folders.write(judged, self._folders.core(candidate), evidence)
            with self._changing() as connection:
                self._store(connection, read_head(connection), (candidate, sealed))
            self._folders.sweep(self.list())
        return sealed

    def retire(self, number: int) -> CoreVersion:
        """See `ports.VersionRegistry.retire`."""
        with self._changing() as connection:
            version = read_version(connection, number)
            retired = retire(version)
            self._store(connection, read_head(connection), (version, retired))
        return retired

    def discard(self, number: int) -> CoreVersion:
        """See `ports.VersionRegistry.discard`."""
        with self._folders.writing():
            with self._changing() as connection:
                discarded = discard(read_version(connection, number))
                write_version(connection, discarded)
            self._folders.sweep(self.list())
        return discarded

    def list(self) -> tuple[CoreVersion, ...]:
        """See `ports.VersionRegistry.list`."""
        with self._reading() as connection:
            return read_versions(connection)

    def show(self, number: int) -> CoreVersion:
        """See `ports.VersionRegistry.show`."""
        with self._reading() as connection:
            return read_version(connection, number)

    def champion(self) -> Champion | None:
        """See `ports.VersionRegistry.champion`."""
        with self._reading() as connection:
            return read_head(connection).champion

    def promote(self, number: int, expected_epoch: int) -> Champion:
        """Makes a version the champion, all or nothing; see `ports.VersionRegistry.promote`.

        1. Verify the version's folder: what cannot be served does not become champion.
        2. Begin the transaction: from here no other mover can come between.
        3. Compare the epoch and decide.
        4. Write the states of both versions.
        5. Add both moves to the history.
        6. Write the champion under its new epoch.
        7. Make it durable. Before this step ends nothing has happened, after it everything has.

        Each step may be the last one before a crash; the tests make it so. The time budget is the busy timeout.
        """
        # 1. Verify the folder.
        self.artefact(number)
        fault_point("promote.verified")
        # 2. Begin.
        with self._changing() as connection:
            fault_point("promote.begun")
            # 3. Compare and decide.
            head, rising = read_head(connection), read_version(connection, number)
            leaving = read_version(connection, head.number) if head.champion else None
            change = succeed(rising, head.champion, leaving, expected_epoch)
            fault_point("promote.decided")
            # 4. to 6. Write states, moves and champion.
            new_head = replace(head, number=number, core=change.champion.digest, epoch=change.champion.epoch)
            changes = [(rising, change.rising)]
            if leaving and change.leaving:
                changes.insert(0, (leaving, change.leaving))
            self._store(connection, new_head, *changes)
            # 7. Make it durable: the end of the block.
        fault_point("promote.durable")
        return change.champion

    def rollback(self, expected_epoch: int) -> Champion:
        """See `ports.VersionRegistry.rollback`."""
        with self._reading() as connection:
            head, versions = read_head(connection), read_versions(connection)
        if head.epoch != expected_epoch:
            raise StaleEpoch(expected_epoch, head.epoch)
        # Whatever changes the answer changes the epoch too, so that the compare-and-set covers this reading.
        return self.promote(predecessor(versions, head.champion).number, expected_epoch)

    def artefact(self, number: int) -> Path:
        """See `ports.VersionRegistry.artefact`."""
        version = self.show(number)
        if version.state not in PASSED_THE_GATE:
            raise WrongState(f"version {number}", version.state.value, "hand out")
        return self.folder(number)

    def history(self) -> tuple[VersionMove, ...]:
        """See `ports.VersionRegistry.history`."""
        with self._reading() as connection:
            return read_moves(connection)

    def folder(self, number: int) -> Path:
        """Returns the verified folder of a version in any state: to copy it elsewhere, not to serve it.

        Raises: NotFound, also when it was discarded; Corrupt.
        """
        version = self.show(number)
        if not version.seal:
            raise NotFound("folder of version", str(number))
        try:
            return self._folders.verify(version)
        except (Corrupt, Unavailable):
            # A verdict may have replaced the folder since its row was read.
            if (newer := self.show(number)).seal == version.seal:
                raise
            return self._folders.verify(newer)

    def restore(self, number: int, folder: Path) -> None:
        """Puts a copy of a version's folder in the place of a damaged one.

        Raises: NotFound; Corrupt when the copy is not what was signed; Unavailable.
        """
        with self._folders.writing():
            self._folders.adopt(self.show(number), folder)

    def close(self) -> None:
        """Closes the file. A second call does nothing."""
        with self._lock:
            self._closed = True
            self._connection.close()

    def __enter__(self) -> SqliteRegistry:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, path: Path) -> sqlite3.Connection:
        if not path.exists():
            # Not to one that is there: the end of any descriptor ends the locks that this process holds on the file.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        timeout_s = self._config.busy_timeout_ms / 1000
        connection = sqlite3.connect(path, timeout=timeout_s, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA cell_size_check = ON")
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            connection.close()
            raise ConfigInvalid("the registry", f"expected a file system that can hold a log, found mode {mode}")
        return connection

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._lock, translated():
            if self._closed:
                raise Unavailable("the registry", "it was closed")
            connection = self._connection
            try:
                connection.execute(begin)
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def _store(
        self, connection: sqlite3.Connection, head: Head, *changes: tuple[CoreVersion | None, CoreVersion]
    ) -> None:
        """Writes versions as they are after a change, adds their moves, and the head last."""
        now_ms = self._clock.now_ms()
        for _, after in changes:
            write_version(connection, after)
        fault_point("change.states_written")
        for before, after in changes:
            state = before.state if before else None
            move = VersionMove(after.number, after.digest, state, after.state, head.epoch, now_ms)
            head = replace(head, last_move=add_move(connection, head, move), num_moves=head.num_moves + 1)
        fault_point("change.moves_written")
        write_head(connection, head)
        fault_point("change.champion_written")


def _check_evidence(evidence: bytes) -> None:
    try:
        json.loads(evidence)
    except ValueError as error:
        raise InvalidInput("evidence", "JSON", str(error)) from error
