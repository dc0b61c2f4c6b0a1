"""The sealer of those who encrypt elsewhere, or not at all: everything stays as it is. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence

from siltstone.values import UserKey


class Unsealed:
    """`ports.Sealer` that leaves every byte alone and has no keys to destroy."""

    def prepare(self, owners: Sequence[UserKey]) -> None:
        """See `ports.Sealer.prepare`."""

    def seal(self, owner: UserKey, context: str, data: bytes) -> bytes:
        """See `ports.Sealer.seal`."""
        return data

    def open(self, what: str, owner: UserKey, context: str, sealed: bytes) -> bytes | None:
        """See `ports.Sealer.open`."""
        return sealed

    def name_of_key(self, sealed: bytes) -> str:
        """See `ports.Sealer.name_of_key`."""
        return ""

    def forget(self, owner: UserKey) -> str:
        """See `ports.Sealer.forget`."""
        return ""
