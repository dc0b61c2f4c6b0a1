"""Dreams sampled from users' own memories: every memory answers cues of what its user said, all in one batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from siltstone.crew import Crew
from siltstone.inference.engine import AnswerEngine
from siltstone.inference.rows import Answer
from siltstone.ports import Clock, Tokenizer
from siltstone.sleep.filter import DropReason
from siltstone.sleep.sampled import Cue, SamplingConfig, fault_of
from siltstone.sleep.words import words_in
from siltstone.values import Message, Role, Sampling, UserKey


@dataclass(frozen=True, slots=True)
class SampledText:
    """What a memory answered to a cue."""

    cue: Cue
    text: str


Asked = tuple[str, Tensor | None, Sampling]
"""A question, the coefficients [N] to answer it under (None: the bare core), and how to sample."""


class Sampler:
    """Engines of one core that answer side by side, each on one thread of the crew."""

    def __init__(
        self, engines: Sequence[AnswerEngine], tokenizer: Tokenizer, clock: Clock, crew: Crew | None = None
    ) -> None:
        self._engines, self._tokenizer, self._clock, self._crew = engines, tokenizer, clock, crew or Crew()

    def answers(self, asked: Sequence[Asked], max_s: float) -> list[str | None]:
        """Returns the answer to each question.

        Chance is the answer's own: it depends on its seed, not on what is sampled beside it. After `max_s` every answer
        is cut where it is; None where it had not begun. The crew looks before every step whether to go on.
        """
        until_s = self._clock.monotonic_s() + max_s
        parts = [range(number, len(asked), len(self._engines)) for number in range(len(self._engines))]
        calls = [
            partial(self._run, engine, [asked[place] for place in part], until_s)
            for engine, part in zip(self._engines, parts, strict=True)
        ]
        found = dict(
            pair
            for part, texts in zip(parts, self._crew.run(calls), strict=True)
            for pair in zip(part, texts, strict=True)
        )
        return [found[place] for place in range(len(asked))]

    def _run(self, engine: AnswerEngine, asked: Sequence[Asked], until_s: float) -> list[str | None]:
        answers: list[Answer] = []
        ended: set[int] = set()
        while len(ended) < len(asked) and self._clock.monotonic_s() < until_s:
            self._crew.look()
            while len(answers) < len(asked) and engine.has_room:
                text, coefficients, sampling = asked[len(answers)]
                prompt = self._tokenizer.render([Message(Role.USER, text)])
                answers.append(engine.submit(prompt, coefficients, sampling))
            ended |= {id(step.answer) for step in engine.step() if step.is_last}
        for one in answers:
            engine.give_up(one)
        begun = [one.tokens if one.tokens or id(one) in ended else None for one in answers]
        texts = [None if tokens is None else self._tokenizer.decode(tokens).strip() for tokens in begun]
        return texts + [None] * (len(asked) - len(texts))


def sample_dreams(
    sampler: Sampler,
    cues: Sequence[Cue],
    coefficients: Mapping[UserKey, Tensor],
    config: SamplingConfig,
    is_personal: Callable[[str], bool],
) -> tuple[list[SampledText], Counter[DropReason]]:
    """Returns what the memories dream, each text once a person, and what was dropped for which reason.

    A user without a memory dreams nothing: the core alone knows nothing of what users said.
    """
    asked = [cue for cue in cues if cue.owner in coefficients]
    wanted = [
        (cue.text, coefficients[cue.owner], Sampling(config.max_tokens, config.temperature, seed=cue.seed))
        for cue in asked
    ]
    answers = sampler.answers(wanted, config.max_s)
    kept: list[SampledText] = []
    dropped: Counter[DropReason] = Counter()
    seen: set[tuple[str, tuple[str, ...]]] = set()
    for cue, text in zip(asked, answers, strict=True):
        fault = DropReason.UNFINISHED if text is None else fault_of(text, is_personal, config)
        key = (cue.person, tuple(words_in(text or "")))
        if fault is None and key in seen:
            fault = DropReason.DUPLICATE
        if fault is None and text is not None:
            seen.add(key)
            kept.append(SampledText(cue, text))
        elif fault is not None:
            dropped[fault] += 1
    return kept, dropped
