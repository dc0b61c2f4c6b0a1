"""The short names of stored cores: one small file, replaced as a whole."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from siltstone.errors import Corrupt, InvalidInput

_SCHEMA: Final = 1
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LOOKS_LIKE_DIGEST: Final = re.compile(r"[0-9a-f]{8,64}")


@dataclass(frozen=True, slots=True)
class NameTable:
    """Which name means which core (by digest), and which core is the default."""

    digests: dict[str, str] = field(default_factory=dict)
    default: str | None = None

    def of(self, digest: str) -> tuple[str, ...]:
        """Returns the names of a core, in order."""
        return tuple(sorted(name for name, named in self.digests.items() if named == digest))


def check_name(name: str) -> None:
    """Refuses what cannot be a core's short name.

    Raises: InvalidInput.
    """
    if not _NAME.fullmatch(name) or _LOOKS_LIKE_DIGEST.fullmatch(name) or name == "default":
        raise InvalidInput("core name", "up to 64 letters, digits, dots and dashes, not a digest", repr(name[:80]))


class CoreNames:
    """The file of names. It carries its own digest, because a flipped bit in it would name another core.

    Writers hold the store's lock.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> NameTable:
        """Returns the names; none when there is no file yet.

        Raises: Corrupt; InvalidInput for a newer schema.
        """
        try:
            raw = self._path.read_bytes()
        except FileNotFoundError:
            return NameTable()
        try:
            content: Any = json.loads(raw)
            sealed, digest = content["sealed"], content["sha256"]
            actual = _digest(sealed)
        except (ValueError, KeyError, TypeError) as error:
            raise Corrupt(self._path.name, "a table of names with its digest", str(error)) from error
        # The digest is of the meaning; the bytes must be those we write, so that no flipped bit passes.
        if actual != digest or raw != _write(sealed):
            raise Corrupt(self._path.name, f"sha256 {digest}", actual)
        if sealed["schema"] != _SCHEMA:
            raise InvalidInput(f"schema of {self._path.name}", str(_SCHEMA), str(sealed["schema"]))
        return NameTable(dict(sealed["names"]), sealed["default"])

    def point(self, name: str, digest: str) -> None:
        """Makes `name` mean this core. The first core named becomes the default."""
        table = self.read()
        self._replace(NameTable({**table.digests, name: digest}, table.default or digest))

    def set_default(self, digest: str) -> None:
        """Makes this core the default."""
        self._replace(replace(self.read(), default=digest))

    def forget(self, digest: str) -> None:
        """Removes every name of a core, and the default if it is this one."""
        table = self.read()
        kept = {name: named for name, named in table.digests.items() if named != digest}
        self._replace(NameTable(kept, None if table.default == digest else table.default))

    def _replace(self, table: NameTable) -> None:
        sealed = {"schema": _SCHEMA, "names": table.digests, "default": table.default}
        # The store's lock is held: one fixed name beside, so that a killed writer's is simply written over.
        beside = self._path.with_name(f".{self._path.name}")
        with beside.open("wb") as file:
            file.write(_write(sealed))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._path)
        descriptor = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _digest(sealed: object) -> str:
    return hashlib.sha256(_canonical(sealed)).hexdigest()


def _write(sealed: object) -> bytes:
    return _canonical({"sealed": sealed, "sha256": _digest(sealed)}) + b"\n"
