"""What is no interaction is in the journal, and shards are killed over it: it is parked once, nobody else notices."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import pytest
from effects import (
    NUM_INTERACTIONS,
    NUM_USERS,
    SETTINGS,
    Tally,
    all_taken_in,
    faultless,
    record_figures,
    stream_of,
    tally,
)
from poison import KINDS, Injected, Injector, TopicInjector, mixed
from shard_fleet import Forker, Place, opened_place, wait_until
from test_killed_shards import Case, survive
from tiny_home import said

from siltstone.errors import InvalidInput
from siltstone.memory.user_memory import UserMemory
from siltstone.values import NOBODY, Interaction, Parked, UserKey

SEED = 7
SHORT = Case(num_interactions=60, num_users=10, num_kills=4)
LONG = Case(NUM_INTERACTIONS, NUM_USERS, num_kills=20)
NewHome = Callable[[], Path]
Run = tuple[list[Interaction], dict[UserKey, UserMemory]]


@pytest.fixture(scope="module")
def short_run(new_home: NewHome) -> Run:
    stream = stream_of(SHORT.num_interactions, SHORT.num_users, SEED)
    return stream, asyncio.run(faultless(new_home(), SETTINGS, stream))


def is_all_done(place: Place, injector: Injector) -> bool:
    return all(place.store.position(partition) >= end for partition, end in injector.ends.items())


def check_parked(parked: Sequence[Parked], injected: Sequence[Injected], keyless: UserKey | None) -> None:
    """Checks that each poison is parked once, for the reason that is true; what has no key belongs to `keyless`."""
    wanted: Counter[tuple[object, ...]] = Counter()
    for one in injected:
        owner = keyless if keyless and not one.poison.has_key else one.poison.owner
        wanted[one.partition, one.position, one.poison.reason, owner] += 1
    assert Counter((one.partition, one.position, one.reason, one.owner) for one in parked) == wanted


def test_every_kind_of_poison_is_parked_once_and_leaves_no_trace_in_a_memory(
    forker: Forker, new_home: NewHome, tmp_path: Path, short_run: Run
) -> None:
    stream, expected = short_run
    wire = mixed(stream, 0.02, large_bytes=10_000_000, seed=SEED)
    with opened_place("sqlite", new_home(), SETTINGS, tmp_path) as (place, _):
        injector = Injector(place)
        survive(forker, place, None, wire, SHORT, SEED, injector.put)
        assert tally(place.config, place.store, stream, expected) == Tally(SHORT.num_users, 0, 0, 0)
        check_parked(list(place.store.parked()), injector.injected, None)
        assert {one.poison.kind for one in injector.injected} == set(KINDS)


def test_a_shard_that_parks_nothing_ends_at_the_first_poison_and_whenever_it_comes_back(
    forker: Forker, new_home: NewHome, tmp_path: Path, short_run: Run
) -> None:
    stream, _ = short_run
    with opened_place("sqlite", new_home(), SETTINGS, tmp_path) as (place, _):
        Injector(place).put(mixed(stream, 0.02, large_bytes=100, seed=SEED))
        for _ in range(2):
            shard = forker.start(place.shard(range(place.num_partitions), node="careless"))
            wait_until(lambda shard=shard: shard.has_ended, "the shard to end")
            assert shard.exit_status == 3
        assert not all_taken_in(place.journal, place.store)


def test_a_shard_that_asks_for_no_consent_learns_what_it_must_not(
    forker: Forker, new_home: NewHome, tmp_path: Path, short_run: Run
) -> None:
    stream, expected = short_run
    with opened_place("sqlite", new_home(), SETTINGS, tmp_path) as (place, _):
        Injector(place).put(mixed(stream, 0.02, large_bytes=100, seed=SEED))
        forker.start(place.shard(range(place.num_partitions), node="credulous"))
        wait_until(lambda: all_taken_in(place.journal, place.store), "everything to be taken in")
        assert tally(place.config, place.store, stream, expected).differing > 0


@pytest.mark.slow
def test_one_percent_of_every_kind_of_poison_in_a_topic_is_parked_once(
    forker: Forker, new_home: NewHome, tmp_path: Path, long_run: Run
) -> None:
    stream, expected = long_run
    # Over what is admitted, and under what a record of the topic may hold.
    wire = mixed(stream, 0.01, large_bytes=600_000, seed=SEED)
    with opened_place("cluster", new_home(), SETTINGS, tmp_path) as (place, _):
        with closing(TopicInjector(place)) as injector:
            with pytest.raises(InvalidInput):
                # Nobody who keeps to the topic's limit can write ten megabytes into it.
                place.journal.append([said(stream[0].owner, "large", "x" * 10_000_000)])
            cost = survive(forker, place, None, wire, LONG, SEED, injector.put)
            wait_until(lambda: is_all_done(place, injector), "what others have written to be taken in")
        found = tally(place.config, place.store, stream, expected)
        parked = list(place.store.parked())
        record_figures(
            "poison, kafka and valkey",
            interactions=len(stream),
            kinds=len(KINDS),
            poison=len(injector.injected),
            parked=len(parked),
            parked_places=len({(one.partition, one.position) for one in parked}),
            **cost,
            **asdict(found),
        )
        check_parked(parked, injector.injected, NOBODY)
        assert found == Tally(LONG.num_users, 0, 0, 0)
