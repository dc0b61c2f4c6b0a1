from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siltstone.errors import ConfigInvalid, Corrupt, InvalidInput
from siltstone.memory.reservoir import (
    Reservoir,
    ReservoirEntry,
    ReservoirLimits,
    add,
    entry_of,
    forget_interaction,
    from_bytes,
    to_bytes,
)
from siltstone.values import Interaction, InteractionKind, Message, Role, UserKey

LIMITS = ReservoirLimits()
SMALL = ReservoirLimits(max_entries=5, max_bytes=1_000, max_entry_bytes=600)

_ENTRIES = st.builds(
    ReservoirEntry,
    interaction_id=st.text(st.characters(codec="utf-8"), max_size=12),
    lines=st.lists(st.text(max_size=300), max_size=6).map(tuple),
    time_ms=st.integers(0, 2**62),
    surprise=st.floats(allow_nan=False, allow_infinity=False),
)


def _entry(name: str, surprise: float, *lines: str) -> ReservoirEntry:
    return ReservoirEntry(name, lines or (f"line of {name}",), 0, surprise)


def _fill(entries: list[ReservoirEntry], limits: ReservoirLimits) -> Reservoir:
    reservoir = Reservoir()
    for entry in entries:
        reservoir = add(reservoir, entry, limits)
    return reservoir


def _names(reservoir: Reservoir) -> list[str]:
    return [entry.interaction_id for entry in reservoir.entries]


def _interaction(kind: InteractionKind, *messages: Message, correction: str = "") -> Interaction:
    return Interaction("i", UserKey("t", "u"), kind, 5, messages, correction)


@given(st.lists(_ENTRIES, max_size=30))
def test_a_reservoir_is_never_over_its_limits_whatever_is_added(entries: list[ReservoirEntry]) -> None:
    reservoir = Reservoir()
    for entry in entries:
        reservoir = add(reservoir, entry, SMALL)
        assert len(reservoir.entries) <= SMALL.max_entries
        assert len(to_bytes(reservoir)) <= SMALL.max_bytes


def test_without_the_limits_the_same_entries_do_go_over() -> None:
    entries = [_entry(str(number), 0.0, "x" * 200) for number in range(12)]
    assert len(to_bytes(Reservoir(tuple(entries)))) > SMALL.max_bytes
    assert len(to_bytes(_fill(entries, SMALL))) <= SMALL.max_bytes


@given(st.lists(_ENTRIES, max_size=30))
def test_the_same_entries_give_the_same_bytes_and_the_bytes_give_the_same_reservoir(
    entries: list[ReservoirEntry],
) -> None:
    reservoir = _fill(entries, SMALL)
    assert to_bytes(_fill(entries, SMALL)) == to_bytes(reservoir)
    assert from_bytes(to_bytes(reservoir)) == reservoir


@given(st.lists(_ENTRIES, min_size=2, max_size=20), st.integers(0, 20))
def test_saving_in_between_changes_nothing(entries: list[ReservoirEntry], at: int) -> None:
    halfway = from_bytes(to_bytes(_fill(entries[:at], SMALL)))
    for entry in entries[at:]:
        halfway = add(halfway, entry, SMALL)
    assert halfway == _fill(entries, SMALL)


def test_the_least_surprising_of_the_older_half_leaves_and_the_newest_stays() -> None:
    surprises = {"a": 3.0, "b": 1.0, "c": 2.0, "d": 0.0, "e": 0.0}
    reservoir = _fill([_entry(name, surprise) for name, surprise in surprises.items()], SMALL)
    assert _names(reservoir) == ["a", "b", "c", "d", "e"]
    reservoir = add(reservoir, _entry("f", -9.0), SMALL)
    assert _names(reservoir) == ["a", "c", "d", "e", "f"]
    reservoir = add(reservoir, _entry("g", 0.0), SMALL)
    assert _names(reservoir) == ["a", "c", "e", "f", "g"]
    assert _names(add(reservoir, _entry("h", 0.0), SMALL)) == ["a", "c", "f", "g", "h"]


def test_of_equally_surprising_entries_the_oldest_leaves() -> None:
    assert _names(_fill([_entry(name, 1.0) for name in "abcdefgh"], SMALL)) == ["d", "e", "f", "g", "h"]


def test_adding_leaves_the_reservoir_that_was_as_it_was() -> None:
    before = _fill([_entry("a", 1.0)], SMALL)
    after = add(before, _entry("b", 1.0), SMALL)
    assert (_names(before), _names(after)) == (["a"], ["a", "b"])


def test_an_id_that_comes_again_is_held_once_as_the_newest() -> None:
    reservoir = _fill([_entry("a", 1.0), _entry("b", 1.0), _entry("a", 2.0, "new")], SMALL)
    assert _names(reservoir) == ["b", "a"]
    assert reservoir.entries[-1].lines == ("new",)


def test_of_a_long_text_the_beginning_is_kept_and_the_rest_of_the_reservoir_stays() -> None:
    reservoir = add(_fill([_entry("a", 1.0)], SMALL), _entry("long", 1.0, *["x" * 100] * 50), SMALL)
    assert _names(reservoir) == ["a", "long"]
    assert reservoir.entries[1].lines == ("x" * 100,) * 5
    assert add(reservoir, _entry("giant", 1.0, "x" * 5_000), SMALL) == reservoir


def test_forgetting_an_interaction_leaves_no_byte_of_it() -> None:
    reservoir = _fill([_entry("a", 1.0, "my secret"), _entry("b", 1.0)], LIMITS)
    forgotten = forget_interaction(reservoir, "a")
    assert b"secret" in to_bytes(reservoir)
    assert b"secret" not in to_bytes(forgotten)
    assert forgotten == _fill([_entry("b", 1.0)], LIMITS)
    assert forget_interaction(forgotten, "a") == forgotten


def test_an_entry_holds_the_users_own_words() -> None:
    asked, answered = Message(Role.USER, "My dog\n\n  is Biscuit. "), Message(Role.ASSISTANT, "I see.")
    kinds = InteractionKind
    assert entry_of(_interaction(kinds.CONVERSATION, asked, answered), 2.5, LIMITS) == ReservoirEntry(
        "i", ("My dog", "is Biscuit."), 5, 2.5
    )
    assert entry_of(_interaction(kinds.DOCUMENT, Message(Role.ASSISTANT, "A page.")), 0, LIMITS).lines == ("A page.",)
    correction = _interaction(kinds.CORRECTION, asked, answered, correction="Biscuit.")
    assert entry_of(correction, 0, LIMITS).lines == ("My dog", "is Biscuit.", "Biscuit.")
    for thumb in (kinds.THUMB_UP, kinds.THUMB_DOWN):
        assert add(Reservoir(), entry_of(_interaction(thumb, asked, answered), 0, LIMITS), LIMITS) == Reservoir()


def test_a_long_line_is_broken_at_a_space_and_loses_nothing() -> None:
    limits = ReservoirLimits(max_line_chars=20)
    text = "a few words and averyveryverylongwordwithoutanyspace in the end"
    lines = entry_of(_interaction(InteractionKind.DOCUMENT, Message(Role.USER, text)), 0, limits).lines
    assert max(map(len, lines)) <= 20
    assert lines[0] == "a few words and"
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize("surprise", [math.nan, math.inf, -math.inf])
def test_a_surprise_that_is_no_number_is_refused(surprise: float) -> None:
    with pytest.raises(InvalidInput, match="surprise"):
        add(Reservoir(), _entry("a", surprise), LIMITS)


def test_limits_that_could_not_be_kept_are_refused() -> None:
    for change in ({"max_entries": 0}, {"max_entry_bytes": 100}, {"max_bytes": 8_192}, {"max_line_chars": 0}):
        with pytest.raises(ConfigInvalid):
            ReservoirLimits(**change)


def test_bytes_that_are_cut_extended_or_foreign_are_refused() -> None:
    data = to_bytes(_fill([_entry("a", 1.0), _entry("b", 2.0, "zwei", "drei")], LIMITS))
    for length in range(len(data)):
        with pytest.raises(Corrupt):
            from_bytes(data[:length])
    damaged = [
        data + b"\0",
        b"XXXX" + data[4:],
        data[:4] + b"\x02\x00" + data[6:],
        data.replace(b"zwei", b"z\xff\xffi"),
    ]
    for other in damaged:
        with pytest.raises(Corrupt):
            from_bytes(other)


@given(st.binary(max_size=80), st.integers(0, 60))
def test_no_bytes_are_read_as_anything_but_a_reservoir_or_corrupt(junk: bytes, at: int) -> None:
    data = to_bytes(_fill([_entry("a", 1.0), _entry("b", 2.0)], LIMITS))
    data = data[:at] + junk + data[at + len(junk) :]
    try:
        read = from_bytes(data)
    except Corrupt:
        return
    assert to_bytes(read) == data
