"""Levels move by their rule, user by user, exactly when their periods are full."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from siltstone.errors import ConfigInvalid
from siltstone.model.deltas import site_widths
from siltstone.model.levels import (
    DELTA,
    GRADIENT,
    MAX_SURPRISE,
    MOMENTUM,
    LevelConfig,
    LevelCounters,
    coefficients,
    direction_of,
    fold_in,
)
from siltstone.model.orthogonal import orthogonalise, orthogonalise_slowly

SHAPE = tiny.TINY_MEMORY.shape_for(tiny.TINY_CORE)
LEVELS = (
    LevelConfig(period_tokens=4, rate=0.3, momentum=0.7, retention=0.9, max_norm=1.5),
    LevelConfig(period_tokens=12, rate=0.2),
)


def slow_direction(gradient_N: torch.Tensor) -> torch.Tensor:
    """One bent map at a time."""
    parts, at = [], 0
    for site in SHAPE.sites:
        width = site_widths(SHAPE.core, site)[1]
        for _ in range(SHAPE.num_layers):
            block = gradient_N[at : at + SHAPE.rank * width].reshape(SHAPE.rank, width)
            at += SHAPE.rank * width
            parts.append(-0.2 * math.sqrt(max(1.0, width / SHAPE.rank)) * orthogonalise(block[None])[0].reshape(-1))
    assert at == len(gradient_N)
    return torch.cat(parts)


class SlowUser:
    """One user's levels, token for token, as the rule is written."""

    def __init__(self) -> None:
        n = SHAPE.num_coefficients
        self.delta = [torch.zeros(n) for _ in LEVELS]
        self.gradient = [torch.zeros(n) for _ in LEVELS]
        self.momentum = [torch.zeros(n) for _ in LEVELS]
        self.tokens = [0 for _ in LEVELS]
        self.surprise = [0.0 for _ in LEVELS]
        self.updated_at: list[list[int]] = [[] for _ in LEVELS]
        self.position = 0

    def learn(self, gradient_N: torch.Tensor, tokens: int, surprise: float) -> None:
        self.position += tokens
        for i, level in enumerate(LEVELS):
            self.gradient[i] = self.gradient[i] + gradient_N
            self.tokens[i] += tokens
            self.surprise[i] += surprise
            if self.tokens[i] < level.period_tokens:
                continue
            driven = self.gradient[i] + level.momentum * self.momentum[i]
            rate = level.rate * min(2.0, self.surprise[i] / self.tokens[i])
            delta = level.retention * self.delta[i] + rate * slow_direction(driven)
            if float(delta.norm()) > level.max_norm:
                delta = delta * (level.max_norm / float(delta.norm()))
            self.delta[i] = delta
            self.momentum[i] = driven if level.momentum else torch.zeros_like(driven)
            self.gradient[i] = torch.zeros_like(driven)
            self.tokens[i], self.surprise[i] = 0, 0.0
            self.updated_at[i].append(self.position)


def random_gradient(users: int, seed: int, size: float = 1.0) -> torch.Tensor:
    return torch.randn(users, SHAPE.num_coefficients, generator=torch.Generator().manual_seed(seed)) * size


def empty_state(users: int) -> tuple[torch.Tensor, list[LevelCounters]]:
    numbers = torch.zeros(users, len(LEVELS), 3, SHAPE.num_coefficients)
    return numbers, [LevelCounters.zero(len(LEVELS)) for _ in range(users)]


def test_many_users_together_move_as_each_does_alone_by_the_rule() -> None:
    numbers, counters = empty_state(3)
    slow = [SlowUser() for _ in range(3)]
    tokens = [(4, 1, 0), (4, 3, 2), (4, 4, 2), (4, 2, 3), (1, 2, 1), (3, 4, 4), (4, 4, 4), (2, 1, 0), (2, 3, 4)]
    for step, taken in enumerate(tokens):
        gradient = random_gradient(3, seed=step) * torch.tensor(taken)[:, None]
        # Praise may raise the mean above one, and far above what a rate may be raised with.
        surprise = [n * (0.1 + 0.4 * step) for n in taken]
        fold_in(SHAPE, LEVELS, numbers, counters, gradient, list(taken), surprise)
        for row, user in enumerate(slow):
            user.learn(gradient[row], taken[row], surprise[row])

    for row, user in enumerate(slow):
        assert [len(at) for at in user.updated_at] == counters[row].num_updates
        assert user.tokens == counters[row].open_tokens
        assert user.surprise == pytest.approx(counters[row].open_surprise)
        for i in range(len(LEVELS)):
            torch.testing.assert_close(numbers[row, i, DELTA], user.delta[i], rtol=0, atol=1e-5)
            torch.testing.assert_close(numbers[row, i, GRADIENT], user.gradient[i], rtol=0, atol=1e-5)
            torch.testing.assert_close(numbers[row, i, MOMENTUM], user.momentum[i], rtol=0, atol=1e-4)
    assert [len(at) for at in slow[0].updated_at] == [7, 2]
    torch.testing.assert_close(coefficients(numbers)[1], slow[1].delta[0] + slow[1].delta[1], rtol=0, atol=1e-5)


def test_a_direction_is_that_of_the_singular_vectors_with_the_size_of_the_gradient_taken_away() -> None:
    gradient = random_gradient(2, seed=1)

    found = SHAPE.split(direction_of(SHAPE, gradient))

    for site, parts in SHAPE.split(gradient).items():
        scale = 0.2 * (site_widths(SHAPE.core, site)[1] / SHAPE.rank) ** 0.5
        for user in range(2):
            for layer in range(SHAPE.num_layers):
                expected = -scale * orthogonalise_slowly(parts[user, layer])
                error = torch.linalg.matrix_norm(found[site][user, layer] - expected, ord=2)
                assert error <= 0.035 * scale
    torch.testing.assert_close(direction_of(SHAPE, gradient * 1e-9), direction_of(SHAPE, gradient), rtol=0, atol=1e-4)


def test_what_a_level_expected_moves_nothing_and_no_surprise_moves_more_than_twice_the_rate() -> None:
    lengths = {}
    for surprise in (0.0, 0.5, 1.0, MAX_SURPRISE, 50.0):
        numbers, counters = empty_state(1)
        fold_in(SHAPE, LEVELS, numbers, counters, random_gradient(1, seed=1, size=0.01), [4], [4 * surprise])
        lengths[surprise] = float(numbers[0, 0, DELTA].norm()) if surprise else float(numbers[0, 0, DELTA].abs().max())

    # The bound on the whole delta hides nothing here.
    assert lengths[0.0] == 0
    assert lengths[0.5] < lengths[1.0] <= lengths[MAX_SURPRISE] == lengths[50.0]


def test_a_zero_gradient_leaves_a_delta_where_it_is() -> None:
    level = (LevelConfig(period_tokens=4, rate=0.3),)
    numbers = torch.zeros(1, 1, 3, SHAPE.num_coefficients)
    numbers[0, 0, DELTA] = random_gradient(1, seed=2)[0]
    before = numbers.clone()

    fold_in(SHAPE, level, numbers, [LevelCounters.zero(1)], torch.zeros(1, SHAPE.num_coefficients), [4], [4.0])

    assert torch.equal(numbers, before)


def test_each_update_keeps_its_share_of_the_delta() -> None:
    level = (LevelConfig(period_tokens=4, rate=0.3, retention=0.75),)
    numbers = torch.zeros(1, 1, 3, SHAPE.num_coefficients)
    numbers[0, 0, DELTA] = 1.0
    counters = [LevelCounters.zero(1)]
    for _ in range(2):
        fold_in(SHAPE, level, numbers, counters, torch.zeros(1, SHAPE.num_coefficients), [4], [0.0])

    assert torch.equal(numbers[0, 0, DELTA], torch.full((SHAPE.num_coefficients,), 0.5625))


@settings(max_examples=30)
@given(
    sizes=st.lists(st.sampled_from([0.0, 1e-38, 1e-25, 1e-12, 1.0, 1e12, 1e30]), min_size=1, max_size=6),
    surprise=st.floats(0, 100),
    seed=st.integers(0, 2**16),
)
def test_gradients_of_any_size_leave_every_level_finite_and_within_its_bound(
    sizes: list[float], surprise: float, seed: int
) -> None:
    levels = tuple(replace(level, period_tokens=4, rate=3.0, max_norm=1.5) for level in LEVELS)
    numbers, counters = empty_state(1)
    for step, size in enumerate(sizes):
        fold_in(SHAPE, levels, numbers, counters, random_gradient(1, seed + step, size), [4], [4 * surprise])

    assert torch.isfinite(numbers).all()
    assert (numbers[0, :, DELTA].norm(dim=1) <= 1.5 * (1 + 1e-5)).all()


def test_without_its_bound_a_delta_would_grow_past_it() -> None:
    levels = tuple(replace(level, period_tokens=4, rate=3.0, max_norm=1e9) for level in LEVELS)
    numbers, counters = empty_state(1)
    fold_in(SHAPE, levels, numbers, counters, random_gradient(1, seed=0), [4], [4.0])

    assert (numbers[0, :, DELTA].norm(dim=1) > 1.5).all()


@pytest.mark.parametrize(
    "change",
    [
        {"period_tokens": 0},
        {"rate": -0.1},
        {"rate": math.nan},
        {"momentum": 1.0},
        {"momentum": -0.1},
        {"retention": 0.0},
        {"retention": 1.1},
        {"max_norm": 0.0},
        {"max_norm": math.nan},
    ],
)
def test_a_level_that_could_not_be_stable_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(ConfigInvalid):
        replace(LEVELS[0], **change)
