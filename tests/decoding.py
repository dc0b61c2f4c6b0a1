"""Answers decoded the slow way, one at a time and anew at every step: the truth the engine is held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tiny import World
from torch import Tensor

from siltstone.model.core import forward_keeping
from siltstone.model.deltas import bend_with


@dataclass(frozen=True)
class Decoded:
    """The greedy tokens of an answer and the logits each was chosen from."""

    tokens: list[int]
    logits: list[Tensor]


def coefficients_of(world: World, seed: int, size: float = 0.3) -> Tensor:
    """Returns a user's coefficients far enough from zero that another user's would show."""
    return torch.randn(world.shape.num_coefficients, generator=torch.Generator().manual_seed(seed)) * size


def logits_behind(world: World, ids: Sequence[int], coefficients: Tensor | None, shared: Sequence[int] = ()) -> Tensor:
    """Returns the logits at every place of `ids`: `shared`, where it opens them, is read by the bare core."""
    is_shared = bool(shared) and tuple(ids[: len(shared)]) == tuple(shared) and len(ids) > len(shared)
    bend = None
    if coefficients is not None:
        parts = world.shape.split(coefficients[None])
        bend = bend_with(world.shape, world.basis, {site: list(part.unbind(1)) for site, part in parts.items()})
    with torch.no_grad():
        past = None
        if is_shared:
            _, past = forward_keeping(world.core, torch.tensor([list(shared)]))
        rest = list(ids[len(shared) :]) if is_shared else list(ids)
        x, _ = forward_keeping(world.core, torch.tensor([rest]), past, bend)
        return world.core.logits(x)[0]


def decode_alone(
    world: World,
    prompt: Sequence[int],
    coefficients: Tensor | None,
    max_tokens: int,
    stop_ids: frozenset[int] = frozenset(),
    shared: Sequence[int] = (),
) -> Decoded:
    """Decodes greedily; the last logits are those that gave the stop, if one came."""
    tokens: list[int] = []
    logits: list[Tensor] = []
    while len(tokens) < max_tokens:
        logits.append(logits_behind(world, [*prompt, *tokens], coefficients, shared)[-1])
        token = int(logits[-1].argmax())
        if token in stop_ids:
            break
        tokens.append(token)
    return Decoded(tokens, logits)
