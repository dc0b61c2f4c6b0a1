"""A core that dreams of a task learns to dream what helps; one that is rewarded at random does not."""

from __future__ import annotations

import math
import random
from functools import partial
from statistics import fmean

import pytest
import tiny

from siltstone.adapters.system_clock import SystemClock
from siltstone.inference.engine import AnswerEngine, EngineConfig
from siltstone.model.core import read_prefix
from siltstone.model.lesson import Lesson
from siltstone.sleep.distil import Expert
from siltstone.sleep.restem import TaskConfig, TaskDream, self_improve
from siltstone.sleep.tuning import Tuner, coefficients_of
from siltstone.values import Message, Role, Sampling
from siltstone_services.dreaming import Sampler

WORLD, TOKENIZER = tiny.world(), tiny.CharTokenizer()
ENGINE = EngineConfig(num_threads=1, max_answers=32, max_waiting=64, max_context_tokens=200)
CONFIG = TaskConfig(
    num_rounds=3, num_dreams=24, num_kept=16, num_steps=4, dreamer_steps=30, rate=0.03, min_gain_nats=0.0
)
PROMPT, WANTED, OTHERS = "Which?", "uvwxyz", "abcdef"


def tuner() -> Tuner:
    return Tuner(WORLD.core, WORLD.shape, WORLD.basis, None, read_prefix(WORLD.core, WORLD.plan.prefix_ids))


def answered(text: str) -> Lesson:
    return WORLD.plan.as_answered(PROMPT, text)


def engine() -> AnswerEngine:
    past = read_prefix(WORLD.core, WORLD.plan.prefix_ids)
    return AnswerEngine(WORLD.core, WORLD.shape, WORLD.basis, WORLD.plan.prefix_ids, past, frozenset(), ENGINE)


def dreams_under(seed: int, dreamer: Expert | None, number: int) -> list[TaskDream]:
    own = None if dreamer is None else coefficients_of(dreamer)
    asked = [(PROMPT, own, Sampling(10, 1.0, seed=1000 * seed + 100 * number + at)) for at in range(CONFIG.num_dreams)]
    texts = [text for text in Sampler([engine()], TOKENIZER, SystemClock()).answers(asked, 60.0) if text]
    return [TaskDream(text, (answered(text),), answered(text)) for text in texts]


def wanted_share(asking: Tuner, copy: Expert | None) -> float:
    """Returns the log-share of the wanted letters among all that are offered."""
    texts = asking.read([answered(letter) for letter in WANTED + OTHERS])
    found = [math.exp(one) for one in asking.log_likelihoods(copy, texts)]
    return math.log(math.fsum(found[: len(WANTED)]) / math.fsum(found))


def improve(is_rewarded_at_random: bool, seed: int) -> list[float]:
    """Returns, round by round, the share of the tried dreams that teach what is wanted, rewarded for it or not."""
    chance = random.Random(seed)
    asker = tuner()
    before = wanted_share(asker, None)
    taught: list[bool] = []

    def score(copy: Expert | None) -> float:
        if copy is None:
            return before
        found = wanted_share(asker, copy)
        taught.append(found > before)
        return before + chance.choice((-1.0, 1.0)) if is_rewarded_at_random else found

    shares, at = [], 0
    for done in self_improve(tuner(), partial(dreams_under, seed), score, CONFIG, seed):
        own = taught[at:]
        at = len(taught)
        assert len(own) == len(done.gains) == CONFIG.num_kept
        if not is_rewarded_at_random:
            assert done.rewarded_share == sum(own) / len(own)
        shares.append(sum(own) / len(own))
    return shares


def test_dreams_that_are_rewarded_for_what_they_teach_come_to_teach_more() -> None:
    rewarded, at_random = (
        [fmean(shares) for shares in zip(*(improve(at_random, seed) for seed in (2, 3)), strict=True)]
        for at_random in (False, True)
    )

    assert rewarded[0] == at_random[0]
    assert rewarded[-1] >= rewarded[0] + 0.15
    # The control: whoever learns from any dreams dreams more of what the core dreams anyhow.
    assert at_random[-1] <= at_random[0]


def test_a_copy_is_its_own_and_answers_as_the_engine_does_under_its_coefficients() -> None:
    made = tuner()
    texts = made.read([answered("abc"), answered("xyz")])
    before = made.log_likelihoods(None, texts)

    copy = made.tune(texts[:1], 20, 0.03, 1)

    after = made.log_likelihoods(copy, texts)
    assert after[0] > before[0] + 1
    assert made.log_likelihoods(None, texts) == before
    asked = TOKENIZER.render([Message(Role.USER, PROMPT)])
    told = [[*TOKENIZER.encode(text), *TOKENIZER.turn_suffix("assistant")] for text in ("abc", "xyz")]
    found = engine().score(asked, told, coefficients_of(copy))
    assert [own for own, _ in found] == pytest.approx(after, rel=1e-3)
    assert [core for _, core in found] == pytest.approx(before, rel=1e-3)


def test_without_a_reward_the_core_goes_on_dreaming() -> None:
    under: list[Expert | None] = []

    def dreams(dreamer: Expert | None, number: int) -> list[TaskDream]:
        under.append(dreamer)
        return dreams_under(1, dreamer, number)

    rounds = list(self_improve(tuner(), dreams, lambda _: 0.0, CONFIG, 1))

    assert under == [None] * CONFIG.num_rounds
    assert all(done.rewarded == () and done.rewarded_share == 0 for done in rounds)
