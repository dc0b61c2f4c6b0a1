"""The slow truth about a lesson: one user, one piece at a time, weights written out, plain autograd.

Written apart from the model's code: heads in a loop, RoPE as complex numbers, theta_0 + delta as dense matrices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from siltstone.model.config import CoreConfig
from siltstone.model.deltas import Basis, DeltaShape

Past = list[tuple[Tensor, Tensor]]


@dataclass
class SlowPiece:
    """What a piece must give."""

    gradient_N: Tensor
    learned_tokens: int = 0
    surprise: float = 0.0
    nats: float = 0.0


def norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    return x_TD / (x_TD.pow(2).mean(dim=-1, keepdim=True) + eps).sqrt() * weight_D


def turn(x_TC: Tensor, start: int, base: float) -> Tensor:
    half = x_TC.shape[1] // 2
    angle = torch.arange(start, start + len(x_TC), dtype=torch.float64)[:, None] * base ** (
        -torch.arange(half, dtype=torch.float64) / half
    )
    turned = torch.complex(x_TC[:, :half], x_TC[:, half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag], dim=1)


def run(config: CoreConfig, weights: Mapping[str, Tensor], ids: Sequence[int], past: Past) -> tuple[Tensor, Past]:
    """Reads ids behind a past: (logits [T, V], keys and values of the past and these)."""
    x = weights["embed.weight"][list(ids)]
    start = past[0][0].shape[0] if past else 0
    kept = []
    for i in range(config.num_layers):
        at = f"layers.{i}"
        h = norm(x, weights[f"{at}.attn_norm.weight"], config.norm_eps)
        q, k, v = (h @ weights[f"{at}.attn.{name}.weight"].T for name in ("q", "k", "v"))
        c = config.head_dim
        k = torch.cat([turn(part, start, config.rope_base) for part in k.split(c, dim=1)], dim=1)
        if past:
            k, v = torch.cat([past[i][0], k]), torch.cat([past[i][1], v])
        kept.append((k, v))
        mixed = []
        for head, query in enumerate(q.split(c, dim=1)):
            group = head // (config.num_heads // config.num_kv_heads)
            query = turn(query, start, config.rope_base)
            keys, values = k[:, group * c : (group + 1) * c], v[:, group * c : (group + 1) * c]
            scores = query @ keys.T / c**0.5
            for t in range(len(ids)):
                past_t = scores[t, : start + t + 1].softmax(dim=0)
                mixed.append((head, t, past_t @ values[: start + t + 1]))
        columns = [torch.stack([m for h_, _, m in mixed if h_ == head]) for head in range(config.num_heads)]
        x = x + torch.cat(columns, dim=1) @ weights[f"{at}.attn.o.weight"].T
        h = norm(x, weights[f"{at}.mlp_norm.weight"], config.norm_eps)
        gate, up = h @ weights[f"{at}.mlp.gate.weight"].T, h @ weights[f"{at}.mlp.up.weight"].T
        x = x + (gate / (1 + torch.exp(-gate)) * up) @ weights[f"{at}.mlp.down.weight"].T
    head_VD = weights["embed.weight"] if config.tied_head else weights["head.weight"]
    return norm(x, weights["norm.weight"], config.norm_eps) @ head_VD.T, kept


def bent_weights(
    shape: DeltaShape, basis: Basis, weights: Mapping[str, Tensor], coefficients_N: Tensor
) -> tuple[dict[str, Tensor], dict[tuple[str, int], Tensor]]:
    """Returns the core's weights with theta_0 + delta in place of each bent map, and those as leaves."""
    bent = dict(weights)
    leaves = {}
    for site, parts in shape.split(coefficients_N[None]).items():
        for j, part_RO in enumerate(parts[0]):
            delta_OI = (basis[site][j] @ part_RO).T
            at = f"layers.{shape.first_layer + j}.mlp"
            names = [f"{at}.gate.weight", f"{at}.up.weight"] if site == "gate_up" else [f"{at}.down.weight"]
            dense = (torch.cat([weights[name] for name in names]) + delta_OI).detach().requires_grad_()
            leaves[(site, j)] = dense
            bent |= dict(zip(names, dense.chunk(len(names)), strict=True))
    return bent, leaves


def read_slowly(
    config: CoreConfig,
    weights: Mapping[str, Tensor],
    shape: DeltaShape,
    basis: Basis,
    prefix_ids: Sequence[int],
    ids: Sequence[int],
    token_weights: Sequence[float],
    pieces: Sequence[tuple[int, Tensor]],
    gate_nats: float,
    cut: bool = True,
) -> list[SlowPiece]:
    """Reads a lesson in pieces, each (index behind its last target, coefficients it is read under).

    With `cut`, the keys and values of earlier pieces are constants; without, the whole is one graph in the last
    piece's gradient, which is what cutting must differ from.
    """
    past: Past = run(config, weights, prefix_ids, [])[1] if prefix_ids else []
    results, start = [], 0
    earlier: list[dict[tuple[str, int], Tensor]] = []
    for end, coefficients_N in pieces:
        bent, leaves = bent_weights(shape, basis, weights, coefficients_N)
        earlier.append(leaves)
        result = SlowPiece(torch.zeros_like(coefficients_N))
        loss = torch.zeros((), dtype=torch.float64)
        if end > start:
            logits, past = run(config, bent, ids[start:end], past)
            past = [(k.detach(), v.detach()) for k, v in past] if cut else past
            for t in range(start + 1, end + 1):
                weight = token_weights[t]
                if not weight:
                    continue
                logs = logits[t - 1 - start] - torch.logsumexp(logits[t - 1 - start], dim=0)
                nll = -logs[ids[t]]
                nats = nll.item()
                gate = nats**2 / (nats**2 + gate_nats**2)
                loss = loss + (weight * gate * nll if weight > 0 else weight * torch.log(1 - torch.exp(-nll)))
                result.learned_tokens += 1
                result.surprise += weight * gate if weight > 0 else -weight * math.exp(-nats)
                result.nats += nats
        if result.learned_tokens:
            result.gradient_N = sum(chain_rule(shape, basis, used, loss) for used in (earlier if not cut else [leaves]))
        start = end
        results.append(result)
    return results


def chain_rule(shape: DeltaShape, basis: Basis, leaves: Mapping[tuple[str, int], Tensor], loss: Tensor) -> Tensor:
    """Returns the gradient in coefficients of a loss of dense weights: dL/dC = basis^T (dL/dW)^T."""
    gradients = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True, allow_unused=True)
    parts = []
    for (site, j), dense, gradient in zip(leaves, leaves.values(), gradients, strict=True):
        gradient_OI = torch.zeros_like(dense) if gradient is None else gradient
        parts.append((basis[site][j].T @ gradient_OI.T).reshape(-1))  # type: ignore[index]
    return torch.cat(parts)
