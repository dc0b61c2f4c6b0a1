"""Self-improvement on a task: the core's dreams are rewarded by what they teach, and it learns to dream better."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from siltstone.errors import ConfigInvalid
from siltstone.model.lesson import Lesson
from siltstone.sleep.distil import Expert
from siltstone.sleep.selection import choose
from siltstone.sleep.tuning import Tuner


@dataclass(frozen=True, slots=True)
class TaskConfig:
    """How the core improves itself on a task."""

    num_rounds: int = 2
    """Rounds of dreaming; after each but the last the dreamer learns from the rewarded dreams."""
    num_dreams: int = 18
    """Dreams sampled in a round."""
    num_kept: int = 12
    """Dreams of a round that are tried: those of the largest gradient, and some at random."""
    random_share: float = 0.25
    """Share of the tried dreams that is taken at random."""
    temperature: float = 0.8
    """Temperature of the sampling."""
    max_tokens: int = 64
    """Tokens of a dream."""
    max_s: float = 300.0
    """Seconds for the dreams of a round; then they are cut where they are."""
    num_steps: int = 6
    """Steps with which a copy of the core learns one dream."""
    dreamer_steps: int = 12
    """Steps with which the dreamer learns the rewarded dreams."""
    rate: float = 4e-3
    """Largest step of both."""
    batch: int = 4
    """Texts of a step."""
    min_gain_nats: float = 0.02
    """What a dream's copy must gain in the score over the core to be rewarded: any change gains or loses a little."""

    def __post_init__(self) -> None:
        counts = (self.num_rounds, self.num_dreams, self.num_kept, self.num_steps, self.dreamer_steps, self.batch)
        if min(counts) < 1 or self.max_tokens < 1:
            raise ConfigInvalid("sleep.task", "expected counts of at least 1")
        if not (0 <= self.random_share <= 1 and 0 <= self.temperature <= 10):
            raise ConfigInvalid("sleep.task", "expected random_share of 0 to 1 and temperature of 0 to 10")
        if not (self.rate > 0 and self.max_s > 0 and 0 <= self.min_gain_nats < math.inf):
            raise ConfigInvalid("sleep.task", "expected rate and max_s above 0 and min_gain_nats of 0 or more")


@dataclass(frozen=True, slots=True)
class TaskDream:
    """What the core dreamt of a task: the exchanges it teaches, and itself as the answer it was."""

    text: str
    lessons: tuple[Lesson, ...]
    as_dreamt: Lesson


@dataclass(frozen=True, slots=True)
class RoundDone:
    """What a round gave: dreams sampled and tried, the rewarded ones, and what each tried copy gained in the score."""

    number: int
    num_dreamt: int
    gains: tuple[float, ...]
    rewarded: tuple[TaskDream, ...]

    @property
    def rewarded_share(self) -> float:
        """Share of the tried dreams that were rewarded."""
        return len(self.rewarded) / len(self.gains) if self.gains else 0.0


def self_improve(
    tuner: Tuner,
    sample: Callable[[Expert | None, int], Sequence[TaskDream]],
    score: Callable[[Expert | None], float],
    config: TaskConfig,
    seed: int,
) -> Iterator[RoundDone]:
    """Yields round after round.

        dream d ~ dreamer(. | context);  theta'(d) = core + a low-rank copy fine-tuned on d alone
        r(d) = 1[ score(theta'(d)) - score(core) > min_gain ]
        dreamer <- core fine-tuned on all d with r(d) = 1 so far
    `sample` dreams under a dreamer (None is the core) in a round; `score` is that of the questions held in, nats.
    Source: Sleep, section 3.4, and ReST^EM, arXiv:2312.06585: every round starts from the core, not from the dreamer
    before. Differs: there is no router to pick a random expert from.
    """
    before = score(None)
    dreamer: Expert | None = None
    rewarded: list[TaskDream] = []
    for number in range(config.num_rounds):
        dreams = sample(dreamer, number)
        pulls = [tuner.importance(tuner.read(dream.lessons)) for dream in dreams]
        kept = choose(pulls, ["core"] * len(pulls), config.num_kept, config.random_share, seed + number)
        gains = []
        won = []
        for index in kept:
            copy = tuner.tune(tuner.read(dreams[index].lessons), config.num_steps, config.rate, config.batch)
            gains.append(score(copy) - before)
            if gains[-1] > config.min_gain_nats:
                won.append(dreams[index])
        rewarded += won
        if rewarded and number + 1 < config.num_rounds:
            told = tuner.read([dream.as_dreamt for dream in rewarded])
            dreamer = tuner.tune(told, config.dreamer_steps, config.rate, config.batch)
        yield RoundDone(number, len(dreams), tuple(gains), tuple(won))
