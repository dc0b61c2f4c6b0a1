from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siltstone.errors import InvalidInput
from siltstone.evaluation.forced_choice import (
    accuracy,
    accuracy_of,
    choose,
    names_value,
    normalise_answer,
    wilson_interval,
)


def test_the_value_that_was_raised_most_is_chosen_and_not_the_likeliest() -> None:
    assert choose([-2.0, -9.0, -5.0], [-2.1, -12.0, -4.0]) == 1


def test_a_memory_that_changed_nothing_gets_no_credit() -> None:
    core = [-2.0, -9.0, -5.5]
    assert choose(core, core) is None
    assert choose([-1.0, -8.0, -5.5], core) is None
    assert accuracy([None, 1], [0, 1]).num_right == 1


@pytest.mark.parametrize(
    ("user", "core"),
    [([], []), ([0.0], [0.0]), ([0.0, 1.0], [0.0]), ([math.nan, 0.0], [0.0, 0.0]), ([0.0] * 2, [-math.inf, 0.0])],
)
def test_numbers_that_allow_no_choice_are_refused(user: list[float], core: list[float]) -> None:
    with pytest.raises(InvalidInput):
        choose(user, core)


@pytest.mark.parametrize(
    ("num_right", "num_asked", "low", "high"),
    [(0, 10, 0.0, 0.277533), (10, 10, 0.722467, 1.0), (8, 10, 0.490162, 0.943318), (66, 72, 0.829876, 0.961248)],
)
def test_the_interval_is_wilsons(num_right: int, num_asked: int, low: float, high: float) -> None:
    assert wilson_interval(num_right, num_asked) == pytest.approx((low, high), abs=1e-5)


@given(st.integers(1, 500).flatmap(lambda asked: st.tuples(st.integers(0, asked), st.just(asked))))
def test_the_interval_solves_its_equation_and_holds_the_share(counts: tuple[int, int]) -> None:
    found = accuracy_of(*counts)
    assert 0 <= found.low <= found.share <= found.high <= 1
    for end in {found.low, found.high} - {0.0, 1.0}:
        z = abs(found.share - end) / math.sqrt(end * (1 - end) / found.num_asked)
        assert z == pytest.approx(1.959964, abs=1e-4)


def test_accuracy_counts_right_choices() -> None:
    found = accuracy([0, 1, 2, None], [0, 1, 1, 3])
    assert (found.num_right, found.num_asked, found.share) == (2, 4, 0.5)
    for choices, right in (([0], [0, 1]), ([], [])):
        with pytest.raises(InvalidInput):
            accuracy(choices, right)


def test_answers_are_compared_without_case_accents_and_punctuation() -> None:
    assert normalise_answer("  He's  called “Müsli-Łukasz”,\nthe 3.5-year-old! ") == (
        "he s called musli lukasz the 3.5 year old"
    )
    assert normalise_answer("C++, C# and C: STRASSE, Straße") == "c++ c# and c strasse strasse"


@pytest.mark.parametrize(
    ("answer", "value", "alternatives", "named"),
    [
        ("Your dog is called Biscuit.", "Biscuit", ["Rex", "Luna"], True),
        ("BISCUIT!", "biscuit", ["Rex"], True),
        ("His name is Zoé", "Zoe", ["Rex"], True),
        ("It is biscuits you like", "Biscuit", ["Rex"], False),
        ("Biscuit or Rex, I think", "Biscuit", ["Rex"], False),
        ("I do not know", "Biscuit", ["Rex"], False),
        ("", "Biscuit", ["Rex"], False),
        ("You live in New York City.", "New York City", ["York", "Lisbon"], True),
        ("You live in New York City.", "York", ["New York City"], False),
        ("In York, not far from New York City", "York", ["New York City"], False),
        ("You live in new\nyork-city", "New York City", ["York"], True),
        ("He is 3.5", "3", ["5"], False),
        ("He is 13", "3", ["5"], False),
        ("At 7:30.", "7:30", ["17:30", "7"], True),
        ("You write C", "C", ["C++", "C#"], True),
        ("You write C++", "C", ["C++"], False),
        ("Biscuit it is", "Biscuit", ["BISCUIT", "", "..."], True),
        ("Ann's desk", "Ann", ["Anna"], True),
    ],
)
def test_an_answer_names_the_value_only_when_it_names_it_and_no_other(
    answer: str, value: str, alternatives: list[str], named: bool
) -> None:
    assert names_value(answer, value, alternatives) is named


def test_a_value_without_words_is_refused() -> None:
    with pytest.raises(InvalidInput):
        names_value("anything", "...", ["Rex"])
