"""How the next token of an answer is chosen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from siltstone.errors import InvalidInput
from siltstone.values import Sampling


def check_sampling(sampling: Sampling) -> None:
    """Refuses what no answer can be sampled with.

    Raises: InvalidInput.
    """
    if not sampling.max_tokens >= 1:
        raise InvalidInput("sampling.max_tokens", "at least 1", str(sampling.max_tokens))
    if not 0 <= sampling.temperature <= 10:
        raise InvalidInput("sampling.temperature", "0 to 10", str(sampling.temperature))
    if not 0 < sampling.top_p <= 1:
        raise InvalidInput("sampling.top_p", "above 0 to 1", str(sampling.top_p))
    if not -(2**63) <= sampling.seed < 2**63:
        raise InvalidInput("sampling.seed", "a whole number of 64 bits", str(sampling.seed)[:32])


def generator_of(sampling: Sampling) -> torch.Generator | None:
    """Returns the random numbers of one answer, or None when it is greedy: no answer's chance depends on another's."""
    if sampling.temperature == 0:
        return None
    return torch.Generator().manual_seed(sampling.seed)


def choose_tokens(
    logits_BV: Tensor, samplings: Sequence[Sampling], generators: Sequence[torch.Generator | None]
) -> list[int | None]:
    """Returns the next token of each row, by the row's own rule and random numbers; None where no logit is a number."""
    # NaN counts as the largest, so a row's largest logit tells of the whole row.
    largest, likeliest = logits_BV.max(dim=-1)
    is_sound: list[bool] = largest.isfinite().tolist()
    chosen: list[int | None] = [
        token if sound else None for token, sound in zip(likeliest.tolist(), is_sound, strict=True)
    ]
    for row, (sampling, generator) in enumerate(zip(samplings, generators, strict=True)):
        if generator is None or not is_sound[row]:
            continue
        # In double, below zero: however small a temperature is, the likeliest keeps a probability.
        logits_V = (logits_BV[row] - largest[row]).double().cpu()
        probabilities = torch.softmax(logits_V / sampling.temperature, dim=-1)
        ordered, order = probabilities.sort(descending=True)
        # A token stays when those before it have not yet filled top_p; so the likeliest always stays.
        ordered[ordered.cumsum(0) - ordered >= sampling.top_p] = 0
        chosen[row] = int(order[torch.multinomial(ordered, 1, generator=generator)])
    return chosen
