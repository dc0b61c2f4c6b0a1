"""Whose words are in which version. Users are keyed hashes here: known to who holds the key, unreadable to others."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from siltstone.errors import ConfigInvalid
from siltstone.sleep_values import Contributor, CoreVersion
from siltstone.values import UserKey

MIN_KEY_BYTES: Final = 32


def hash_user(owner: UserKey, key: bytes) -> str:
    """Returns the HMAC-SHA256 of a user under the secret key, in hex.

    Raises: ConfigInvalid when the key is too short to keep a user's name secret.
    """
    if len(key) < MIN_KEY_BYTES:
        raise ConfigInvalid("the lineage key", f"expected {MIN_KEY_BYTES} bytes or more, found {len(key)}")
    return hmac.new(key, f"{len(owner.tenant)}:{owner}".encode(), hashlib.sha256).hexdigest()


def contributors(num_interactions: Mapping[UserKey, int], key: bytes) -> tuple[Contributor, ...]:
    """Returns who took part, by hash, so that their order says nothing either; who gave nothing is left out."""
    found = (Contributor(hash_user(owner, key), count) for owner, count in num_interactions.items() if count > 0)
    return tuple(sorted(found, key=lambda contributor: contributor.user_hash))


def versions_of_user(versions: Sequence[CoreVersion], user_hash: str) -> tuple[int, ...]:
    """Returns the numbers of the versions whose own sleep the user took part in."""
    return tuple(
        version.number
        for version in versions
        if any(contributor.user_hash == user_hash for contributor in version.lineage.contributors)
    )


def descendants(versions: Sequence[CoreVersion], numbers: Collection[int]) -> tuple[int, ...]:
    """Returns the numbers of the versions that come from these, over any number of sleeps, without these themselves.

    A parent is a digest, so every version of the same content counts as one's parent.
    """
    digests = {version.digest for version in versions if version.number in numbers}
    found: set[int] = set()
    while True:
        new = {
            v.number
            for v in versions
            if v.lineage.parent in digests and v.number not in found and v.number not in numbers
        }
        if not new:
            return tuple(sorted(found))
        found |= new
        digests |= {version.digest for version in versions if version.number in new}


def touched_by_user(versions: Sequence[CoreVersion], user_hash: str) -> tuple[int, ...]:
    """Returns the numbers of all versions in which something of the user may be: contributed to, or descended from."""
    own = versions_of_user(versions, user_hash)
    return tuple(sorted({*own, *descendants(versions, own)}))
