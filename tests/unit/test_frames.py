"""What people fill each in their own way teaches nothing; what they agree on is left alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from siltstone.sleep.frames import frame_words, is_contested
from siltstone.sleep.words import is_telling

PEOPLE = ("ada", "bob", "cleo", "dan", "eve", "fay")
COMMON = 99
"""A token that tells nothing."""


def differs(certain: list[list[int | None]], people: tuple[str, ...] = PEOPLE, k_min: int = 3) -> bool:
    return is_contested(certain, people[: len(certain)], lambda token: token != COMMON, k_min)


def test_a_gap_that_everybody_fills_otherwise_is_contested() -> None:
    assert differs([[7, 1], [7, 2], [7, 3]])


def test_what_most_are_certain_of_is_not_contested() -> None:
    assert not differs([[7], [7], [7]])
    assert not differs([[7], [7], [7], [1], [2]])
    assert differs([[7], [7], [7], [1], [2], [3]])


def test_it_takes_enough_people_and_enough_different_things() -> None:
    assert not differs([[1], [2], [None]])
    assert not differs([[1], [1], [2], [2]])
    assert not differs([[1], [2], [3]], people=("ada", "ada", "bob"))


def test_a_word_that_tells_nothing_fills_no_gap() -> None:
    assert not differs([[COMMON], [1], [2]])
    assert not any(is_telling(token) for token in (" the", ",", "\n"))
    assert all(is_telling(token) for token in (" Falcon", "Fal", " 7"))


def test_a_dream_that_nobody_read_is_not_contested() -> None:
    assert not differs([])


@given(
    certain=st.lists(st.lists(st.none() | st.integers(0, 4), min_size=2, max_size=2), max_size=6),
    order=st.randoms(use_true_random=False),
)
def test_the_order_of_people_says_nothing(certain: list[list[int | None]], order: object) -> None:
    rows = list(zip(certain, PEOPLE, strict=False))
    order.shuffle(rows)  # type: ignore[attr-defined]

    again = is_contested([row for row, _ in rows], [person for _, person in rows], lambda _: True, 3)

    assert again == is_contested(certain, PEOPLE[: len(certain)], lambda _: True, 3)


def test_a_word_is_a_frame_where_most_of_its_worth_lies_in_contested_dreams() -> None:
    worths = [("project", 6.0, True), ("project", 2.0, False), ("Cedar", 1.0, True), ("Cedar", 1.5, False)]

    assert frame_words(worths) == {"project"}
