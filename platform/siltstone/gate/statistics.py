"""How sure a difference is: clustered errors, one-sided bounds, exact binomial bounds. Pure arithmetic.

Symbols: n items, G clusters, d[i] difference of item i, alpha = 1 - confidence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

from siltstone.errors import InvalidInput

_TINY: Final = 1e-300
_MAX_TERMS: Final = 10_000
_MAX_HALVINGS: Final = 200


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its standard error."""

    mean: float
    standard_error: float
    num_items: int
    num_clusters: int

    def lower_bound(self, confidence: float) -> float:
        """Returns the number that the true mean exceeds with this confidence, one-sided.

            lower = mean - t(confidence; G - 1) * se

        Source: Student's t with G - 1 degrees of freedom for G clusters, Cameron and Miller, "A Practitioner's Guide to
        Cluster-Robust Inference", 2015, section VI.
        """
        return self.mean - t_quantile(confidence, self.num_clusters - 1) * self.standard_error

    def upper_bound(self, confidence: float) -> float:
        """Returns the number that the true mean stays below with this confidence, one-sided."""
        return self.mean + t_quantile(confidence, self.num_clusters - 1) * self.standard_error

    def smallest_effect(self, confidence: float, power: float) -> float:
        """Returns the smallest true change that a one-sided test against no change finds with this power.

            effect = (t(confidence; G - 1) + t(power; G - 1)) * se

        Source: Bloom, "Minimum Detectable Effects", Evaluation Review 19, 1995.
        """
        degrees = self.num_clusters - 1
        return (t_quantile(confidence, degrees) + t_quantile(power, degrees)) * self.standard_error


def estimate_mean(values: Sequence[float], clusters: Sequence[str] = ()) -> Estimate:
    """Returns the mean and its cluster-robust standard error; without clusters each item is its own.

        se^2 = G / (G - 1) * sum over clusters (sum over items of the cluster (d[i] - mean))^2 / n^2

    Source: Liang and Zeger, "Longitudinal data analysis using generalized linear models", 1986; for evaluations Miller,
    arXiv:2411.00640, section 2.2, with the G / (G - 1) of Cameron and Miller 2015, Eq. 12.

    Raises: InvalidInput when there are fewer than two clusters, or as many labels as items are missing, or a value is
    not finite: then nothing is known of the error.
    """
    if clusters and len(clusters) != len(values):
        raise InvalidInput("clusters", f"{len(values)}, one for each item", str(len(clusters)))
    if not all(map(math.isfinite, values)):
        raise InvalidInput("values", "finite numbers", "one that is not")
    labels = clusters or [str(i) for i in range(len(values))]
    num_clusters, num_items = len(set(labels)), len(values)
    if num_clusters < 2:
        raise InvalidInput("clusters", "at least 2", str(num_clusters))
    mean = math.fsum(values) / num_items
    sums = dict.fromkeys(labels, 0.0)
    for label, value in zip(labels, values, strict=True):
        sums[label] += value - mean
    squares = math.fsum(total * total for total in sums.values())
    standard_error = math.sqrt(num_clusters / (num_clusters - 1) * squares) / num_items
    return Estimate(mean, standard_error, num_items, num_clusters)


def estimate_difference(
    candidate: Sequence[float], reference: Sequence[float], clusters: Sequence[str] = ()
) -> Estimate:
    """Returns the mean of candidate minus reference, item by item, with its cluster-robust standard error.

    Pairing takes out how hard an item is: what remains is how much the two differ on it.
    Source: Miller, arXiv:2411.00640, section 4.2.

    Raises: InvalidInput.
    """
    if len(candidate) != len(reference):
        raise InvalidInput("reference", f"{len(candidate)} items, the candidate's", str(len(reference)))
    return estimate_mean([one - other for one, other in zip(candidate, reference, strict=True)], clusters)


def binomial_upper_bound(num_events: int, num_trials: int, confidence: float) -> float:
    """Returns the share that the true share stays below with this confidence, one-sided and exact.

        p with P(at most num_events | num_trials, p) = 1 - confidence;  for no event 1 - alpha^(1/n), about 3/n at 95 %

    Source: Clopper and Pearson, "The use of confidence or fiducial limits", Biometrika 26, 1934. The rule of three:
    Hanley and Lippman-Hand, JAMA 249, 1983.
    """
    _check_counts(num_events, num_trials, confidence)
    if num_events == num_trials:
        return 1.0
    return _solve(lambda p: regularised_beta(p, num_events + 1, num_trials - num_events), confidence, 0.0, 1.0)


def binomial_lower_bound(num_events: int, num_trials: int, confidence: float) -> float:
    """Returns the share that the true share exceeds with this confidence, one-sided and exact."""
    _check_counts(num_events, num_trials, confidence)
    return 1.0 - binomial_upper_bound(num_trials - num_events, num_trials, confidence)


@cache
def t_quantile(probability: float, degrees: int) -> float:
    """Returns the number below which a Student's t of so many degrees of freedom falls with this probability.

    Source: P(T > t) = I(x; degrees / 2, 1 / 2) / 2, x = degrees / (degrees + t^2), I the regularised beta function
    (Abramowitz and Stegun 26.7.1), inverted by halving.
    """
    if not 0 < probability < 1 or degrees < 1:
        raise InvalidInput("probability, degrees", "between 0 and 1, at least 1", f"{probability}, {degrees}")
    if probability < 0.5:
        return -t_quantile(1 - probability, degrees)
    # With x = degrees / (degrees + t^2), the tail grows with x.
    x = _solve(lambda x: regularised_beta(x, degrees / 2, 0.5), 2 * (1 - probability), 0.0, 1.0)
    return math.sqrt(degrees * (1 - x) / x)


def regularised_beta(x: float, a: float, b: float) -> float:
    """Returns I(x; a, b), the share of a beta distribution that lies below x.

    Source: the continued fraction DLMF 8.17.22, evaluated by Lentz's method as Thompson and Barnett modified it.
    """
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):
        return 1 - regularised_beta(1 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    c, d = 1.0, 1 / _not_zero(1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, _MAX_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        step = 1.0
        for term in (even, odd):
            d = 1 / _not_zero(1 + term * d)
            c = _not_zero(1 + term / c)
            step = c * d
            fraction *= step
        if abs(step - 1) < 1e-15:
            break
    return front * fraction


def _not_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY


def _solve(rising: Callable[[float], float], wanted: float, low: float, high: float) -> float:
    """Returns where a rising function has the wanted value, by halving to the last bit."""
    for _ in range(_MAX_HALVINGS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if rising(middle) < wanted:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _check_counts(num_events: int, num_trials: int, confidence: float) -> None:
    if not 0 <= num_events <= num_trials or num_trials < 1 or not 0 < confidence < 1:
        found = f"{num_events} of {num_trials} at {confidence}"
        raise InvalidInput("num_events", "0 to num_trials, num_trials above 0, confidence between 0 and 1", found)
