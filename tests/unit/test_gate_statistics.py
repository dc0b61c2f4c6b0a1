from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from siltstone.errors import InvalidInput
from siltstone.gate.statistics import (
    Estimate,
    binomial_lower_bound,
    binomial_upper_bound,
    estimate_difference,
    estimate_mean,
    regularised_beta,
    t_quantile,
)


@pytest.mark.parametrize(
    ("probability", "degrees", "quantile"),
    [
        # Tables of Student's t.
        (0.95, 1, 6.313752),
        (0.975, 2, 4.302653),
        (0.95, 9, 1.833113),
        (0.99, 24, 2.492159),
        (0.975, 30, 2.042272),
        (0.8, 19, 0.860951),
        (0.95, 120, 1.657651),
        (0.95, 10_000_000, 1.644854),
        (0.05, 9, -1.833113),
        (0.5, 3, 0.0),
    ],
)
def test_the_quantile_is_students(probability: float, degrees: int, quantile: float) -> None:
    assert t_quantile(probability, degrees) == pytest.approx(quantile, abs=2e-6)


@given(st.floats(0.001, 0.999))
def test_with_one_and_two_degrees_the_quantile_has_a_closed_form(probability: float) -> None:
    cauchy = math.tan(math.pi * (probability - 0.5))
    two = (2 * probability - 1) / math.sqrt(2 * probability * (1 - probability))
    assert t_quantile(probability, 1) == pytest.approx(cauchy, rel=1e-9, abs=1e-7)
    assert t_quantile(probability, 2) == pytest.approx(two, rel=1e-9, abs=1e-7)


@given(st.integers(1, 60), st.integers(1, 60), st.floats(0.01, 0.99))
def test_the_beta_function_is_a_binomial_tail(a: int, b: int, x: float) -> None:
    n = a + b - 1
    tail = math.fsum(math.comb(n, k) * x**k * (1 - x) ** (n - k) for k in range(a, n + 1))
    assert regularised_beta(x, a, b) == pytest.approx(tail, rel=1e-9, abs=1e-12)


def test_a_clustered_error_is_the_one_worked_out_by_hand() -> None:
    # Mean 3; the clusters' sums of deviations are -3 and 3, so se^2 = 2/1 * (9 + 9) / 16.
    found = estimate_mean([1.0, 2.0, 4.0, 5.0], ["a", "a", "b", "b"])
    assert (found.mean, found.num_items, found.num_clusters) == (3.0, 4, 2)
    assert found.standard_error == pytest.approx(1.5)
    # Each its own: the sample deviation sqrt(10/3) over sqrt(4).
    alone = estimate_mean([1.0, 2.0, 4.0, 5.0])
    assert alone.standard_error == pytest.approx(math.sqrt(10 / 3) / 2)
    assert alone.lower_bound(0.95) == pytest.approx(3 - 2.353363 * alone.standard_error, abs=1e-5)
    assert alone.upper_bound(0.95) == pytest.approx(3 + 2.353363 * alone.standard_error, abs=1e-5)
    assert alone.smallest_effect(0.95, 0.8) == pytest.approx((2.353363 + 0.978472) * alone.standard_error, abs=1e-5)


def test_pairing_takes_out_how_hard_an_item_is() -> None:
    hard = [0.0, 100.0, -50.0, 7.0]
    found = estimate_difference([one + 0.5 for one in hard], hard)
    assert (found.mean, found.standard_error) == (0.5, 0.0)


@pytest.mark.parametrize(
    ("values", "clusters"),
    [
        ([], []),
        ([1.0], []),
        ([1.0, 2.0], ["a", "a"]),
        ([1.0, 2.0], ["a"]),
        ([1.0, math.nan], []),
        ([1.0, math.inf], []),
    ],
)
def test_numbers_of_which_no_error_is_known_are_refused(values: list[float], clusters: list[str]) -> None:
    with pytest.raises(InvalidInput):
        estimate_mean(values, clusters)


def test_unequal_numbers_of_items_are_refused() -> None:
    with pytest.raises(InvalidInput):
        estimate_difference([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("events", "trials", "confidence", "bound"),
    [(0, 100, 0.95, 0.0295130), (3, 20, 0.975, 0.3789268), (1, 10, 0.95, 0.3941633), (10, 10, 0.95, 1.0)],
)
def test_the_binomial_bound_is_clopper_and_pearsons(events: int, trials: int, confidence: float, bound: float) -> None:
    assert binomial_upper_bound(events, trials, confidence) == pytest.approx(bound, abs=1e-6)
    assert binomial_lower_bound(trials - events, trials, confidence) == pytest.approx(1 - bound, abs=1e-6)


@given(st.integers(10, 5000))
def test_no_event_among_n_leaves_about_three_in_n(trials: int) -> None:
    assert binomial_upper_bound(0, trials, 0.95) == pytest.approx(1 - 0.05 ** (1 / trials), rel=1e-9)
    assert binomial_upper_bound(0, trials, 0.95) < 3 / trials


@pytest.mark.parametrize(("events", "trials", "confidence"), [(-1, 3, 0.9), (4, 3, 0.9), (0, 0, 0.9), (0, 3, 1.0)])
def test_counts_that_cannot_be_are_refused(events: int, trials: int, confidence: float) -> None:
    with pytest.raises(InvalidInput):
        binomial_upper_bound(events, trials, confidence)


def _draw(generator: torch.Generator, num_clusters: int, per_cluster: int) -> Estimate:
    shared = torch.randn(num_clusters, 1, generator=generator)
    items = (shared + torch.randn(num_clusters, per_cluster, generator=generator)).flatten().tolist()
    labels = [str(cluster) for cluster in range(num_clusters) for _ in range(per_cluster)]
    return estimate_mean(items, labels)


@pytest.mark.parametrize("num_clusters", [8, 25])
def test_bounds_hold_as_often_as_they_say_with_clustered_items(num_clusters: int) -> None:
    generator = torch.Generator().manual_seed(5)
    draws = [_draw(generator, num_clusters, 4) for _ in range(2000)]
    lower = sum(one.lower_bound(0.95) < 0 for one in draws) / len(draws)
    upper = sum(one.upper_bound(0.95) > 0 for one in draws) / len(draws)
    # Three standard errors of a share of 2,000.
    assert lower == pytest.approx(0.95, abs=0.015)
    assert upper == pytest.approx(0.95, abs=0.015)


def test_without_clusters_the_same_items_are_trusted_too_much() -> None:
    generator = torch.Generator().manual_seed(5)
    held = 0
    for _ in range(1000):
        shared = torch.randn(10, 1, generator=generator)
        items = (shared + 0.2 * torch.randn(10, 6, generator=generator)).flatten().tolist()
        held += estimate_mean(items).lower_bound(0.95) < 0
    assert held / 1000 < 0.85


def test_the_smallest_effect_is_found_with_the_power_it_is_told_for() -> None:
    generator = torch.Generator().manual_seed(6)
    # The true error of a mean over 12 clusters of 4: sqrt((1 + 1/4) / 12).
    effect = (t_quantile(0.95, 11) + t_quantile(0.8, 11)) * math.sqrt(1.25 / 12)
    draws = [_draw(generator, 12, 4) for _ in range(2000)]
    found = sum(one.lower_bound(0.95) + effect > 0 for one in draws) / len(draws)
    assert found == pytest.approx(0.8, abs=0.03)
