"""Dreams sampled from users' own memories: every memory answers cues of what its user said, all in one batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

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


def sample(
    engine: AnswerEngine,
    tokenizer: Tokenizer,
    clock: Clock,
    asked: Sequence[tuple[str, Tensor | None, Sampling]],
    max_s: float,
) -> list[str | None]:
    """Returns an engine's answer to each question under its coefficients [N].

    Chance is the answer's own: it depends on its seed, not on what is sampled beside it. After `max_s` every answer is
    cut where it is; None where it had not begun.
    """
    until_s = clock.monotonic_s() + max_s
    answers: list[Answer] = []
    ended: set[int] = set()
    while len(ended) < len(asked) and clock.monotonic_s() < until_s:
        while len(answers) < len(asked) and engine.has_room:
            text, coefficients, sampling = asked[len(answers)]
            answers.append(engine.submit(tokenizer.render([Message(Role.USER, text)]), coefficients, sampling))
        ended |= {id(step.answer) for step in engine.step() if step.is_last}
    for one in answers:
        engine.give_up(one)
    begun = [one.tokens if one.tokens or id(one) in ended else None for one in answers]
    texts = [None if tokens is None else tokenizer.decode(tokens).strip() for tokens in begun]
    return texts + [None] * (len(asked) - len(texts))


def sample_dreams(
    engine: AnswerEngine,
    tokenizer: Tokenizer,
    clock: Clock,
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
    answers = sample(engine, tokenizer, clock, wanted, config.max_s)
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
