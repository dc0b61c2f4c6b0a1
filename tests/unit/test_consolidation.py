"""When a memory sleeps, and that what it is afterwards goes on like any other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from siltstone.errors import ConfigInvalid
from siltstone.memory.consolidation import due_level, parts_of, replay_of, sleep_is_due, slept
from siltstone.memory.lessons import LessonConfig
from siltstone.memory.user_memory import Sleeps, UserMemory, from_blob, to_blob
from siltstone.model.levels import DELTA, GRADIENT, MOMENTUM, LevelConfig

CONFIG = replace(
    tiny.TINY_MEMORY,
    fast=LevelConfig(period_tokens=8, rate=0.1, momentum=0.5, retention=0.99, sleep_tokens=64),
    mid=LevelConfig(period_tokens=24, rate=0.1, momentum=0.5, sleep_tokens=192),
)
WORLD = tiny.world(config=CONFIG, lessons=LessonConfig(max_sentences=1))
FAST, MID = 0, 1
SAID = [tiny.interaction(f"s{at}", text, "fgh") for at, text in enumerate(["bcd fgh bdf", "hh gg ff dd", "cdc dcd bb"])]
LATER = [tiny.interaction("l1", "gfg hgh bcb", "dcb"), tiny.interaction("l2", "ddd fff", "hg")]

COUNT = st.integers(0, 10**7)
PERIOD = st.integers(1, 10**5)


def learned(said: list | None = None) -> UserMemory:  # type: ignore[type-arg]
    return tiny.absorb(WORLD.absorber(), (WORLD.empty(), said or SAID))[0]


def emptied(memory: UserMemory, level: int, kept_share: float = 0.0) -> UserMemory:
    """Returns the memory after a sleep in which all that moves was copied."""
    parts = parts_of(memory, level, kept_share, CONFIG)
    return slept(memory, level, kept_share, parts.target_N + parts.moves_N)


@given(learned_before=COUNT, period=PERIOD, learned_since=COUNT)
def test_a_level_is_due_once_it_has_learned_its_tokens_since_it_slept(
    learned_before: int, period: int, learned_since: int
) -> None:
    position = learned_before + learned_since

    assert sleep_is_due(position, learned_before, period) == (learned_since >= period)
    assert not sleep_is_due(position, position, period)


@given(parts=st.lists(st.integers(1, 200), min_size=1, max_size=30), period=st.integers(1, 500))
def test_how_often_a_user_sleeps_hangs_on_what_was_learned_and_not_on_how_often_it_is_asked(
    parts: list[int], period: int
) -> None:
    position = slept_at = num_sleeps = 0
    for part in parts:
        position += part
        for _ in range(3):
            if sleep_is_due(position, slept_at, period):
                num_sleeps, slept_at = num_sleeps + 1, position

    assert num_sleeps <= position // period
    assert position - slept_at < period
    if max(parts) <= period:
        assert num_sleeps >= position // (2 * period)


@given(position=COUNT, fast_at=COUNT, mid_at=COUNT)
def test_the_slowest_level_that_is_due_sleeps_and_takes_the_faster_along(
    position: int, fast_at: int, mid_at: int
) -> None:
    memory = WORLD.empty().next(position_tokens=position, sleeps=Sleeps((0, 0), (fast_at, mid_at)))
    level = due_level(memory, CONFIG)

    is_due = [
        sleep_is_due(position, at, own.sleep_tokens) for at, own in zip((fast_at, mid_at), CONFIG.levels, strict=True)
    ]
    assert level == (MID if is_due[MID] else FAST if is_due[FAST] else None)
    if level is not None:
        assert due_level(slept(memory, level, 0.0, torch.zeros(WORLD.shape.num_coefficients)), CONFIG) in (
            None,
            MID if level == FAST and is_due[MID] else None,
        )


def test_a_memory_that_was_never_taught_is_not_due() -> None:
    assert due_level(WORLD.empty(), CONFIG) is None
    assert due_level(learned(), CONFIG) is not None


def test_mid_may_not_sleep_more_often_than_fast() -> None:
    with pytest.raises(ConfigInvalid):
        replace(CONFIG, mid=replace(CONFIG.mid, sleep_tokens=32))


@pytest.mark.parametrize("level", [FAST, MID])
@pytest.mark.parametrize("kept_share", [0.0, 0.5])
def test_the_parts_are_the_memory_and_a_copied_sleep_changes_no_answer(level: int, kept_share: float) -> None:
    memory = learned().next(slow_N=torch.full((WORLD.shape.num_coefficients,), 0.01))
    parts = parts_of(memory, level, kept_share, CONFIG)
    after = emptied(memory, level, kept_share)

    torch.testing.assert_close(parts.stays_N + parts.target_N + parts.moves_N, memory.coefficients())
    torch.testing.assert_close(after.coefficients(), memory.coefficients())
    torch.testing.assert_close(
        after.numbers[: level + 1, DELTA], kept_share * memory.numbers[: level + 1, DELTA], rtol=0, atol=0
    )


def test_the_slow_level_is_there_once_mid_has_slept_and_not_before() -> None:
    memory = learned()
    after_fast = emptied(memory, FAST)
    after_mid = emptied(after_fast, MID)

    assert after_fast.slow_N is None
    assert after_fast.num_bytes == memory.num_bytes
    assert after_mid.slow_N is not None
    torch.testing.assert_close(after_mid.slow_N, memory.coefficients())
    assert after_mid.sleeps.counts == (2, 1)
    assert after_mid.sequence == memory.sequence + 2


def test_a_sleep_clears_what_was_gathered_where_the_emptied_levels_no_longer_are() -> None:
    memory = learned()
    assert memory.counters.open_tokens[FAST]
    after = emptied(memory, FAST)

    assert not after.numbers[FAST, [GRADIENT, MOMENTUM]].any()
    assert torch.equal(after.numbers[MID, [GRADIENT, MOMENTUM]], memory.numbers[MID, [GRADIENT, MOMENTUM]])
    assert after.counters.open_surprise == [0.0, memory.counters.open_surprise[MID]]
    assert after.counters.open_tokens == memory.counters.open_tokens
    assert not emptied(memory, MID).numbers[:, [GRADIENT, MOMENTUM]].any()


@pytest.mark.parametrize("level", [FAST, MID])
def test_levels_go_on_moving_at_multiples_of_their_period_after_a_sleep(level: int) -> None:
    memory = tiny.absorb(WORLD.absorber(), (emptied(learned(), level), LATER))[0]

    for at, config in enumerate(CONFIG.levels):
        assert memory.counters.num_updates[at] == memory.position_tokens // config.period_tokens
        assert memory.counters.open_tokens[at] == memory.position_tokens % config.period_tokens


def test_what_is_learned_after_a_sleep_is_learned_on_top_of_the_slow_level() -> None:
    memory = emptied(learned(), MID)
    bare = memory.next(slow_N=None)

    with_slow, without = (tiny.absorb(WORLD.absorber(), (one, LATER))[0] for one in (memory, bare))

    assert memory.slow_N is not None
    assert with_slow.slow_N is not None
    assert torch.equal(with_slow.slow_N, memory.slow_N)
    assert not torch.allclose(with_slow.numbers, without.numbers)


def test_who_has_slept_and_who_has_not_learn_side_by_side_as_alone() -> None:
    memory, other = emptied(learned(), MID), WORLD.empty("bob")
    work = [tiny.interaction(one.id, one.messages[0].text, "dd", user="bob") for one in LATER]

    together = tiny.absorb(WORLD.absorber(), (memory, LATER), (other, work))
    alone = [tiny.absorb(WORLD.absorber(), (memory, LATER))[0], tiny.absorb(WORLD.absorber(), (other, work))[0]]

    for found, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(found.numbers, expected.numbers, rtol=2e-3, atol=2e-3)


def test_a_memory_that_slept_is_saved_and_goes_on_bit_for_bit() -> None:
    memory = emptied(learned(), MID)
    restarted = from_blob(memory.owner, to_blob(memory), memory.core, WORLD.shape)

    kept, again = (tiny.absorb(WORLD.absorber(), (one, LATER))[0] for one in (memory, restarted))

    assert to_blob(kept) == to_blob(again)


def test_a_sleep_writes_to_no_memory() -> None:
    memory = emptied(learned(), MID)
    blob = to_blob(memory)

    emptied(memory, MID, 0.5)
    tiny.absorb(WORLD.absorber(), (memory, LATER))

    assert to_blob(memory) == blob


def test_every_statement_is_replayed_to_another_cue_in_every_sleep() -> None:
    said = [tiny.interaction("1", "My boat is called Estrela. She has a long red hull."), tiny.interaction("2", "Why?")]
    memory = learned(said)
    first, again = replay_of(memory, WORLD.plan, MID), replay_of(memory, WORLD.plan, MID)
    later = replay_of(emptied(memory, MID), WORLD.plan, MID)

    assert len(first) == 2
    assert first == again
    assert first != later
