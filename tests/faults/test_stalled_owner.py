"""An owner stops, another takes over, and the first goes on where it was: what it still writes changes nothing."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from effects import SETTINGS, Tally, all_taken_in, faultless, record_figures, stream_of, tally
from shard_fleet import Forker, Place, Running, opened_place, wait_until

from siltstone.errors import Unavailable
from siltstone.memory.user_memory import UserMemory
from siltstone.values import Interaction, UserKey

SEED = 5
NewHome = Callable[[], Path]
Run = tuple[list[Interaction], dict[UserKey, UserMemory]]

STALL_SETTINGS: dict[str, Any] = {**SETTINGS, "store.busy_timeout_ms": 500}
"""A stopped process that is in a transaction holds the file; who is refused by that is not to wait for long."""


@dataclass(frozen=True)
class Case:
    """How often an owner stalls, and what it has to do meanwhile."""

    num_stalls: int
    num_each: int = 12
    num_users: int = 4

    @property
    def num_interactions(self) -> int:
        return self.num_stalls * self.num_each


SHORT, LONG = Case(num_stalls=4), Case(num_stalls=60)


class Pair:
    """Two shards' processes that take all partitions from one another."""

    def __init__(self, forker: Forker, place: Place, store: str = "whole") -> None:
        every = range(place.num_partitions)
        self._place = place
        self.owner = forker.start(place.shard(every, store=store))
        self.other = forker.start(place.shard(every, store=store, takes_at_start=False))
        self.owner.wait_for("owner")
        self.other.wait_for("ready")
        self.num_locked = 0

    def stall(self, piece: Sequence[Interaction], at_commit: bool, rng: random.Random) -> None:
        """Stops the owner, with work left to it: just before it commits, or wherever it is."""
        if at_commit:
            num_armed, num_stopped = (len(self.owner.effects(kind)) for kind in ("armed", "stopped"))
            self.owner.signal(signal.SIGUSR1)
            self.owner.wait_for("armed", num_armed)
            self._place.journal.append(piece)
            self.owner.wait_for("stopped", num_stopped)
            return
        third = len(piece) // 3
        self._place.journal.append(piece[:third])
        self._let_do_all(self.owner)
        self._place.journal.append(piece[third : 2 * third])
        while True:
            time.sleep(rng.uniform(0.0, 0.1))
            self.owner.stop()
            try:
                self._place.journal.append(piece[2 * third :])
                return
            except Unavailable:
                # It was stopped in a transaction: in one file nobody can take over from it there.
                self.num_locked += 1
                self.owner.signal(signal.SIGCONT)

    def take_over(self) -> None:
        """Lets the other one take everything over and do what there is to do."""
        self._let_do_all(self.other)

    def _let_do_all(self, one: Running) -> None:
        def is_done() -> bool:
            # Again and again, as whoever hands out partitions does: it may only now find out that it has lost some.
            one.signal(signal.SIGUSR2)
            time.sleep(0.02)
            assert not one.has_ended, one.log()[-2000:]
            return all_taken_in(self._place.journal, self._place.store)

        wait_until(is_done, "a shard to take in everything")

    def go_on(self) -> None:
        """Lets the stopped one go on, and waits until it was refused once more."""
        num_refused = len(self.owner.effects("refused"))
        self.owner.signal(signal.SIGCONT)
        self.owner.wait_for("refused", num_refused)
        self.owner, self.other = self.other, self.owner


def stall_often(forker: Forker, place: Place, stream: Sequence[Interaction], case: Case) -> dict[str, Any]:
    rng, started_s = random.Random(SEED), time.monotonic()
    pair = Pair(forker, place)
    num_at_commit = 0
    for number in range(case.num_stalls):
        at_commit = number % 2 == 0
        num_at_commit += at_commit
        pair.stall(stream[number * case.num_each : (number + 1) * case.num_each], at_commit, rng)
        pair.take_over()
        pair.go_on()
    return {
        "stalls": case.num_stalls,
        "stalls_before_a_commit": num_at_commit,
        "stale_writes_refused": len(forker.all_effects("refused")),
        "stopped_holding_the_file": pair.num_locked,
        "seconds": round(time.monotonic() - started_s, 1),
    }


def num_untidy(forker: Forker, ends: dict[int, int]) -> int:
    """Counts where the commits that were taken do not follow one another: a gap, an overlap, an older epoch."""
    taken = defaultdict(list)
    for told in forker.all_effects("committed"):
        taken[told["partition"]].append((told["start"], told["end"], told["epoch"]))
    untidy = 0
    for partition, end in ends.items():
        at = epoch = 0
        for start, next_at, its_epoch in sorted(taken[partition]):
            untidy += (start != at) + (its_epoch < epoch)
            at, epoch = next_at, its_epoch
        untidy += at != end
    return untidy


@pytest.fixture(scope="module")
def short_run(new_home: NewHome) -> Run:
    stream = stream_of(SHORT.num_interactions, SHORT.num_users, SEED)
    return stream, asyncio.run(faultless(new_home(), STALL_SETTINGS, stream))


@pytest.mark.parametrize("ends", ["sqlite", "valkey"])
def test_an_owner_that_goes_on_after_its_successor_is_refused_whatever_it_writes(
    ends: str, forker: Forker, new_home: NewHome, tmp_path: Path, short_run: Run
) -> None:
    stream, expected = short_run
    with opened_place(ends, new_home(), STALL_SETTINGS, tmp_path) as (place, _):
        told = stall_often(forker, place, stream, SHORT)
        assert num_untidy(forker, place.ends_of_journal()) == 0
        assert tally(place.config, place.store, stream, expected) == Tally(SHORT.num_users, 0, 0, 0)
    assert told["stale_writes_refused"] >= SHORT.num_stalls


def overtake_unfenced(forker: Forker, place: Place, stream: Sequence[Interaction]) -> None:
    """Lets an owner write, after its successor has done everything, what it was about to write when it stopped."""
    pair = Pair(forker, place, store="unfenced")
    pair.stall(stream, at_commit=True, rng=random.Random(SEED))
    pair.take_over()
    zombie: Running = pair.owner
    zombie.signal(signal.SIGCONT)
    wait_until(lambda: zombie.has_ended, "the stale write")
    assert zombie.exit_status == -signal.SIGKILL, zombie.log()[-2000:]


@pytest.mark.parametrize("ends", ["sqlite", "valkey"])
def test_without_epoch_and_position_a_stale_write_undoes_what_its_successor_did(
    ends: str, forker: Forker, new_home: NewHome, tmp_path: Path, short_run: Run
) -> None:
    stream, expected = short_run
    with opened_place(ends, new_home(), STALL_SETTINGS, tmp_path) as (place, _):
        overtake_unfenced(forker, place, stream)
        found = tally(place.config, place.store, stream, expected)
    assert found.differing > 0
    assert found.lost > 0


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["sqlite", "valkey"])
def test_sixty_stalled_owners_change_nobodys_memory(
    ends: str, forker: Forker, new_home: NewHome, tmp_path: Path
) -> None:
    stream = stream_of(LONG.num_interactions, 20, SEED)
    expected = asyncio.run(faultless(new_home(), STALL_SETTINGS, stream))
    with opened_place(ends, new_home(), STALL_SETTINGS, tmp_path) as (place, _):
        told = stall_often(forker, place, stream, LONG)
        untidy = num_untidy(forker, place.ends_of_journal())
        found = tally(place.config, place.store, stream, expected)
    forker.end()
    wrong_without = 0
    for number in range(6):
        some = stream_of(SHORT.num_interactions, SHORT.num_users, SEED + number)
        memories = asyncio.run(faultless(new_home(), STALL_SETTINGS, some))
        with opened_place(ends, new_home(), STALL_SETTINGS, tmp_path / str(number)) as (place, _):
            overtake_unfenced(forker, place, some)
            wrong_without += tally(place.config, place.store, some, memories).differing
        forker.end()
    record_figures(
        f"a stalled owner, {ends}",
        interactions=len(stream),
        **told,
        **asdict(found),
        commits_out_of_order=untidy,
        differing_in_6_stalls_without_fence=wrong_without,
    )
    assert (found, untidy) == (Tally(20, 0, 0, 0), 0)
    assert told["stale_writes_refused"] >= LONG.num_stalls
    assert wrong_without >= 6
