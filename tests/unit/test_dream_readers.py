"""Whose memories read a dream: few of many, those first who have said what is rare in it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from siltstone.model.lesson import Lesson
from siltstone.sleep.dreams import Dream

MANY = frozenset(f"person {number}" for number in range(40))
FEW = frozenset(f"person {number}" for number in range(36, 40))
PAIR = frozenset({"person 1", "person 2"})


def dream(*supporters: frozenset[str], ids: tuple[int, ...] = (1, 2, 3)) -> Dream:
    return Dream("person 0", Lesson(ids, (0.0,) + (1.0,) * (len(ids) - 1)), supporters)


def test_who_said_the_rarest_words_reads_first() -> None:
    readers = dream(MANY, FEW).readers(k_min=3, most=6)

    assert len(readers) == 6
    assert set(readers) > FEW


def test_nobody_reads_a_word_that_too_few_have_said() -> None:
    assert dream(PAIR, frozenset()).readers(k_min=3, most=6) == ()
    assert set(dream(PAIR, FEW).readers(k_min=3, most=6)) == FEW


def test_between_people_alike_the_dream_decides() -> None:
    chosen = {dream(MANY, ids=(1, number)).readers(k_min=3, most=3) for number in range(2, 12)}

    assert len(chosen) > 5


@given(
    groups=st.lists(st.frozensets(st.sampled_from(sorted(MANY)), max_size=8), min_size=1, max_size=4),
    most=st.integers(2, 9),
)
def test_readers_are_some_of_the_people_who_may_be_evidence(groups: list[frozenset[str]], most: int) -> None:
    one = dream(*groups)

    readers = one.readers(2, most)

    assert len(readers) == min(most, len(one.people(2)))
    assert set(readers) <= one.people(2)
    assert readers == dream(*groups).readers(2, most)


def test_secrets_are_where_too_few_have_said_a_word_and_somebody_has() -> None:
    one = dream(MANY, PAIR, frozenset(), FEW, ids=(1, 2, 3, 4, 5))

    assert one.secrets(k_min=3) == [2]
    assert one.secrets(k_min=2) == []
