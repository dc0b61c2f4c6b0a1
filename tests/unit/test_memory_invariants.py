"""What must always hold of memories, whoever else is in a batch and however a stream is cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from unprotected import ForgetfulAbsorber, GreedyAbsorber, LeakyAbsorber

from siltstone.memory.absorber import Absorber, Step
from siltstone.memory.lessons import LessonConfig
from siltstone.memory.user_memory import UserMemory, from_blob, to_blob
from siltstone.model.levels import DELTA, GRADIENT, MOMENTUM, LevelCounters
from siltstone.values import Interaction, InteractionKind

TOLERANCE = 2e-3
"""Largest share of a memory's length by which rounding may move it when a batch has another shape."""
WORLD = tiny.world(lessons=LessonConfig(max_sentences=1))

# Consonants only: nothing in them is a word that is turned round when it is said back.
words = st.text(alphabet="bcdfgh", min_size=1, max_size=5)
texts = st.lists(words, min_size=1, max_size=6).map(" ".join)
kinds = st.sampled_from(list(InteractionKind))


@st.composite
def streams(draw: st.DrawFn, user: str = "ada", max_size: int = 4) -> list[Interaction]:
    """Draws what one user said, in order."""
    said = []
    for index in range(draw(st.integers(1, max_size))):
        kind = draw(kinds)
        is_document = kind is InteractionKind.DOCUMENT
        said.append(
            tiny.interaction(
                f"{user}-{index}",
                draw(texts),
                answer="" if is_document else draw(texts),
                kind=kind,
                user=user,
                correction=draw(texts) if kind is InteractionKind.CORRECTION else "",
            )
        )
    return said


def lengths(said: Sequence[Interaction]) -> list[tuple[float, ...]]:
    """Returns the weights of all lessons: which tokens are learned, and in which of how many places."""
    return [lesson.weights for interaction in said for lesson in WORLD.plan.lessons(interaction)]


def assert_near(found: UserMemory, expected: UserMemory) -> None:
    assert found.position_tokens == expected.position_tokens
    assert found.num_interactions == expected.num_interactions
    assert found.absorbed_ids == expected.absorbed_ids
    assert found.counters.num_updates == expected.counters.num_updates
    assert found.counters.open_tokens == expected.counters.open_tokens
    assert found.counters.open_surprise == pytest.approx(expected.counters.open_surprise, rel=TOLERANCE, abs=1e-6)
    assert [entry.lines for entry in found.reservoir.entries] == [e.lines for e in expected.reservoir.entries]
    for buffer in (DELTA, GRADIENT, MOMENTUM):
        difference = (found.numbers[:, buffer] - expected.numbers[:, buffer]).norm()
        # An open gradient may be small beside what its period summed.
        size = max(float(expected.numbers[:, buffer].norm()), 1e-2)
        assert float(difference) <= TOLERANCE * size, f"buffer {buffer}"


# 1. Isolation.


def assert_isolated(
    kind: type[Absorber], ada: list[Interaction], bob: list[Interaction], other: list[Interaction]
) -> None:
    absorber = WORLD.absorber(kind)
    for order in (1, -1):
        with_bob = tiny.absorb(absorber, *[(WORLD.empty("ada"), ada), (WORLD.empty("bob"), bob)][::order])[::order]
        with_other = tiny.absorb(absorber, *[(WORLD.empty("ada"), ada), (WORLD.empty("bob"), other)][::order])[::order]
        assert to_blob(with_bob[0]) == to_blob(with_other[0])


@st.composite
def two_streams_and_a_change(draw: st.DrawFn) -> tuple[list[Interaction], list[Interaction], list[Interaction]]:
    ada, bob = draw(streams("ada", 2)), draw(streams("bob", 2))
    shift = str.maketrans("bcdfgh", "".join(draw(st.permutations("bcdfgh"))))

    def change(interaction: Interaction) -> Interaction:
        messages = tuple(replace(message, text=message.text.translate(shift)) for message in interaction.messages)
        return replace(interaction, messages=messages, correction=interaction.correction.translate(shift))

    changed = [change(interaction) for interaction in bob]
    assume(changed != bob)
    # Tokens in other places make another matrix product, whose rounding is what `TOLERANCE` is for.
    assume(lengths(changed) == lengths(bob))
    return ada, bob, changed


@settings(max_examples=15)
@given(said=two_streams_and_a_change())
def test_no_bit_of_a_memory_depends_on_the_tokens_of_another_user(
    said: tuple[list[Interaction], list[Interaction], list[Interaction]],
) -> None:
    assert_isolated(Absorber, *said)


ADA = [tiny.interaction("a1", "bcd fgh bdf", "cfh", user="ada")]
BOB = [tiny.interaction("b1", "hgf dcb ccc", "ddd", user="bob")]
BOB_CHANGED = [tiny.interaction("b1", "hgf dcb ddd", "ddd", user="bob")]


def test_gradients_averaged_over_users_would_be_seen() -> None:
    assert_isolated(Absorber, ADA, BOB, BOB_CHANGED)
    with pytest.raises(AssertionError):
        assert_isolated(LeakyAbsorber, ADA, BOB, BOB_CHANGED)


def assert_same_together_and_alone(kind: type[Absorber], said: Sequence[list[Interaction]]) -> None:
    absorber = WORLD.absorber(kind)
    empty = [WORLD.empty(stream[0].owner.user) for stream in said]
    together = tiny.absorb(absorber, *zip(empty, said, strict=True))
    for memory, stream, found in zip(empty, said, together, strict=True):
        assert_near(found, tiny.absorb(absorber, (memory, stream))[0])


@settings(max_examples=15)
@given(said=st.tuples(streams("ada", 2), streams("bob", 3), streams("eve", 2)))
def test_users_absorbed_together_remember_what_each_does_alone(said: tuple[list[Interaction], ...]) -> None:
    assert_same_together_and_alone(Absorber, said)


def test_users_that_share_gradients_would_not_remember_what_each_does_alone() -> None:
    assert_same_together_and_alone(Absorber, [ADA, BOB])
    with pytest.raises(AssertionError):
        assert_same_together_and_alone(LeakyAbsorber, [ADA, BOB])


def test_a_memory_that_is_not_finite_stops_nobody_else() -> None:
    poisoned = WORLD.empty("bob")
    poisoned = poisoned.next(numbers=torch.full_like(poisoned.numbers, float("nan")))

    ada, bob = tiny.absorb(WORLD.absorber(), (WORLD.empty("ada"), ADA), (poisoned, BOB))

    assert not torch.isfinite(bob.numbers).all()
    assert to_blob(ada) == to_blob(tiny.absorb(WORLD.absorber(), (WORLD.empty(), ADA), (WORLD.empty("bob"), BOB))[0])


# 3. Split invariance.


def assert_the_cut_does_not_matter(
    kind: type[Absorber], ada: list[Interaction], cuts: Sequence[int], others: list[Interaction]
) -> None:
    absorber = WORLD.absorber(kind)
    whole = tiny.absorb(absorber, (WORLD.empty("ada"), ada))[0]

    one_by_one = WORLD.empty("ada")
    for interaction in ada:
        one_by_one = tiny.absorb(absorber, (one_by_one, [interaction]))[0]
    assert_near(one_by_one, whole)

    in_batches, bob = WORLD.empty("ada"), WORLD.empty("bob")
    for start, end in zip([0, *cuts], [*cuts, len(ada)], strict=True):
        in_batches, bob = tiny.absorb(absorber, (in_batches, ada[start:end]), (bob, others[start : end + 1]))
    assert_near(in_batches, whole)


@settings(max_examples=15)
@given(data=st.data())
def test_a_stream_cut_in_any_way_gives_the_same_memory(data: st.DataObject) -> None:
    ada, others = data.draw(streams("ada")), data.draw(streams("bob"))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ada)), max_size=3)))
    assert_the_cut_does_not_matter(Absorber, ada, cuts, others)


STREAM = [tiny.interaction(f"s{i}", text, "fgh") for i, text in enumerate(["bcd fgh bdf", "hh gg ff", "cdc dcd"])]


def test_a_period_that_starts_anew_with_every_call_would_be_seen() -> None:
    assert_the_cut_does_not_matter(Absorber, STREAM, [1], BOB)
    with pytest.raises(AssertionError):
        assert_the_cut_does_not_matter(ForgetfulAbsorber, STREAM, [1], BOB)


def assert_updates_at_their_periods(kind: type[Absorber], said: list[Interaction], cuts: Sequence[int]) -> None:
    """Watches every micro-step: none may cross the end of a period, and levels move where periods end."""
    absorber, memory, position = WORLD.absorber(kind), WORLD.empty(), 0
    fast = WORLD.config.fast.period_tokens
    for start, end in zip([0, *cuts], [*cuts, len(said)], strict=True):
        for done in absorber.absorb([(memory, said[start:end])]):
            if isinstance(done, Step):
                before, position = position, position + done.num_tokens
                assert position // fast == before // fast or position % fast == 0
            else:
                memory = done[0]
        assert memory.position_tokens == position
        for level, config in enumerate(WORLD.config.levels):
            assert memory.counters.num_updates[level] == position // config.period_tokens
            assert memory.counters.open_tokens[level] == position % config.period_tokens


@settings(max_examples=15)
@given(data=st.data())
def test_levels_move_at_multiples_of_their_period_of_the_users_own_tokens(data: st.DataObject) -> None:
    said = data.draw(streams())
    cuts = sorted(data.draw(st.lists(st.integers(0, len(said)), max_size=3)))
    assert_updates_at_their_periods(Absorber, said, cuts)


def test_lessons_read_whole_would_move_levels_elsewhere() -> None:
    assert_updates_at_their_periods(Absorber, STREAM, [1])
    with pytest.raises(AssertionError):
        assert_updates_at_their_periods(GreedyAbsorber, STREAM, [1])


def test_a_memory_kept_under_longer_periods_goes_on_under_shorter_ones() -> None:
    long = replace(WORLD.config.fast, period_tokens=64), replace(WORLD.config.mid, period_tokens=128)
    slow = tiny.world(config=replace(WORLD.config, fast=long[0], mid=long[1]), lessons=LessonConfig(max_sentences=1))
    memory = tiny.absorb(slow.absorber(), (slow.empty(), STREAM[:2]))[0]
    assert memory.counters.open_tokens[0] > WORLD.config.fast.period_tokens

    steps = [done for done in WORLD.absorber().absorb([(memory, STREAM[2:])]) if isinstance(done, Step)]

    assert steps[0].num_tokens == 1
    assert max(step.num_tokens for step in steps) <= WORLD.config.fast.period_tokens


# 4. Resume.


def through_a_blob(memory: UserMemory) -> UserMemory:
    return from_blob(memory.owner, to_blob(memory), memory.core, WORLD.shape)


def without_open_gradient(memory: UserMemory) -> UserMemory:
    numbers = memory.numbers.clone()
    numbers[:, GRADIENT] = 0
    return through_a_blob(memory.next(numbers=numbers))


def without_momentum(memory: UserMemory) -> UserMemory:
    numbers = memory.numbers.clone()
    numbers[:, MOMENTUM] = 0
    return through_a_blob(memory.next(numbers=numbers))


def without_counters(memory: UserMemory) -> UserMemory:
    return through_a_blob(memory.next(counters=LevelCounters.zero(2)))


def resumes(said: list[Interaction], restart=through_a_blob) -> bool:  # type: ignore[no-untyped-def]
    """Says whether a restart after every interaction gives, bit for bit, what going on without one gives."""
    absorber, kept, restarted = WORLD.absorber(), WORLD.empty(), WORLD.empty()
    for interaction in said:
        kept = tiny.absorb(absorber, (kept, [interaction]))[0]
        restarted = tiny.absorb(WORLD.absorber(), (restart(restarted), [interaction]))[0]
        if to_blob(kept) != to_blob(restarted):
            return False
    return True


@settings(max_examples=15)
@given(said=streams())
def test_a_memory_saved_and_loaded_goes_on_bit_for_bit(said: list[Interaction]) -> None:
    assert resumes(said)


@pytest.mark.parametrize("lossy", [without_open_gradient, without_momentum, without_counters])
def test_a_snapshot_without_part_of_the_state_would_be_seen(lossy) -> None:  # type: ignore[no-untyped-def]
    assert resumes(STREAM)
    assert not resumes(STREAM, lossy)


def test_a_memory_that_was_absorbed_into_is_not_written_to() -> None:
    before = tiny.absorb(WORLD.absorber(), (WORLD.empty(), STREAM[:1]))[0]
    blob = to_blob(before)

    tiny.absorb(WORLD.absorber(), (before, STREAM[1:]))

    assert to_blob(before) == blob


# An id is applied once.


@pytest.mark.parametrize("repeats", ["in one call", "in another call", "after a restart"])
def test_a_repeated_id_changes_nothing(repeats: str) -> None:
    absorber = WORLD.absorber()
    once = tiny.absorb(absorber, (WORLD.empty(), STREAM))[0]
    if repeats == "in one call":
        twice = tiny.absorb(absorber, (WORLD.empty(), [STREAM[0], *STREAM, STREAM[1]]))[0]
    else:
        again = through_a_blob(once) if repeats == "after a restart" else once
        twice = tiny.absorb(absorber, (again, STREAM))[0]

    assert to_blob(twice) == to_blob(once)


def test_the_same_text_under_another_id_is_another_interaction() -> None:
    once = tiny.absorb(WORLD.absorber(), (WORLD.empty(), STREAM))[0]

    again = tiny.absorb(WORLD.absorber(), (once, [replace(STREAM[0], id="s9")]))[0]

    assert again.num_interactions == once.num_interactions + 1
    assert not torch.equal(again.numbers, once.numbers)
