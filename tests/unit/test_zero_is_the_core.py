"""A user without a memory gets exactly the core, also beside users who have one."""

from __future__ import annotations

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from siltstone.memory.user_memory import UserMemory
from siltstone.model.core import KeyValues, forward, forward_keeping
from siltstone.model.deltas import bend_with

WORLD = tiny.world()


@pytest.fixture(scope="module")
def learned() -> UserMemory:
    said = [tiny.interaction("1", "My boat is called Estrela. I live in Lisbon by the sea.")]
    return tiny.absorb(WORLD.absorber(), (WORLD.empty("bob"), said))[0]


def is_the_core(memories: list[UserMemory], ids: torch.Tensor, row: int) -> bool:
    """Says whether a row of a batch has the core's outputs bit for bit, read whole and token by token."""
    stacked = torch.stack([memory.coefficients() for memory in memories])
    layers = {site: list(part.unbind(1)) for site, part in WORLD.shape.split(stacked).items()}
    bend = bend_with(WORLD.shape, WORLD.basis, layers)
    with torch.no_grad():
        if not torch.equal(forward(WORLD.core, ids, bend)[row], forward(WORLD.core, ids)[row]):
            return False
        past: KeyValues | None = None
        bare_past: KeyValues | None = None
        for part in ids.split([max(1, ids.shape[1] - 2)] + [1] * min(2, ids.shape[1] - 1), dim=1):
            x, past = forward_keeping(WORLD.core, part, past, bend)
            bare, bare_past = forward_keeping(WORLD.core, part, bare_past)
            if not torch.equal(x[row], bare[row]):
                return False
    return all(torch.equal(k[row], b[row]) for k, b in zip(past.keys, bare_past.keys, strict=True))


@settings(max_examples=20)
@given(
    users=st.lists(st.booleans(), min_size=1, max_size=5).filter(lambda users: not all(users)),
    length=st.integers(1, 40),
    seed=st.integers(0, 2**16),
)
def test_an_empty_memory_gives_exactly_the_core_whoever_else_is_in_the_batch(
    learned: UserMemory, users: list[bool], length: int, seed: int
) -> None:
    ids = torch.randint(0, 97, (len(users), length), generator=torch.Generator().manual_seed(seed))
    memories = [learned if has_memory else WORLD.empty() for has_memory in users]

    for row, has_memory in enumerate(users):
        assert has_memory or is_the_core(memories, ids, row)


def test_a_memory_that_has_learned_anything_would_be_seen(learned: UserMemory) -> None:
    ids = torch.randint(0, 97, (2, 12), generator=torch.Generator().manual_seed(1))

    assert not is_the_core([WORLD.empty(), learned], ids, 1)


def test_until_a_first_period_is_full_a_user_gets_exactly_the_core() -> None:
    memory = tiny.absorb(WORLD.absorber(), (WORLD.empty(), [tiny.interaction("1", "Oh?")]))[0]

    assert 0 < memory.counters.open_tokens[0] < WORLD.config.fast.period_tokens
    assert is_the_core([memory], torch.arange(20)[None], 0)
