"""How a token is chosen: by the row's own rule and random numbers, from numbers only."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from siltstone.errors import InvalidInput
from siltstone.inference.sampling import check_sampling, choose_tokens, generator_of
from siltstone.values import Sampling


def logits(num_rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_rows, 50, generator=torch.Generator().manual_seed(seed)) * 3


def choose(rows: torch.Tensor, *samplings: Sampling) -> list[int | None]:
    return choose_tokens(rows, samplings, [generator_of(sampling) for sampling in samplings])


def draws(sampling: Sampling, row: torch.Tensor, num_draws: int) -> list[int | None]:
    generator = generator_of(sampling)
    return [choose_tokens(row, [sampling], [generator])[0] for _ in range(num_draws)]


def test_a_temperature_of_zero_takes_the_likeliest() -> None:
    rows = logits(3)
    assert choose(rows, *[Sampling()] * 3) == rows.argmax(dim=1).tolist()


@given(st.integers(-(2**63), 2**63 - 1), st.floats(0.1, 2.0), st.integers(0, 3))
def test_a_seed_gives_the_same_token_whoever_else_is_in_the_batch(seed: int, temperature: float, at: int) -> None:
    sampling, others = Sampling(temperature=temperature, seed=seed), Sampling(temperature=1.0, seed=1)
    rows = logits(4)
    beside = choose(rows, *[sampling if row == at else others for row in range(4)])[at]
    assert beside == choose(rows[at : at + 1], sampling)[0]


def test_another_seed_gives_other_tokens() -> None:
    row = logits(1)
    first, second = (draws(Sampling(temperature=1.0, seed=seed), row, 30) for seed in (1, 2))
    assert first == draws(Sampling(temperature=1.0, seed=1), row, 30)
    assert first != second


def test_tokens_come_as_often_as_their_probability_says() -> None:
    row = torch.log(torch.tensor([[0.6, 0.3, 0.1]]))
    drawn = draws(Sampling(temperature=1.0, seed=3), row, 3000)
    shares = [drawn.count(token) / 3000 for token in range(3)]
    assert shares == pytest.approx([0.6, 0.3, 0.1], abs=0.03)
    hot = draws(Sampling(temperature=2.0, seed=3), row, 3000)
    roots = [math.sqrt(p) for p in (0.6, 0.3, 0.1)]
    assert [hot.count(token) / 3000 for token in range(3)] == pytest.approx([r / sum(roots) for r in roots], abs=0.03)


def test_top_p_keeps_the_likeliest_and_no_more_than_fill_it() -> None:
    row = torch.log(torch.tensor([[0.1, 0.5, 0.15, 0.25]]))
    assert set(draws(Sampling(temperature=1.0, top_p=1e-9, seed=1), row, 50)) == {1}
    assert set(draws(Sampling(temperature=1.0, top_p=0.6, seed=1), row, 200)) == {1, 3}
    assert set(draws(Sampling(temperature=1.0, top_p=0.8, seed=1), row, 400)) == {1, 2, 3}
    assert set(draws(Sampling(temperature=1.0, seed=1), row, 400)) == {0, 1, 2, 3}


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-45, 5e-324])
def test_a_temperature_next_to_zero_takes_the_likeliest_too(temperature: float) -> None:
    row = logits(1) * 10
    assert draws(Sampling(temperature=temperature, seed=5), row, 5) == [int(row.argmax())] * 5


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_without_numbers_gives_no_token_and_harms_no_other(value: float, temperature: float) -> None:
    rows = logits(3)
    sampling = Sampling(temperature=temperature, seed=4)
    quiet = choose(rows, *[sampling] * 3)
    rows[1, 7] = value
    assert choose(rows, *[sampling] * 3) == [quiet[0], None, quiet[2]]
    assert choose(torch.full((1, 5), -math.inf), sampling) == [None]


@pytest.mark.parametrize(
    ("sampling", "field"),
    [
        (Sampling(max_tokens=0), "sampling.max_tokens"),
        (Sampling(temperature=-0.1), "sampling.temperature"),
        (Sampling(temperature=math.nan), "sampling.temperature"),
        (Sampling(temperature=math.inf), "sampling.temperature"),
        (Sampling(top_p=0.0), "sampling.top_p"),
        (Sampling(top_p=1.1), "sampling.top_p"),
        (Sampling(top_p=math.nan), "sampling.top_p"),
        (Sampling(seed=2**63), "sampling.seed"),
    ],
)
def test_what_cannot_be_sampled_with_is_refused(sampling: Sampling, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_sampling(sampling)
    assert caught.value.field == field
