"""A store is put back from a copy of its folder: what it has lost is learned again from the journal, to the bit."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import servers
from effects import SETTINGS, Tally, all_taken_in, faultless, stream_of, tally
from shard_fleet import Forker, Place, Running, opened_place, wait_until

from siltstone.memory.user_memory import UserMemory
from siltstone.values import Interaction, UserKey

SEED, NUM_INTERACTIONS, NUM_USERS = 11, 120, 9
BEFORE = 80
"""Interactions that are recorded before the copy is made; it falls into their midst."""
NewHome = Callable[[], Path]
Run = tuple[list[Interaction], dict[UserKey, UserMemory]]


@pytest.fixture(scope="module")
def run(new_home: NewHome) -> Run:
    stream = stream_of(NUM_INTERACTIONS, NUM_USERS, SEED)
    return stream, asyncio.run(faultless(new_home(), SETTINGS, stream))


@dataclass
class Restored:
    """A place whose store has gone back to a copy, and where it then was."""

    place: Place
    positions: dict[int, int]
    ends: dict[int, int]

    @property
    def behind(self) -> list[int]:
        return [partition for partition, end in self.ends.items() if self.positions[partition] < end]


def start(forker: Forker, place: Place) -> Running:
    return forker.start(place.shard(range(place.num_partitions)))


def restore(
    forker: Forker, place: Place, server: servers.Server, folder: Path, stream: Sequence[Interaction]
) -> Restored:
    """Copies the server's folder while a shard commits into it, goes on to the end of the stream, and puts it back."""
    shard = start(forker, place)
    place.journal.append(stream[:BEFORE])
    wait_until(lambda: place.num_taken_in() >= BEFORE // 4, "the stream to be taken in")
    copy = folder.with_name("copy")
    shutil.copytree(folder / "appendonlydir", copy)
    place.journal.append(stream[BEFORE:])
    wait_until(lambda: all_taken_in(place.journal, place.store), "the rest to be taken in")
    shard.kill()
    server.stop()
    shutil.rmtree(folder / "appendonlydir")
    shutil.copytree(copy, folder / "appendonlydir")
    server.start()
    positions = {one: place.store.position(one) for one in range(place.num_partitions)}
    assert BEFORE // 4 <= sum(positions.values()) <= BEFORE
    return Restored(place, positions, place.journal.end_positions())


def test_what_came_after_the_copy_is_learned_again_and_nothing_twice(
    forker: Forker, new_home: NewHome, tmp_path: Path, run: Run
) -> None:
    stream, expected = run
    with opened_place("valkey", new_home(), SETTINGS, tmp_path) as (place, server):
        assert server is not None
        restored = restore(forker, place, server, tmp_path / "valkey", stream)
        assert restored.behind
        # It has gone back: without the journal, memories are not what they must be.
        assert tally(place.config, place.store, stream, expected).lost >= NUM_INTERACTIONS - BEFORE
        start(forker, place)
        wait_until(lambda: all_taken_in(place.journal, place.store), "what was lost to be taken in again")
        assert tally(place.config, place.store, stream, expected) == Tally(NUM_USERS, 0, 0, 0)
        assert list(place.store.parked()) == []


def test_a_journal_that_does_not_reach_back_to_the_copy_is_told_as_damage(
    forker: Forker, new_home: NewHome, tmp_path: Path, run: Run
) -> None:
    stream, expected = run
    with opened_place("valkey", new_home(), SETTINGS, tmp_path) as (place, server):
        assert server is not None
        restored = restore(forker, place, server, tmp_path / "valkey", stream)
        # As retention does that is shorter than the copy is old: the first record that is needed is gone.
        cut = restored.behind[0]
        with sqlite3.connect(place.home / "siltstone.db") as file:
            file.execute(
                "DELETE FROM journal_record WHERE partition = ? AND position <= ?", (cut, restored.positions[cut])
            )
        file.close()
        shard = start(forker, place)
        others = [one for one in range(place.num_partitions) if one != cut]
        wait_until(
            lambda: all(place.store.position(one) == restored.ends[one] for one in others), "the others to go on"
        )
        wait_until(lambda: "partition damaged" in shard.log(), "the damage to be told")
        assert place.store.position(cut) == restored.positions[cut]
        found = tally(place.config, place.store, stream, expected)
        assert (found.twice, found.lost) == (0, restored.ends[cut] - restored.positions[cut])
