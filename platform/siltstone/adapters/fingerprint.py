"""The digest of a stored row: over every field, with its type and length, so that no two rows share one."""

from __future__ import annotations

import hashlib

from siltstone.errors import Corrupt


def fingerprint(*fields: object) -> bytes:
    """Returns the sha256 of the fields of a row.

    Raises: Corrupt when a field is neither text, bytes nor a whole number, as only a damaged row has.
    """
    digest = hashlib.sha256()
    for field in fields:
        if isinstance(field, str):
            kind, data = b"s%d:", field.encode(errors="surrogatepass")
        elif isinstance(field, bytes):
            kind, data = b"b%d:", field
        elif isinstance(field, int):
            kind, data = b"i%d:", str(field).encode()
        else:
            raise Corrupt("a stored field", "text, bytes or a whole number", type(field).__name__)
        digest.update(kind % len(data))
        digest.update(data)
    return digest.digest()


def verify(what: str, stored: object, *fields: object) -> None:
    """Compares the stored digest of a row with its fields.

    Raises: Corrupt.
    """
    found = fingerprint(*fields)
    if stored != found:
        expected = stored.hex() if isinstance(stored, bytes) else type(stored).__name__
        raise Corrupt(what, f"sha256 {expected}", f"sha256 {found.hex()}")
