"""A secret key in a file of its own, made at first use, readable by its owner only. Standard library only."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from siltstone.errors import ConfigInvalid, Unavailable

LINEAGE_KEY_BYTES: Final = 32


def load_or_make(path: Path, make: Callable[[], bytes]) -> bytes:
    """Returns the key in a file; where there is none, makes one. Of several processes at once, one makes it for all.

    Raises: ConfigInvalid when others may read it; Unavailable when it cannot be read or written.
    """
    try:
        if not path.exists():
            _put_in_place(path, make())
        if (mode := path.stat().st_mode & 0o777) & 0o077:
            raise ConfigInvalid(f"the key {path.name}", f"expected mode 600, found {mode:o}")
        return path.read_bytes()
    except OSError as error:
        raise Unavailable(f"the key {path.name}", error.strerror or str(error)) from error


def lineage_key(home: Path) -> bytes:
    """Returns the secret under which users are hashed in lineages. Who loses it can no longer tell who took part."""
    return load_or_make(home / "keys" / "lineage.key", lambda: secrets.token_bytes(LINEAGE_KEY_BYTES))


def _put_in_place(path: Path, key: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, beside = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(key)
            file.flush()
            os.fsync(file.fileno())
        try:
            # A link, unlike a rename, never replaces a key that another process has already put there and used.
            os.link(beside, path)
        except FileExistsError:
            return
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        os.unlink(beside)
