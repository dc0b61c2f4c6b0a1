"""A user's levels: several deltas on one basis, each with its own update period.

Each level keeps its coefficients, the gradient summed since its last update, and, where any level has momentum, that of
its steps. A level moves when its period of tokens is full; inside a period the weights stand still, so gradients of a
period add up in any order.

Shapes: B users of a batch, L levels, S buffers of a level, N coefficients of one level.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from siltstone.errors import ConfigInvalid
from siltstone.model.deltas import DeltaShape, site_widths
from siltstone.model.guard import Guard
from siltstone.model.orthogonal import orthogonalise

DELTA: Final = 0
GRADIENT: Final = 1
MOMENTUM: Final = 2
"""What a level keeps, in this order: [delta, gradient] or [delta, gradient, momentum]."""
MAX_SURPRISE: Final = 2.0
"""Most that surprise, raised by praise, may multiply a rate with."""
_CACHED_NUMBERS: Final = 1 << 20
"""Coefficients of a level stepped at once on a processor: measured, a step over more than its cache is memory-bound."""


@dataclass(frozen=True, slots=True)
class LevelConfig:
    """How one level learns."""

    period_tokens: int
    """Learned tokens between two updates."""
    rate: float
    """Size of one update at full surprise, in units of the orthogonalised direction."""
    momentum: float = 0.0
    """Share of the last direction kept in the next, 0 to below 1."""
    retention: float = 1.0
    """Share of the delta that outlives an update, above 0 to 1: 1 forgets nothing."""
    max_norm: float = 90.0
    """Bound on the Frobenius norm of the whole delta."""
    sleep_tokens: int = 1024
    """Learned tokens after which a sleep may move what the level holds into the next slower one."""

    def __post_init__(self) -> None:
        if min(self.period_tokens, self.sleep_tokens) < 1:
            found = f"{self.period_tokens}, {self.sleep_tokens}"
            raise ConfigInvalid("level", f"period_tokens, sleep_tokens: expected at least 1, found {found}")
        if not (self.rate >= 0 and 0 <= self.momentum < 1 and 0 < self.retention <= 1 and self.max_norm > 0):
            raise ConfigInvalid("level", f"expected rate >= 0, 0 <= momentum < 1, 0 < retention <= 1, found {self}")


@dataclass(slots=True)
class LevelCounters:
    """Where each level of one user stands. Lists have one entry a level."""

    num_updates: list[int]
    open_tokens: list[int]
    open_surprise: list[float]

    @staticmethod
    def zero(num_levels: int) -> LevelCounters:
        """Returns the counters of levels that have not seen a token."""
        return LevelCounters([0] * num_levels, [0] * num_levels, [0.0] * num_levels)

    def copy(self) -> LevelCounters:
        """Returns counters that share nothing with these."""
        return LevelCounters(list(self.num_updates), list(self.open_tokens), list(self.open_surprise))


def direction_of(shape: DeltaShape, gradient_BN: Tensor, guard: Guard | None = None) -> Tensor:
    """Returns the direction in which a summed gradient moves coefficients, its size taken away: [B, N].

    Source: Muon's orthogonalised step (NL Eq. 52, M3 in section 7.2), with the scale 0.2 sqrt(O / R).
        direction = -0.2 * sqrt(max(1, O / R)) * orthogonalise(gradient W) W, for each bent map
    W is the guard's (model/guard.py), or 1 without one. A zero gradient gives zero.
    """
    out = torch.empty_like(gradient_BN)
    results = shape.split(out)
    for site, gradient in shape.split(gradient_BN).items():
        width = site_widths(shape.core, site)[1]
        scale = 0.2 * max(1.0, width / shape.rank) ** 0.5
        if guard is None:
            step = orthogonalise(gradient.reshape(-1, shape.rank, width)).view_as(gradient)
        else:
            step = guard[site].direction(gradient)
        torch.mul(step, -scale, out=results[site])
    return out


def fold_in(
    shape: DeltaShape,
    configs: tuple[LevelConfig, ...],
    numbers_BLSN: Tensor,
    counters: list[LevelCounters],
    gradient_BN: Tensor,
    learned_tokens: list[int],
    surprise: list[float],
    guard: Guard | None = None,
    rows: Sequence[int] | None = None,
) -> None:
    """Adds a piece's gradient to every level, and moves the levels whose period is now full. In place.

    A piece never crosses the end of a period, so a period is full exactly or not at all.
        G += gradient;  if full: m = momentum * m + G;  delta = retention * delta + rate * mean surprise * direction(m)
    then the delta is scaled back to `max_norm` if it is longer. The mean surprise, in 0 to 1, is the input-dependent
    part of the rate: what the model expected moves nothing.
    Source: CMS, NL section 7.1, Eq. 71 (sum over the chunk), with Eq. 52 as the error term.
    Shapes: numbers [users, L, S, N], of which `rows` are the piece's B, in order (None: all); `counters`,
    `learned_tokens` and `surprise` (summed over the piece's tokens) one for each of them.
    """
    rows = range(len(counters)) if rows is None else rows
    for level, config in enumerate(configs):
        # Where a period is this very piece, its gradient is the sum, and need not be written down first.
        opened: list[int] = []
        closed: list[int] = []
        whole: list[int] = []
        for at, counter in enumerate(counters):
            is_first = counter.open_tokens[level] == 0
            counter.open_tokens[level] += learned_tokens[at]
            counter.open_surprise[level] += surprise[at]
            is_full = counter.open_tokens[level] >= config.period_tokens
            if is_first and is_full:
                whole.append(at)
            else:
                (closed if is_full else opened).append(at)
        for start, end in _spans(sorted(opened + closed), rows):
            _state_of(numbers_BLSN, level, rows, start, end)[:, GRADIENT] += gradient_BN[start:end]
        for moved in (whole, closed):
            for start, end in _spans(moved, rows, _rows_at_once(numbers_BLSN)):
                state_BSN = _state_of(numbers_BLSN, level, rows, start, end)
                rates = [
                    config.rate * min(MAX_SURPRISE, counter.open_surprise[level] / counter.open_tokens[level])
                    for counter in counters[start:end]
                ]
                driven_BN = gradient_BN[start:end] if moved is whole else state_BSN[:, GRADIENT]
                _move(shape, config, state_BSN, driven_BN, rates, guard)
                if moved is closed:
                    state_BSN[:, GRADIENT] = 0
            for at in moved:
                counters[at].num_updates[level] += 1
                counters[at].open_tokens[level] = 0
                counters[at].open_surprise[level] = 0.0


def _state_of(numbers_BLSN: Tensor, level: int, rows: Sequence[int], start: int, end: int) -> Tensor:
    """Returns a level of the users of a piece from `start` to `end`, whose rows are neighbours: a view [B, S, N]."""
    return numbers_BLSN[rows[start] : rows[start] + end - start, level]


def _move(
    shape: DeltaShape,
    config: LevelConfig,
    state_BSN: Tensor,
    summed_BN: Tensor,
    rates: list[float],
    guard: Guard | None,
) -> None:
    """Takes one step of one level of some users along the gradient summed over their period, in place."""
    delta, driven = state_BSN[:, DELTA], summed_BN
    if config.momentum:
        driven = state_BSN[:, MOMENTUM].mul_(config.momentum).add_(summed_BN)
    rate_B1 = torch.tensor(rates, device=delta.device, dtype=delta.dtype)[:, None]
    delta.mul_(config.retention).addcmul_(direction_of(shape, driven, guard), rate_B1)
    delta.mul_(config.max_norm / delta.norm(dim=1, keepdim=True).clamp(min=config.max_norm))


def _rows_at_once(numbers_BLSN: Tensor) -> int:
    """Returns how many users a step is taken for at once: on a processor, so many as its cache holds."""
    if numbers_BLSN.device.type != "cpu":
        return numbers_BLSN.shape[0]
    return max(1, _CACHED_NUMBERS // numbers_BLSN.shape[-1])


def _spans(chosen: Sequence[int], rows: Sequence[int], longest: int | None = None) -> Iterator[tuple[int, int]]:
    """Yields the runs of neighbours among the chosen places whose rows are neighbours too, as (start, end)."""
    start = 0
    for at in range(1, len(chosen) + 1):
        is_end = at == len(chosen) or chosen[at] != chosen[at - 1] + 1 or rows[chosen[at]] != rows[chosen[at - 1]] + 1
        if is_end or at - start == longest:
            yield chosen[start], chosen[at - 1] + 1
            start = at


def coefficients(numbers_BLSN: Tensor, rows: Sequence[int] | None = None) -> Tensor:
    """Returns what is applied to the core, of the rows asked for or of all: the sum of the levels' deltas, [B, N]."""
    # Level by level: torch sums over a dimension that is not the last at a third of the speed.
    deltas = list(numbers_BLSN[:, :, DELTA].unbind(1))
    if rows is not None and len(rows) < len(numbers_BLSN):
        index = torch.tensor(rows, device=numbers_BLSN.device)
        deltas = [delta_BN[index] for delta_BN in deltas]
    total = deltas[0] + deltas[1] if len(deltas) > 1 else deltas[0].clone()
    for delta_BN in deltas[2:]:
        total += delta_BN
    return total
