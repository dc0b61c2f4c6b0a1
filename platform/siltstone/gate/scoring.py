"""Log-probabilities of many answers at once under bare cores.

A row is a prompt with several of its answers behind it, as a tree: what two answers begin with is read once, and each
token sees the prompt and what comes before it in its own answer. The last token of an answer is only looked up, never
read: all answers of one token cost nothing but their prompt. What all prompts begin with is read once for all rows, and
the layers in which cores are alike once for all cores.

Shapes: B rows, P tokens of the shared opening, T tokens of a row behind it, D model width, N places that predict.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from torch import Tensor

from siltstone.crew import Crew
from siltstone.errors import InvalidInput
from siltstone.model.core import Core, KeyValues, attention, num_layers_alike, read_prefix
from siltstone.model.rows import pad

_MAX_TOKENS: Final = 1024
"""Tokens of one pass, filling included: few enough that several threads find work."""
_MAX_ROW: Final = 160
"""Tokens of a row before further answers open another: attention costs their square."""
_MAX_LOGITS: Final = 512
"""Tokens whose logits are there at once: a vocabulary is wide."""


ALONE: Final = Crew()


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


class _Row:
    """A prompt, without the shared opening, and the tree of the answers read with it."""

    def __init__(self, prompt: tuple[int, ...]) -> None:
        self.ids = list(prompt)
        self.positions = list(range(len(prompt)))
        self.asked: list[tuple[int, list[int]]] = []
        """Of each answer its place in the request, and which of `wanted` it is the sum of."""
        self.wanted: dict[tuple[int, int], int] = {}
        """(place, token) of the log-probabilities that are looked up, numbered in order."""
        self._num_prompt = len(prompt)
        self._places: dict[tuple[int, ...], int] = {(): len(prompt) - 1}
        self._parents: list[int] = []

    def num_new(self, answer: tuple[int, ...]) -> int:
        """Returns how many tokens the row would grow by with an answer."""
        return sum(answer[:end] not in self._places for end in range(len(answer)))

    def add(self, at: int, answer: tuple[int, ...]) -> None:
        """Adds an answer, which stands `at` its place in the request."""
        looked_up = []
        for end, token in enumerate(answer):
            if (before := answer[:end]) not in self._places:
                self._parents.append(self._places[before[:-1]])
                self._places[before] = len(self.ids)
                self.ids.append(before[-1])
                self.positions.append(self._num_prompt - 1 + end)
            looked_up.append(self.wanted.setdefault((self._places[before], token), len(self.wanted)))
        self.asked.append((at, looked_up))

    def sees(self, width: int) -> Tensor:
        """Says which tokens of the row each of its tokens attends to, filled up to a width: [width, width]."""
        mask = torch.ones(width, width, dtype=torch.bool).tril()
        for place, parent in enumerate(self._parents, start=self._num_prompt):
            mask[place] = mask[parent]
            mask[place, place] = True
        return mask


def score_answers(core: Core, asked: Sequence[Asked], crew: Crew = ALONE) -> list[Score]:
    """Returns the score of each answer under one core, in order. Raises: as `score_answers_of`."""
    return score_answers_of([core], asked, crew)[0]


def score_answers_of(cores: Sequence[Core], asked: Sequence[Asked], crew: Crew = ALONE) -> list[list[Score]]:
    """Returns the score of each answer under each of some cores of one context and vocabulary: [cores][answers].

    Raises: InvalidInput when a prompt or an answer is empty, or both together do not fit a core's context.
    """
    longest = min(core.config.max_context for core in cores)
    for one in asked:
        num_tokens = len(one.prompt_ids) + len(one.answer_ids)
        if not one.prompt_ids or not one.answer_ids or num_tokens > longest:
            expected = f"a prompt and an answer of at most {longest} tokens together"
            raise InvalidInput("asked", expected, f"{len(one.prompt_ids)} and {len(one.answer_ids)}")
    if not asked:
        return [[] for _ in cores]
    num_shared = _num_shared([one.prompt_ids for one in asked])
    pasts = [read_prefix(core, asked[0].prompt_ids[:num_shared]) for core in cores]
    readers = _Readers(cores, num_layers_alike(cores), pasts, num_shared)
    summed = crew.run([partial(_sum_up, readers, rows) for rows in _batches(_pack(asked, num_shared))])
    found = []
    for number in range(len(cores)):
        sums = {at: total for part in summed for at, total in part[number]}
        found.append([Score(sums[at], len(one.answer_ids)) for at, one in enumerate(asked)])
    return found


def logit_spans(num_tokens: int) -> Iterator[tuple[int, int]]:
    """Yields the spans of tokens whose logits may be there at once."""
    for start in range(0, num_tokens, _MAX_LOGITS):
        yield start, min(start + _MAX_LOGITS, num_tokens)


@dataclass(frozen=True, slots=True)
class _Readers:
    """The cores that read, with what each makes of the shared opening, and in how many first layers they are alike."""

    cores: Sequence[Core]
    num_alike: int
    pasts: Sequence[KeyValues | None]
    num_past: int


def _sum_up(readers: _Readers, rows: Sequence[_Row]) -> list[list[tuple[int, float]]]:
    """Returns, under each core, of each answer of some rows its place in the request and its log-probability."""
    places = sorted({(row, place) for row, one in enumerate(rows) for place, _ in one.wanted})
    numbers = {place: number for number, place in enumerate(places)}
    wanted = [(numbers[row, place], token) for row, one in enumerate(rows) for place, token in one.wanted]
    at_N, place_N = [row for row, _ in places], [place for _, place in places]
    found = []
    with torch.inference_mode():
        for core, x_BTD in zip(readers.cores, _read(readers, rows), strict=True):
            logs = iter(_look_up(core, x_BTD[at_N, place_N], wanted))
            found.append(list(_sums(rows, [[next(logs) for _ in row.wanted] for row in rows])))
    return found


def _sums(rows: Sequence[_Row], logs: Sequence[Sequence[float]]) -> Iterator[tuple[int, float]]:
    for row, own in zip(rows, logs, strict=True):
        yield from ((at, sum(own[number] for number in looked_up)) for at, looked_up in row.asked)


def _look_up(core: Core, x_ND: Tensor, wanted: Sequence[tuple[int, int]]) -> list[float]:
    """Returns the log-probability of each (number of a place, token), in float32."""
    logs = [0.0] * len(wanted)
    order = sorted(range(len(wanted)), key=lambda at: wanted[at][0])
    for start, end in logit_spans(len(x_ND)):
        here = [at for at in order if start <= wanted[at][0] < end]
        logs_NV = core.logits(x_ND[start:end]).float().log_softmax(dim=-1)
        numbers, tokens = [wanted[at][0] - start for at in here], [wanted[at][1] for at in here]
        for at, value in zip(here, logs_NV[numbers, tokens].tolist(), strict=True):
            logs[at] = value
    return logs


def _read(readers: _Readers, rows: Sequence[_Row]) -> Iterator[Tensor]:
    """Yields the block outputs of the rows under each core: [B, T, D]. Nothing of a row reads the filling behind it."""
    first, num_past = readers.cores[0], readers.num_past
    ids_BT = pad([row.ids for row in rows], first.device)
    positions_BT = pad([row.positions for row in rows], first.device) + num_past
    b, t = ids_BT.shape
    own = torch.stack([row.sees(t) for row in rows]).to(first.device)
    mask = torch.cat([own.new_ones(b, t, num_past), own], dim=-1)

    def run(number: int, x: Tensor, start: int, end: int) -> Tensor:
        core, past = readers.cores[number], readers.pasts[number]
        rotation = core.rotation(positions_BT)

        def attend(index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if past is not None:
                k = torch.cat([past.keys[index].expand(b, -1, -1, -1), k], dim=2)
                v = torch.cat([past.values[index].expand(b, -1, -1, -1), v], dim=2)
            return attention(q, k, v, mask)

        for i in range(start, end):
            x = core.block(i, x, rotation, attend)
        return x

    alike = run(0, first.embed(ids_BT), 0, readers.num_alike)
    for number, core in enumerate(readers.cores):
        x = alike if readers.num_alike else core.embed(ids_BT)
        yield run(number, x, readers.num_alike, core.config.num_layers)


def _pack(asked: Sequence[Asked], num_shared: int) -> list[_Row]:
    """Returns the rows that hold all answers, each behind its prompt."""
    rows: list[_Row] = []
    open_rows: dict[tuple[int, ...], _Row] = {}
    for at, one in enumerate(asked):
        row = open_rows.get(one.prompt_ids)
        if row is None or len(row.ids) + row.num_new(one.answer_ids) > _MAX_ROW:
            row = open_rows[one.prompt_ids] = _Row(one.prompt_ids[num_shared:])
            rows.append(row)
        row.add(at, one.answer_ids)
    return rows


def _batches(rows: Sequence[_Row]) -> Iterator[list[_Row]]:
    """Yields the rows that are read together, the longest first: such of a like length."""
    batch: list[_Row] = []
    for row in sorted(rows, key=lambda row: -len(row.ids)):
        if batch and (len(batch) + 1) * len(batch[0].ids) > _MAX_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    yield batch


def _num_shared(prompts: Sequence[Sequence[int]]) -> int:
    """Returns how many tokens all prompts begin with, leaving each at least its last."""
    most = min(map(len, prompts)) - 1
    first = prompts[0]
    return next((at for at in range(most) if any(prompt[at] != first[at] for prompt in prompts)), most)
