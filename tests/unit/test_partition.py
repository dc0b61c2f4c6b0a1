from __future__ import annotations

import random
import warnings
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siltstone.journal.partition import murmur2, partition_of, row_of
from siltstone.values import UserKey

with warnings.catch_warnings():
    # kafka-python 3.0 reads its schemas by a function that Python 3.11 and 3.12 call deprecated.
    warnings.simplefilter("ignore", DeprecationWarning)
    from kafka.partitioner.default import murmur2 as kafka_murmur2

KNOWN = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}
"""The vectors of Kafka's own test of its hash, as Java's signed numbers."""


@pytest.mark.parametrize(("key", "signed"), KNOWN.items())
def test_the_hash_is_kafkas_on_kafkas_vectors(key, signed):
    assert murmur2(key) == signed % 2**32


@given(st.binary(max_size=200))
def test_the_hash_is_that_of_the_kafka_client(key):
    assert murmur2(key) == kafka_murmur2(key)


def test_a_user_goes_where_a_producer_would_send_the_key():
    for number in range(200):
        owner = UserKey("office", f"user{number}")
        for num_partitions in (1, 7, 16, 256):
            expected = (kafka_murmur2(f"office/user{number}".encode()) & 0x7FFFFFFF) % num_partitions
            assert partition_of(owner, num_partitions) == expected


def test_users_spread_evenly():
    counts = Counter(partition_of(UserKey("office", f"user{number}"), 16) for number in range(16_000))
    assert len(counts) == 16
    assert max(counts.values()) < 1_300


def test_rows_fit_sqlite_and_tell_users_apart():
    rng = random.Random(6)
    owners = {UserKey("office", f"{rng.randrange(10**12)}") for _ in range(20_000)}
    rows = {row_of(owner) for owner in owners}
    assert len(rows) == len(owners)
    assert all(0 <= row < 2**63 for row in rows)
    assert row_of(UserKey("office", "ada")) == 97_324_531_313_496_801
