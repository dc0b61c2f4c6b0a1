"""Log-probabilities of many answers at once under one bare core.

Shapes: B rows, T tokens of a row behind the shared opening, D model width, N scored tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from siltstone.errors import InvalidInput
from siltstone.model.core import Core, forward_keeping, read_prefix

_MAX_TOKENS: Final = 4096
"""Tokens of one pass, filling included."""
_MAX_LOGITS: Final = 512
"""Tokens whose logits are there at once: a vocabulary is wide."""


@dataclass(frozen=True, slots=True)
class Asked:
    """An answer whose log-probability is wanted, after a prompt of at least one token."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Score:
    """The log-probability of an answer, in nats, and over how many tokens it is summed."""

    log_probability: float
    num_tokens: int

    @property
    def per_token(self) -> float:
        """The mean over the tokens of the answer."""
        return self.log_probability / self.num_tokens


def score_answers(core: Core, asked: Sequence[Asked]) -> list[Score]:
    """Returns the score of each answer, in order.

    What all prompts begin with is read once; rows of a like length go together.
    Raises: InvalidInput when a prompt or an answer is empty, or both together do not fit the core's context.
    """
    for one in asked:
        num_tokens = len(one.prompt_ids) + len(one.answer_ids)
        if not one.prompt_ids or not one.answer_ids or num_tokens > core.config.max_context:
            expected = f"a prompt and an answer of at most {core.config.max_context} tokens together"
            raise InvalidInput("asked", expected, f"{len(one.prompt_ids)} and {len(one.answer_ids)}")
    if not asked:
        return []
    num_shared = _num_shared([one.prompt_ids for one in asked])
    scores: dict[int, Score] = {}
    with torch.inference_mode():
        past = read_prefix(core, asked[0].prompt_ids[:num_shared])
        for rows in _batches([len(one.prompt_ids) + len(one.answer_ids) - num_shared for one in asked]):
            ids = [[*asked[row].prompt_ids[num_shared:], *asked[row].answer_ids] for row in rows]
            x_BTD, _ = forward_keeping(core, pad(ids, core.device), past)
            firsts = [len(asked[row].prompt_ids) - num_shared for row in rows]
            x_ND = torch.cat([x_BTD[at, firsts[at] - 1 : len(ids[at]) - 1] for at in range(len(rows))])
            targets = torch.tensor([i for at, row_ids in enumerate(ids) for i in row_ids[firsts[at] :]])
            logs = token_log_probs(core, x_ND, targets.to(core.device)).tolist()
            start = 0
            for row in rows:
                num_tokens = len(asked[row].answer_ids)
                scores[row] = Score(sum(logs[start : start + num_tokens]), num_tokens)
                start += num_tokens
    return [scores[row] for row in range(len(asked))]


def token_log_probs(core: Core, x_ND: Tensor, targets_N: Tensor) -> Tensor:
    """Returns the log-probability of each target after its block output, in float32: [N]."""
    parts = []
    for start, end in logit_spans(len(x_ND)):
        logs = core.logits(x_ND[start:end]).float().log_softmax(dim=-1)
        parts.append(logs.gather(1, targets_N[start:end, None])[:, 0])
    return torch.cat(parts)


def logit_spans(num_tokens: int) -> Iterator[tuple[int, int]]:
    """Yields the spans of tokens whose logits may be there at once."""
    for start in range(0, num_tokens, _MAX_LOGITS):
        yield start, min(start + _MAX_LOGITS, num_tokens)


def pad(ids: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Returns the rows as one tensor, filled up on the right: [B, T]. Causality keeps the filling from what is read."""
    width = max(map(len, ids))
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in ids], device=device)


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yields the places of rows that are read together, the longest first."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > _MAX_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    yield batch


def _num_shared(prompts: Sequence[Sequence[int]]) -> int:
    """Returns how many tokens all prompts begin with, leaving each at least its last."""
    most = min(map(len, prompts)) - 1
    first = prompts[0]
    return next((at for at in range(most) if any(prompt[at] != first[at] for prompt in prompts)), most)
