"""Log-probabilities of many answers at once under one bare core.

A row is a prompt with several of its answers behind it, each of which sees the prompt and itself, so that a prompt is
read once for all its answers; what all prompts begin with is read once for all rows.

Shapes: B rows, P tokens of the shared opening, T tokens of a row behind it, D model width, N scored tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from siltstone.errors import InvalidInput
from siltstone.model.core import Core, KeyValues, attention, read_prefix
from siltstone.model.rows import pad

_MAX_TOKENS: Final = 4096
"""Tokens of one pass, filling included."""
_MAX_ROW: Final = 128
"""Tokens of a row before further answers open another: attention costs their square."""
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


@dataclass(slots=True)
class _Row:
    """A prompt, without the shared opening, and the answers read with it. `asked` are their places in the request."""

    prompt: tuple[int, ...]
    asked: list[int] = field(default_factory=list)
    answers: list[tuple[int, ...]] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return len(self.prompt) + sum(map(len, self.answers))

    def ids(self) -> list[int]:
        return [*self.prompt, *(token for answer in self.answers for token in answer)]

    def positions(self) -> list[int]:
        after = len(self.prompt)
        return [*range(after), *(after + at for answer in self.answers for at in range(len(answer)))]

    def parts(self) -> list[int]:
        """Returns of each token whether it is the prompt's, 0, or which answer's, from 1."""
        numbered = enumerate(self.answers, start=1)
        return [*[0] * len(self.prompt), *(number for number, answer in numbered for _ in answer)]

    def predicting(self) -> list[int]:
        """Returns where each answer token is predicted: at the end of the prompt, or at the token before."""
        places, start = [], len(self.prompt)
        for answer in self.answers:
            places += [len(self.prompt) - 1, *range(start, start + len(answer) - 1)]
            start += len(answer)
        return places


def score_answers(core: Core, asked: Sequence[Asked]) -> list[Score]:
    """Returns the score of each answer, in order.

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
        for rows in _batches(_pack(asked, num_shared)):
            x_BTD = _read(core, rows, past, num_shared)
            x_ND = torch.cat([x_BTD[at, row.predicting()] for at, row in enumerate(rows)])
            targets = [token for row in rows for answer in row.answers for token in answer]
            logs = iter(token_log_probs(core, x_ND, torch.tensor(targets, device=core.device)).tolist())
            for row in rows:
                for place, answer in zip(row.asked, row.answers, strict=True):
                    scores[place] = Score(sum(next(logs) for _ in answer), len(answer))
    return [scores[place] for place in range(len(asked))]


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


def _read(core: Core, rows: Sequence[_Row], past: KeyValues | None, num_past: int) -> Tensor:
    """Returns the block outputs of the rows: [B, T, D]. Nothing of a row reads the filling behind it."""
    ids_BT = pad([row.ids() for row in rows], core.device)
    rotation = core.rotation(pad([row.positions() for row in rows], core.device) + num_past)
    parts_BT = pad([row.parts() for row in rows], core.device)
    b, t = ids_BT.shape
    causal = torch.ones(t, t, dtype=torch.bool, device=core.device).tril()
    own = (parts_BT[:, None, :] == 0) | (parts_BT[:, None, :] == parts_BT[:, :, None])
    mask = torch.cat([causal.new_ones(b, t, num_past), causal & own], dim=-1)

    def attend(index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if past is not None:
            k = torch.cat([past.keys[index].expand(b, -1, -1, -1), k], dim=2)
            v = torch.cat([past.values[index].expand(b, -1, -1, -1), v], dim=2)
        return attention(q, k, v, mask)

    x = core.embed(ids_BT)
    for i in range(core.config.num_layers):
        x = core.block(i, x, rotation, attend)
    return x


def _pack(asked: Sequence[Asked], num_shared: int) -> list[_Row]:
    """Returns the rows that hold all answers, each behind its prompt."""
    rows: list[_Row] = []
    open_rows: dict[tuple[int, ...], _Row] = {}
    for place, one in enumerate(asked):
        row = open_rows.get(one.prompt_ids)
        if row is None or row.num_tokens + len(one.answer_ids) > _MAX_ROW:
            row = open_rows[one.prompt_ids] = _Row(one.prompt_ids[num_shared:])
            rows.append(row)
        row.asked.append(place)
        row.answers.append(one.answer_ids)
    return rows


def _batches(rows: Sequence[_Row]) -> Iterator[list[_Row]]:
    """Yields the rows that are read together, the longest first: such of a like length."""
    batch: list[_Row] = []
    for row in sorted(rows, key=lambda row: -row.num_tokens):
        if batch and (len(batch) + 1) * batch[0].num_tokens > _MAX_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    yield batch


def _num_shared(prompts: Sequence[Sequence[int]]) -> int:
    """Returns how many tokens all prompts begin with, leaving each at least its last."""
    most = min(map(len, prompts)) - 1
    first = prompts[0]
    return next((at for at in range(most) if any(prompt[at] != first[at] for prompt in prompts)), most)
