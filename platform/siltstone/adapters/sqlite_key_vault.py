"""The embedded key vault: users' wrapped keys in a SQLite file of its own, apart from what they have sealed.

Apart, so that a copy of the store that was made before a user was forgotten holds nothing of that user that could be
read: the key is not in it.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from siltstone.adapters.fingerprint import fingerprint, verify
from siltstone.adapters.master_key import MasterKey, make_key
from siltstone.adapters.sqlite_file import translated
from siltstone.errors import ConfigInvalid, KeyMissing, Unavailable
from siltstone.values import DataKey, UserKey

VAULT_VERSION: Final = 1
_REWRAPPED_AT_ONCE: Final = 256

_TABLE: Final = """CREATE TABLE IF NOT EXISTS user_key (
    tenant TEXT NOT NULL, user TEXT NOT NULL, name TEXT NOT NULL, wrapped BLOB NOT NULL, digest BLOB NOT NULL,
    PRIMARY KEY (tenant, user, name)
) WITHOUT ROWID"""


class SqliteKeyVault:
    """`ports.KeyVault` in one file. A destroyed key keeps its row and its name, with nothing in it."""

    def __init__(self, path: Path, master: MasterKey, busy_timeout_ms: int = 5_000) -> None:
        """Opens the file, or makes it, readable by this user only.

        Raises: ConfigInvalid when newer code wrote it; Corrupt; Unavailable.
        """
        self._master, self._lock = master, threading.Lock()
        with translated():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._connection = sqlite3.connect(
                path, timeout=busy_timeout_ms / 1000, isolation_level=None, check_same_thread=False
            )
            try:
                for pragma in ("journal_mode = TRUNCATE", "synchronous = FULL", "secure_delete = ON"):
                    self._connection.execute(f"PRAGMA {pragma}")
                (version,) = self._connection.execute("PRAGMA user_version").fetchone()
                if version > VAULT_VERSION:
                    raise ConfigInvalid("sealing", f"expected key vault version {VAULT_VERSION}, found {version}")
                self._connection.execute(_TABLE)
                self._connection.execute(f"PRAGMA user_version = {VAULT_VERSION}")
            except BaseException:
                self._connection.close()
                raise

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> SqliteKeyVault:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def current(self, owners: Sequence[UserKey]) -> list[DataKey]:
        """See `ports.KeyVault.current`."""
        with self._lock, translated():
            found = {owner: _read_current(self._connection, owner) for owner in owners}
        if missing := [owner for owner, row in found.items() if row is None]:
            # Wrapped before the file is locked: that may take a program its time.
            made = {owner: (key := make_key(), self._master.wrap_key(owner, key)) for owner in missing}
            with self._writing() as connection:
                for owner, (key, wrapped) in made.items():
                    found[owner] = _read_current(connection, owner) or (key.name, wrapped)
                    if found[owner] == (key.name, wrapped):
                        _write(connection, owner, key.name, wrapped)
        keys = {owner: self._master.unwrap_key(owner, *row) for owner, row in found.items() if row is not None}
        return [keys[owner] for owner in owners]

    def find(self, owner: UserKey, name: str) -> DataKey | None:
        """See `ports.KeyVault.find`."""
        with self._lock, translated():
            row = self._connection.execute(
                "SELECT wrapped, digest FROM user_key WHERE tenant = ? AND user = ? AND name = ?",
                (owner.tenant, owner.user, name),
            ).fetchone()
        if row is None:
            raise KeyMissing(f"the key of {owner}", f"key {name}, or the note that it was destroyed", "neither")
        wrapped, digest = row
        verify(f"the key of {owner}", digest, owner.tenant, owner.user, name, wrapped)
        return self._master.unwrap_key(owner, name, wrapped) if wrapped else None

    def destroy(self, owner: UserKey) -> str:
        """See `ports.KeyVault.destroy`. The key is on no page of the file when it returns."""
        with self._writing() as connection:
            row = _read_current(connection, owner)
            if row is None:
                return ""
            _write(connection, owner, row[0], b"")
        return row[0]

    def rewrap(self) -> Iterator[tuple[int, int]]:
        """See `ports.KeyVault.rewrap`. The old form of a key is on no page of the file when its part is yielded."""
        last = ("", "", "")
        while True:
            with self._lock, translated():
                rows = self._connection.execute(
                    "SELECT tenant, user, name, wrapped, digest FROM user_key WHERE (tenant, user, name) > (?, ?, ?)"
                    " ORDER BY tenant, user, name LIMIT ?",
                    (*last, _REWRAPPED_AT_ONCE),
                ).fetchall()
            if not rows:
                return
            anew = []
            for tenant, user, name, wrapped, digest in rows:
                owner = UserKey(tenant, user)
                verify(f"the key of {owner}", digest, tenant, user, name, wrapped)
                if wrapped and (new := self._master.rewrap_key(owner, name, wrapped)) is not None:
                    anew.append((owner, name, wrapped, new))
            with self._writing() as connection:
                for owner, name, old, new in anew:
                    # Not one that was destroyed meanwhile.
                    is_there = connection.execute(
                        "SELECT 1 FROM user_key WHERE tenant = ? AND user = ? AND name = ? AND wrapped = ?",
                        (owner.tenant, owner.user, name, old),
                    ).fetchone()
                    if is_there:
                        _write(connection, owner, name, new)
            last = rows[-1][:3]
            yield len(rows), len(anew)

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock, translated():
            try:
                self._connection.execute("BEGIN IMMEDIATE")
            except sqlite3.ProgrammingError as error:
                raise Unavailable("the key vault", "it was closed") from error
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise


def _read_current(connection: sqlite3.Connection, owner: UserKey) -> tuple[str, bytes] | None:
    """Returns the (name, wrapped key) of the key in use. Damage to any of the user's rows is found."""
    found = None
    for name, wrapped, digest in connection.execute(
        "SELECT name, wrapped, digest FROM user_key WHERE tenant = ? AND user = ?", (owner.tenant, owner.user)
    ):
        verify(f"the key of {owner}", digest, owner.tenant, owner.user, name, wrapped)
        if wrapped:
            found = (name, wrapped)
    return found


def _write(connection: sqlite3.Connection, owner: UserKey, name: str, wrapped: bytes) -> None:
    fields = (owner.tenant, owner.user, name, wrapped)
    connection.execute("REPLACE INTO user_key VALUES (?, ?, ?, ?, ?)", (*fields, fingerprint(*fields)))
