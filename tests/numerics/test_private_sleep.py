"""A private sleep moves what a user's faster levels hold into a slower one, keeps to the core, or changes nothing."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import replace

import pytest
import tiny
import torch

from siltstone.errors import ConfigInvalid, InvalidInput
from siltstone.memory.consolidation import parts_of, replay_of, slept
from siltstone.memory.user_memory import UserMemory
from siltstone.model.core import forward_keeping, read_prefix
from siltstone.model.deltas import bend_alike
from siltstone.model.lesson import Lesson
from siltstone.model.levels import DELTA
from siltstone.sleep.continuations import continue_prompts
from siltstone.sleep.private import Consolidation, Outcome, PrivateSleepConfig, PrivateSleeper

WORLD = tiny.world()
FAST, MID = 0, 1
TOLD = (
    "My boat is called Estrela and she is red.",
    "I was born in the town of Lisbon.",
    "My sister keeps seven grey geese.",
    "I play the old cello on Mondays.",
    "Our garden wall is made of flint.",
    "My first car was a small green van.",
)
CONFIG = PrivateSleepConfig(
    num_steps=20, rate=0.03, num_texts=4, num_dreams=3, max_dream_tokens=8, own_every_steps=8, max_drift_nats=10.0
)


def neutral(count: int = 12) -> list[Lesson]:
    chance = torch.Generator().manual_seed(5)
    made = []
    for at in range(count):
        ids = tuple(torch.randint(2, 95, (20,), generator=chance).tolist())
        made.append(Lesson(ids, (0.0,) + (1.0,) * 19, after_prefix=at % 3 == 0))
    return made


ANCHORS = neutral()


def sleeper(**changes: object) -> PrivateSleeper:
    core, plan = WORLD.core, WORLD.plan
    prefix = read_prefix(core, plan.prefix_ids)
    config = replace(CONFIG, **changes)  # type: ignore[arg-type]
    return PrivateSleeper(core, WORLD.shape, WORLD.basis, None, prefix, frozenset({tiny.END}), ANCHORS, config)


def to_end(sleep: Generator[int, None, Outcome]) -> tuple[list[int], Outcome]:
    steps = []
    while True:
        try:
            steps.append(next(sleep))
        except StopIteration as done:
            return steps, done.value


@pytest.fixture(scope="module")
def memory() -> UserMemory:
    said = [tiny.interaction(str(at), text) for at, text in enumerate(TOLD)]
    return tiny.absorb(WORLD.absorber(), (WORLD.empty(), said))[0]


def task_of(memory: UserMemory, level: int = MID, kept_share: float = 0.0) -> Consolidation:
    parts = parts_of(memory, level, kept_share, WORLD.config)
    replay = replay_of(memory, WORLD.plan, level)
    return Consolidation(parts.stays_N, parts.target_N, parts.moves_N, parts.max_norm, replay)


def outcome_of(memory: UserMemory, level: int = MID, **changes: object) -> Outcome:
    return to_end(sleeper(**changes).sleep(task_of(memory, level), "night"))[1]


def test_an_expert_that_has_learned_nothing_and_copied_all_is_the_teacher(memory: UserMemory) -> None:
    for level in (FAST, MID):
        task = task_of(memory, level)
        outcome = outcome_of(memory, level, num_steps=0, copied_share=1.0)

        assert outcome.target_N is not None
        torch.testing.assert_close(outcome.target_N, task.target_N + task.moves_N)
        assert outcome.after is not None
        assert outcome.after.divergence_nats == pytest.approx(0, abs=1e-5)


def test_a_zero_expert_leaves_the_student_what_stays(memory: UserMemory) -> None:
    task = task_of(memory, FAST)
    outcome = outcome_of(memory, FAST, num_steps=0, copied_share=0.0, max_divergence_nats=100.0)

    assert outcome.target_N is not None
    assert torch.equal(outcome.target_N, task.target_N)


def test_an_expert_that_starts_from_nothing_learns_from_the_teacher(memory: UserMemory) -> None:
    limits = {"max_divergence_nats": 100.0, "max_recall_loss_nats": 100.0, "copied_share": 0.0}
    before = outcome_of(memory, num_steps=0, **limits)
    after = outcome_of(memory, num_steps=60, anchor_weight=0.0, **limits)

    assert before.after is not None
    assert after.after is not None
    assert after.after.divergence_nats < 0.8 * before.after.divergence_nats
    assert after.after.recall_nats > before.after.recall_nats


def test_only_the_expert_is_written_to(memory: UserMemory) -> None:
    core = WORLD.core
    weights = [
        core.embed_VD,
        core.norm_D,
        *(w for layer in core.layers for w in (layer.qkv, layer.gate_up, layer.down)),
    ]
    copies = [weight.clone() for weight in weights]
    task = task_of(memory)
    parts = [part.clone() for part in (task.stays_N, task.target_N, task.moves_N)]

    _, outcome = to_end(sleeper().sleep(task, "night"))

    assert outcome.target_N is not None
    assert not outcome.target_N.requires_grad
    assert all(torch.equal(weight, copy) and weight.grad is None for weight, copy in zip(weights, copies, strict=True))
    assert all(
        torch.equal(part, copy) for part, copy in zip((task.stays_N, task.target_N, task.moves_N), parts, strict=True)
    )
    assert not any(part.requires_grad for part in (task.stays_N, task.target_N, task.moves_N))


def test_without_anchors_a_sleep_drifts_further_from_the_core(memory: UserMemory) -> None:
    with_anchors = outcome_of(memory, num_steps=40, anchor_weight=8.0, copied_share=1.0)
    without = outcome_of(memory, num_steps=40, anchor_weight=0.0, copied_share=1.0)

    assert with_anchors.after is not None
    assert without.after is not None
    assert with_anchors.before is not None
    assert with_anchors.after.drift_nats < 0.7 * without.after.drift_nats
    assert with_anchors.after.drift_nats < 0.7 * with_anchors.before.drift_nats


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ({"max_divergence_nats": 0.0}, "divergence"),
        ({"max_drift_nats": 0.0}, "drift"),
        ({"max_recall_loss_nats": 0.0, "copied_share": 0.0, "num_steps": 0}, "recall"),
    ],
)
def test_a_student_that_misses_a_limit_is_refused_and_told_why(
    memory: UserMemory, limit: dict[str, float], reason: str
) -> None:
    outcome = outcome_of(memory, **limit)

    assert outcome.target_N is None
    assert any(reason in told for told in outcome.refusals)
    assert outcome_of(memory).refusals == ()


def test_a_student_of_which_nothing_is_a_number_is_refused(memory: UserMemory) -> None:
    task = task_of(memory)
    for broken in (replace(task, stays_N=torch.full_like(task.stays_N, math.nan)), replace(task, max_norm=math.nan)):
        outcome = to_end(sleeper().sleep(broken, "night"))[1]

        assert outcome.target_N is None
        assert len(outcome.refusals) == 3


def test_a_user_who_has_told_nothing_does_not_sleep(memory: UserMemory) -> None:
    task = task_of(memory)
    for replay in ([], task.replay[:1]):
        outcome = to_end(sleeper().sleep(replace(task, replay=replay), "night"))[1]

        assert outcome.target_N is None
        assert outcome.refusals == ("fewer than two statements to replay",)


def test_the_same_seed_gives_the_same_sleep_whoever_has_a_turn_in_between(memory: UserMemory) -> None:
    one_sleeper = sleeper()
    alone = to_end(one_sleeper.sleep(task_of(memory), "night"))[1]
    first, second = one_sleeper.sleep(task_of(memory), "night"), one_sleeper.sleep(task_of(memory), "other")
    outcomes: list[Outcome] = []
    under_way = [first, second]
    while under_way:
        for one in list(under_way):
            try:
                assert next(one) > 0
                assert torch.is_grad_enabled()
                torch.rand(3)
            except StopIteration as done:
                outcomes.append(done.value)
                under_way.remove(one)

    assert alone.target_N is not None
    found = [outcome.target_N for outcome in outcomes if outcome.target_N is not None]
    assert sum(torch.equal(target_N, alone.target_N) for target_N in found) == 1
    assert len(found) == 2


def test_a_share_of_an_emptied_level_may_stay(memory: UserMemory) -> None:
    task = task_of(memory, MID, kept_share=0.25)

    torch.testing.assert_close(task.stays_N, 0.25 * memory.numbers[:, DELTA].sum(dim=0))
    torch.testing.assert_close(task.stays_N + task.target_N + task.moves_N, memory.coefficients())


def test_the_slower_level_keeps_its_bound(memory: UserMemory) -> None:
    task = task_of(memory)
    bound = 0.5 * float(task.moves_N.norm())

    outcome = to_end(
        sleeper(max_divergence_nats=100.0, max_recall_loss_nats=100.0).sleep(replace(task, max_norm=bound), "night")
    )[1]

    assert outcome.target_N is not None
    assert float(outcome.target_N.norm()) == pytest.approx(bound, rel=1e-4)


def test_a_configuration_without_sense_is_refused() -> None:
    for changes in ({"rate": 0.0}, {"copied_share": 1.5}, {"max_drift_nats": -1.0}, {"num_texts": 0}):
        with pytest.raises(ConfigInvalid):
            replace(CONFIG, **changes)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput):
        PrivateSleeper(WORLD.core, WORLD.shape, WORLD.basis, None, None, frozenset(), ANCHORS[:3], CONFIG)


@pytest.mark.parametrize("num_nights", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_many_sleeps_leave_a_memory_no_larger_and_within_its_bounds(num_nights: int) -> None:
    config = replace(WORLD.config, slow_max_norm=0.5)
    brief = sleeper(
        num_steps=2,
        num_dreams=0,
        max_statements=3,
        num_texts=2,
        copied_share=1.0,
        max_divergence_nats=100.0,
        max_drift_nats=100.0,
        max_recall_loss_nats=100.0,
    )
    memory, sizes, norms = WORLD.empty(), [], []
    for night in range(num_nights):
        said = [tiny.interaction(f"{night}-{at}", TOLD[(night + at) % len(TOLD)]) for at in range(2)]
        memory = tiny.absorb(WORLD.absorber(), (memory, said))[0]
        parts = parts_of(memory, MID, 0.0, config)
        replay = replay_of(memory, WORLD.plan, MID)
        task = Consolidation(parts.stays_N, parts.target_N, parts.moves_N, parts.max_norm, replay)
        outcome = to_end(brief.sleep(task, str(night)))[1]
        assert outcome.target_N is not None
        memory = slept(memory, MID, 0.0, outcome.target_N)
        sizes.append(memory.num_bytes)
        norms.append(float(outcome.target_N.norm()))

    assert set(sizes) == {WORLD.empty().num_bytes + 4 * WORLD.shape.num_coefficients}
    assert max(norms) == pytest.approx(0.5, rel=1e-4)
    assert memory.sleeps.counts == (num_nights, num_nights)
    assert not memory.numbers[:, DELTA].any()


def test_dreams_are_what_reading_the_whole_text_at_every_token_would_draw(memory: UserMemory) -> None:
    core, prefix = WORLD.core, read_prefix(WORLD.core, WORLD.plan.prefix_ids)
    prompts = [tuple(tiny.CharTokenizer().encode(text)) for text in ("What is my boat?", "And?")]
    parts = WORLD.shape.split(memory.coefficients()[None])
    bend = bend_alike(WORLD.shape, WORLD.basis, {site: list(part[0].unbind(0)) for site, part in parts.items()})

    def dreamt(seed: int, stop_ids: frozenset[int] = frozenset()) -> list[list[int]]:
        dreaming = continue_prompts(core, prefix, prompts, bend, 6, stop_ids, torch.Generator().manual_seed(seed))
        while True:
            try:
                next(dreaming)
            except StopIteration as done:
                return done.value

    said: list[list[int]] = [[], []]
    chance = torch.Generator().manual_seed(1)
    for _ in range(6):
        with torch.no_grad():
            read = [
                forward_keeping(core, torch.tensor([[*prompt, *own]]), prefix, bend)[0][:, -1]
                for prompt, own in zip(prompts, said, strict=True)
            ]
            drawn = torch.multinomial(core.logits(torch.cat(read)).softmax(-1), 1, generator=chance)
        for own, token in zip(said, drawn[:, 0].tolist(), strict=True):
            own.append(token)

    assert dreamt(1) == said
    assert dreamt(2) != said
    stop = said[0][2]
    assert dreamt(1, frozenset({stop}))[0] == said[0][: said[0].index(stop) + 1]
