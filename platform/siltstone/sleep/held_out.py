"""Who takes no part in a night, so that the gate can ask what it gives to others."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from siltstone.sleep.filter import Statement
from siltstone.sleep.words import who_said

_NUM_DRAWS: Final = 200
_PEOPLE_FOR_ONE: Final = 3
"""People it takes for each who is held out at least: a night without the others would have nothing to agree on."""


def num_held_out(num_people: int, share: float, at_least: int) -> int:
    """Returns how many of the people take no part: the share of them, and `at_least` where there are enough."""
    least = at_least if num_people >= people_needed(at_least) and share else 0
    return max(int(share * num_people), least)


def people_needed(num_held_out: int) -> int:
    """Returns of how many people so many are held out."""
    return _PEOPLE_FOR_ONE * num_held_out


def choose_held_out(
    statements: Sequence[Statement], share: float, at_least: int, k_min: int, seed: int
) -> frozenset[str]:
    """Returns the people who take no part: of some drawn by the seed those without whom most words keep their support.

    A word keeps it that `k_min` of the others have said: only such a word can be learned, and be asked for.
    """
    people = sorted({one.person for one in statements})
    number = num_held_out(len(people), share, at_least)
    said = who_said((one.person, one.text) for one in statements)
    chance = random.Random(f"{seed}/held out")
    draws = [frozenset(chance.sample(people, number)) for _ in range(_NUM_DRAWS)] if number else [frozenset()]
    return max(draws, key=lambda out: sum(len(who - out) >= k_min for who in said.values()))
