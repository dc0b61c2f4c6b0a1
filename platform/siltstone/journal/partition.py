"""Which partition a user belongs to. The only place that hashes a user."""

from __future__ import annotations

import hashlib
from typing import Final

from siltstone.values import UserKey

_MASK: Final = 0xFFFFFFFF
_SEED: Final = 0x9747B28C
_M: Final = 0x5BD1E995


def murmur2(data: bytes) -> int:
    """Returns the 32 bits by which Kafka's default partitioner places a key, as an unsigned number.

    Differs: Kafka's is not the published MurmurHash2: its seed is fixed and the length is mixed in first.
    """
    h = _SEED ^ (len(data) & _MASK)
    whole = len(data) & ~3
    for start in range(0, whole, 4):
        k = int.from_bytes(data[start : start + 4], "little") * _M & _MASK
        k = (k ^ k >> 24) * _M & _MASK
        h = (h * _M & _MASK) ^ k
    if rest := data[whole:]:
        h = (h ^ int.from_bytes(rest, "little")) * _M & _MASK
    h = (h ^ h >> 13) * _M & _MASK
    return h ^ h >> 15


def partition_of(owner: UserKey, num_partitions: int) -> int:
    """Returns the partition of a user: what a Kafka producer chooses for the key `tenant/user`."""
    return (murmur2(str(owner).encode()) & 0x7FFFFFFF) % num_partitions


def row_of(owner: UserKey) -> int:
    """Returns a number of 63 bits for a user, the same for ever: the user's row in a store keyed by integers.

    Two users may share one (for 100,000 users, with a chance of one in two thousand million): a store keyed by it
    keeps the owner in the row and compares.
    """
    return int.from_bytes(hashlib.sha256(str(owner).encode()).digest()[:8], "big") >> 1
