"""The answering engine: prompts are read together, answers decoded together, joining and leaving at any step."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from siltstone.errors import ConfigInvalid, InvalidInput, Overloaded
from siltstone.inference.rows import Answer, Rows
from siltstone.inference.sampling import check_sampling, choose_tokens, generator_of
from siltstone.model.core import Bend, Core, KeyValues, forward_keeping
from siltstone.model.deltas import Basis, DeltaShape, bend_with
from siltstone.values import FinishReason, Sampling

Precision = Literal["float32", "bfloat16", "auto"]


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Where the model runs, and how many answers run at once."""

    device: str = "cpu"
    """Where the core and the batch live: cpu, cuda, cuda:1."""
    dtype: Precision = "float32"
    """What the core computes in; auto takes bfloat16 where the device multiplies it faster. Memories stay float32."""
    num_threads: int = 0
    """Threads of one matrix product on the CPU; 0 takes the processors there are."""
    max_answers: int = 64
    """Answers decoded in one batch."""
    max_waiting: int = 256
    """Answers that may wait for a place; more are refused."""
    max_prefill_tokens: int = 2048
    """Prompt tokens, padding included, read in one step; a longer prompt is read alone."""
    max_context_tokens: int = 2048
    """Tokens of a prompt and its answer together; never more than the core's context."""
    retry_after_s: float = 1.0
    """Seconds after which a refused caller may try again."""

    def __post_init__(self) -> None:
        for name in ("max_answers", "max_waiting", "max_prefill_tokens", "max_context_tokens"):
            if getattr(self, name) < 1:
                raise ConfigInvalid("engine", f"{name}: expected at least 1, found {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Progress:
    """What a step did to one answer: the token it gave (None at its stop), and why it ended if it did.

    `is_broken`: it ended because what the model gave for it was not numbers.
    """

    answer: Answer
    token: int | None
    finished: FinishReason | None
    is_broken: bool = False

    @property
    def is_last(self) -> bool:
        """Whether the answer ended with this."""
        return self.finished is not None or self.is_broken


class AnswerEngine:
    """Answers for one core. Not thread-safe: one thread submits and steps."""

    def __init__(
        self,
        core: Core,
        shape: DeltaShape,
        basis: Basis,
        prefix_ids: Sequence[int],
        prefix: KeyValues | None,
        stop_ids: frozenset[int],
        config: EngineConfig,
    ) -> None:
        self._core, self._shape, self._basis = core, shape, basis
        self._prefix_ids, self._prefix = tuple(prefix_ids), prefix
        self._stop_ids, self._config = stop_ids, config
        self._waiting: deque[Answer] = deque()
        self._rows = Rows(core, shape, basis)
        self.max_context = min(config.max_context_tokens, core.config.max_context)

    @property
    def num_running(self) -> int:
        """Answers that are waiting or being decoded."""
        return len(self._waiting) + len(self._rows.answers)

    @property
    def has_room(self) -> bool:
        """Whether one more answer may wait."""
        return len(self._waiting) < self._config.max_waiting

    def submit(self, prompt: Sequence[int], coefficients: Tensor | None, sampling: Sampling) -> Answer:
        """Queues an answer to a prompt under a user's coefficients [N], or under the bare core.

        Raises: InvalidInput when prompt and answer do not fit the context; Overloaded.
        """
        check_sampling(sampling)
        room = self.max_context - len(prompt)
        if not prompt or room < 1:
            raise InvalidInput("messages", f"1 to {self.max_context - 1} tokens", f"{len(prompt)} tokens")
        if not self.has_room:
            raise Overloaded("waiting answers", self._config.max_waiting, self._config.retry_after_s)
        held = Sampling(min(sampling.max_tokens, room), sampling.temperature, sampling.top_p, sampling.seed)
        answer = Answer(tuple(prompt), coefficients, held, generator_of(held))
        self._waiting.append(answer)
        return answer

    def give_up(self, answer: Answer) -> None:
        """Drops an answer, and frees its place; one that has ended already is no matter."""
        if answer in self._waiting:
            self._waiting.remove(answer)
        elif answer in self._rows.answers:
            self._rows.leave(self._rows.answers.index(answer))

    def step(self) -> list[Progress]:
        """Reads waiting prompts if there is a place for them, else decodes one token of every running answer."""
        ready = self._take_waiting()
        if ready:
            return self._read_prompts(ready)
        if not self._rows.answers:
            return []
        running = list(self._rows.answers)
        progress = self._next_tokens(running, self._rows.decode())
        done = {id(item.answer) for item in progress if item.is_last}
        for row in reversed(range(len(running))):
            if id(self._rows.answers[row]) in done:
                self._rows.leave(row)
        return progress

    def _take_waiting(self) -> list[Answer]:
        """Takes the longest run of waiting answers that fit a step, all with the shared prefix or all without."""
        taken: list[Answer] = []
        longest = 0
        while self._waiting and len(self._rows.answers) + len(taken) < self._config.max_answers:
            answer = self._waiting[0]
            if taken and self._shares_prefix(answer) != self._shares_prefix(taken[0]):
                break
            longest = max(longest, len(answer.prompt))
            if taken and longest * (len(taken) + 1) > self._config.max_prefill_tokens:
                break
            taken.append(self._waiting.popleft())
        return taken

    def _shares_prefix(self, answer: Answer) -> bool:
        size = len(self._prefix_ids)
        return self._prefix is not None and len(answer.prompt) > size and answer.prompt[:size] == self._prefix_ids

    def _bend(self, coefficients: Sequence[Tensor | None], repeat: int = 1) -> Bend | None:
        """Returns the deltas of a batch, a row each; with `repeat`, the one row's for that many, without copying it."""
        if all(one is None for one in coefficients):
            return None
        zero = torch.zeros(self._shape.num_coefficients)
        stacked = torch.stack([zero if one is None else one for one in coefficients])
        sites = self._shape.split(stacked.to(device=self._core.device, dtype=self._core.dtype))
        rows = len(coefficients) * repeat
        layers = {site: [one.expand(rows, -1, -1) for one in stack.unbind(1)] for site, stack in sites.items()}
        return bend_with(self._shape, self._basis, layers)

    def _read_prompts(self, answers: list[Answer]) -> list[Progress]:
        past = self._prefix if self._shares_prefix(answers[0]) else None
        skip = len(self._prefix_ids) if past is not None else 0
        prompts = [answer.prompt[skip:] for answer in answers]
        longest = max(map(len, prompts))
        ids = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device=self._core.device)
        with torch.no_grad():
            x, kept = forward_keeping(self._core, ids, past, self._bend([answer.coefficients for answer in answers]))
            last = torch.tensor([len(prompt) - 1 for prompt in prompts], device=x.device)
            logits = self._core.logits(x[torch.arange(len(answers), device=x.device), last])
        progress = self._next_tokens(answers, logits)
        for row, (answer, item) in enumerate(zip(answers, progress, strict=True)):
            if not item.is_last:
                self._rows.join(answer, kept, row, len(answer.prompt))
        return progress

    def _next_tokens(self, answers: Sequence[Answer], logits_BV: Tensor) -> list[Progress]:
        tokens = choose_tokens(logits_BV, [a.sampling for a in answers], [a.generator for a in answers])
        progress = []
        for answer, token in zip(answers, tokens, strict=True):
            if token is None:
                progress.append(Progress(answer, None, None, is_broken=True))
                continue
            if token in self._stop_ids:
                progress.append(Progress(answer, None, FinishReason.STOP))
                continue
            answer.tokens.append(token)
            is_full = len(answer.tokens) >= answer.sampling.max_tokens
            progress.append(Progress(answer, token, FinishReason.MAX_TOKENS if is_full else None))
        return progress

    def score(
        self, prompt: Sequence[int], continuations: Sequence[Sequence[int]], coefficients: Tensor | None
    ) -> list[tuple[float, float]]:
        """Returns the log-probability of each continuation, in nats, under (the coefficients, the bare core).

        An empty prompt scores a continuation from its second token on: nothing precedes the first.
        Raises: InvalidInput when a continuation is empty or does not fit the context.
        """
        longest = max(map(len, continuations), default=0)
        shortest = min(map(len, continuations), default=0)
        if len(prompt) >= self.max_context:
            raise InvalidInput("prompt", f"up to {self.max_context - 1} tokens", f"{len(prompt)} tokens")
        if shortest < 1 or len(prompt) + longest > self.max_context:
            expected = f"1 to {self.max_context - len(prompt)} tokens"
            raise InvalidInput("answers", expected, f"{shortest} to {longest} tokens")
        device, size = self._core.device, len(self._prefix_ids)
        past = self._prefix if tuple(prompt[:size]) == self._prefix_ids and len(prompt) > size else None
        num_states = 1 if coefficients is None else 2
        with torch.no_grad():
            first_logits = None
            if prompt:
                ids = torch.tensor([list(prompt[size if past is not None else 0 :])], device=device)
                x, past = self._read_both(ids, past, coefficients)
                first_logits = self._core.logits(x[:, -1]).float()
            scores: list[list[float]] = [[] for _ in range(num_states)]
            per_step = max(1, self._config.max_prefill_tokens // (num_states * longest))
            for start in range(0, len(continuations), per_step):
                part = self._score_part(continuations[start : start + per_step], first_logits, past, coefficients)
                for state, found in zip(scores, part.tolist(), strict=True):
                    state += found
        return list(zip(scores[-1], scores[0], strict=True))

    def _read_both(
        self, ids_BT: Tensor, past: KeyValues | None, coefficients: Tensor | None
    ) -> tuple[Tensor, KeyValues]:
        """Runs every row on the bare core and, where there are coefficients, again under them: [1 or 2 times B]."""
        if coefficients is None:
            return forward_keeping(self._core, ids_BT, past)
        bend = self._bend([coefficients], repeat=ids_BT.shape[0])
        return forward_keeping(self._core, ids_BT, past, bend, fork_at=self._shape.first_layer)

    def _score_part(
        self,
        part: Sequence[Sequence[int]],
        first_logits: Tensor | None,
        past: KeyValues | None,
        coefficients: Tensor | None,
    ) -> Tensor:
        """Returns the log-probabilities of some continuations: [1 or 2 states, continuations]."""
        device, longest, num_states = self._core.device, max(map(len, part)), 1 if coefficients is None else 2
        ids = torch.tensor([[*one, *[0] * (longest - len(one))] for one in part], device=device)
        real = torch.tensor([[1.0] * len(one) + [0.0] * (longest - len(one)) for one in part], device=device)
        total = torch.zeros(num_states, len(part), device=device, dtype=torch.float64)
        if first_logits is not None:
            total += F.log_softmax(first_logits, dim=-1)[:, ids[:, 0]].double()
        if longest > 1:
            x, _ = self._read_both(ids[:, :-1], past, coefficients)
            logits = self._core.logits(x).float()
            targets = ids[:, 1:].repeat(num_states, 1)
            nll = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").view(num_states, len(part), -1)
            total -= (nll.double() * real[:, 1:]).sum(dim=2)
        return total
