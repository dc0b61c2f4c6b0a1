"""A user's memory stays small and finite however long its history."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from siltstone.memory.lessons import LessonConfig
from siltstone.memory.reservoir import ReservoirLimits
from siltstone.memory.user_memory import NUM_REMEMBERED_IDS, MemoryConfig, UserMemory, from_blob, to_blob
from siltstone.model.levels import DELTA
from siltstone.values import InteractionKind

LIMITS = ReservoirLimits(max_entries=6, max_bytes=1_200, max_entry_bytes=560, max_line_chars=60)
SMALL = MemoryConfig(
    num_layers=1,
    rank=2,
    fast=replace(tiny.TINY_MEMORY.fast, rate=2.0, max_norm=1.5),
    mid=replace(tiny.TINY_MEMORY.mid, rate=2.0, max_norm=2.5),
)
BRIEF = LessonConfig(rehearsals=0)
WORLD = tiny.world(config=SMALL, limits=LIMITS, lessons=BRIEF)
ID_BYTES = 8
HEADER_BYTES = 700
"""Names, counters and numbers of a header, without its ids."""


def most_bytes(limits: ReservoirLimits) -> int:
    ids = NUM_REMEMBERED_IDS * (ID_BYTES + 3)
    return HEADER_BYTES + ids + limits.max_bytes + WORLD.empty().num_bytes


def history(num: int, seed: int) -> list[str]:
    chance = random.Random(seed)
    return ["".join(chance.choices("abcdefgh ij", k=chance.randint(2, 30))) for _ in range(num)]


def after_a_long_history(world: tiny.World, texts: list[str]) -> UserMemory:
    """Returns the memory of a user who had already said more than the window of ids holds."""
    started = world.empty().next(absorbed_ids=tuple(f"{i:0{ID_BYTES}}" for i in range(NUM_REMEMBERED_IDS)))
    said = [tiny.interaction(f"n{i:0{ID_BYTES - 1}}", text) for i, text in enumerate(texts)]
    return tiny.absorb(world.absorber(), (started, said))[0]


@settings(max_examples=5)
@given(seed=st.integers(0, 2**16), num=st.integers(30, 60))
def test_a_blob_stays_within_the_bounds_of_reservoir_and_ids(seed: int, num: int) -> None:
    memory = after_a_long_history(WORLD, history(num, seed))

    assert memory.num_interactions == num
    assert len(to_blob(memory)) <= most_bytes(LIMITS)
    assert len(memory.absorbed_ids) == NUM_REMEMBERED_IDS
    assert memory.absorbed_ids[-1] == f"n{num - 1:0{ID_BYTES - 1}}"
    assert len(memory.reservoir.entries) <= LIMITS.max_entries
    assert to_blob(from_blob(memory.owner, to_blob(memory), memory.core, WORLD.shape)) == to_blob(memory)


def test_without_the_bounds_of_its_reservoir_a_blob_would_grow_past_them() -> None:
    unbounded = tiny.world(config=SMALL, limits=ReservoirLimits(), lessons=BRIEF)
    memory = after_a_long_history(unbounded, ["one more line, each as long as this"] * 60)

    assert len(to_blob(memory)) > most_bytes(LIMITS)


def drifts(world: tiny.World, texts: list[str], kinds: list[InteractionKind]) -> tuple[UserMemory, list[list[float]]]:
    """Absorbs one by one and returns the norm of every level's delta after each."""
    memory, found = world.empty(), []
    for i, (text, kind) in enumerate(zip(texts, kinds, strict=False)):
        said = tiny.interaction(f"{i}", text, answer=text[::-1], kind=kind, correction=text)
        memory = tiny.absorb(world.absorber(), (memory, [said]))[0]
        found.append(memory.numbers[:, DELTA].norm(dim=1).tolist())
    return memory, found


@settings(max_examples=8)
@given(seed=st.integers(0, 2**16), kinds=st.lists(st.sampled_from(list(InteractionKind)), min_size=12, max_size=16))
def test_deltas_stay_within_their_norms_and_finite_on_any_stream(seed: int, kinds: list[InteractionKind]) -> None:
    memory, found = drifts(WORLD, history(16, seed), kinds)

    assert torch.isfinite(memory.numbers).all()
    for norms in found:
        assert norms[0] <= SMALL.fast.max_norm * (1 + 1e-5)
        assert norms[1] <= SMALL.mid.max_norm * (1 + 1e-5)


def test_without_its_bound_a_delta_would_leave_it() -> None:
    unbounded = replace(SMALL, fast=replace(SMALL.fast, max_norm=1e9), mid=replace(SMALL.mid, max_norm=1e9))
    world = tiny.world(config=unbounded, limits=LIMITS, lessons=BRIEF)

    _, found = drifts(world, history(16, 1), [InteractionKind.CONVERSATION] * 16)

    assert found[-1][0] > SMALL.fast.max_norm
    assert found[-1][1] > SMALL.mid.max_norm


@pytest.mark.parametrize("text", ["a", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" * 20, "???? ???", "\x00\x1b\u202e"])
def test_odd_texts_leave_a_sound_memory(text: str) -> None:
    memory = tiny.absorb(WORLD.absorber(), (WORLD.empty(), [tiny.interaction("1", text, text)]))[0]

    assert torch.isfinite(memory.numbers).all()
    assert from_blob(memory.owner, to_blob(memory), memory.core, WORLD.shape).num_interactions == 1
