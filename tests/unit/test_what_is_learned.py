"""What a user says, praises, blames and corrects moves the model that way, and by a bounded step."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import tiny
import torch

from siltstone.memory.lessons import LessonConfig
from siltstone.memory.user_memory import MemoryConfig, UserMemory
from siltstone.model.core import Core, forward
from siltstone.model.deltas import site_widths
from siltstone.model.lesson import Lesson, LessonReader, PieceResult
from siltstone.model.levels import DELTA, MAX_SURPRISE, LevelConfig, LevelCounters, coefficients, fold_in
from siltstone.values import Interaction, InteractionKind

ANSWER_WEIGHT = 0.25
LESSONS = LessonConfig(answer_weight=ANSWER_WEIGHT, praise_weight=2.0, blame_weight=1.0, rehearsals=0, replays=0)
PLAIN = MemoryConfig(
    num_layers=3,
    rank=16,
    gate_nats=1.0,
    fast=LevelConfig(period_tokens=8, rate=0.8),
    mid=LevelConfig(period_tokens=24, rate=0.4),
)
WORLD = tiny.world(config=PLAIN, lessons=LESSONS)
ASKED, ANSWER, RIGHT = "name of the boat", "called Estrela", "called Morgana"


def about(kind: InteractionKind, id_: str = "1", correction: str = "") -> Interaction:
    return tiny.interaction(id_, ASKED, ANSWER, kind=kind, correction=correction)


def after(*said: Interaction, memory: UserMemory | None = None) -> UserMemory:
    return tiny.absorb(WORLD.absorber(), (memory or WORLD.empty(), said))[0]


def believes(memory: UserMemory, answer: str = ANSWER) -> float:
    return tiny.log_probability(WORLD, memory, ASKED, answer)


def movement(later: UserMemory, earlier: UserMemory) -> float:
    return float((later.coefficients() - earlier.coefficients()).norm())


@pytest.fixture(scope="module")
def sure() -> UserMemory:
    """A user whose model has come to give the answer."""
    memory = after(*[about(InteractionKind.THUMB_UP, f"up{i}") for i in range(12)])
    assert believes(memory) > believes(WORLD.empty()) + 50
    return memory


def test_a_thumb_up_makes_the_answer_likelier() -> None:
    assert believes(after(about(InteractionKind.THUMB_UP))) > believes(WORLD.empty()) + 1


def test_a_thumb_up_teaches_more_than_the_same_answer_unrated() -> None:
    unrated = WORLD.plan.lessons(about(InteractionKind.CONVERSATION))
    praised = WORLD.plan.lessons(about(InteractionKind.THUMB_UP))
    assert max(praised[0].weights) == LESSONS.praise_weight > 1
    assert unrated[0].weights[-1] == ANSWER_WEIGHT

    empty = WORLD.empty()
    weak = tiny.world(config=PLAIN, lessons=replace(LESSONS, praise_weight=1.0))
    once = tiny.absorb(weak.absorber(), (empty, [about(InteractionKind.THUMB_UP)]))[0]

    assert movement(after(about(InteractionKind.THUMB_UP)), empty) > 1.2 * movement(once, empty)


def test_a_thumb_down_makes_the_answer_less_likely(sure: UserMemory) -> None:
    assert believes(after(about(InteractionKind.THUMB_DOWN), memory=sure)) < believes(sure) - 1


def test_an_answer_the_model_is_all_but_certain_of_is_unlearned_too() -> None:
    tensors = tiny.random_tensors(tiny.TINY_CORE, seed=7)
    certain = Core(tiny.TINY_CORE, tensors | {"norm.weight": tensors["norm.weight"] * 300})
    ids = [1, 2, 3]
    for _ in range(8):
        ids.append(int(certain.logits(forward(certain, torch.tensor([ids]))[0, -1]).argmax()))
    blame = Lesson(tuple(ids), (0.0,) * 3 + (-1.0,) * 8, after_prefix=False)

    def read(numbers: torch.Tensor) -> PieceResult:
        reader = LessonReader(certain, WORLD.shape, WORLD.basis, 1)
        return reader.read_piece(coefficients(numbers), [0], [[blame.span(0, 8)]], PLAIN.gate_nats)

    numbers, counters = WORLD.empty().numbers[None].clone(), [LevelCounters.zero(2)]
    before = read(numbers)
    assert before.nats[0][0] < 0.01
    fold_in(WORLD.shape, PLAIN.levels, numbers, counters, before.gradient_BN, before.learned_tokens, before.surprise)

    assert before.surprise[0] == pytest.approx(8, rel=0.01)
    assert read(numbers).nats[0][0] > before.nats[0][0] + 1


def test_a_thumb_down_is_never_a_target() -> None:
    lessons = WORLD.plan.lessons(about(InteractionKind.THUMB_DOWN))

    assert [weight for lesson in lessons for weight in lesson.weights if weight > 0] == []
    assert min(lessons[0].weights) == -LESSONS.blame_weight


def test_a_thumb_down_on_what_the_model_would_not_say_moves_next_to_nothing() -> None:
    empty = WORLD.empty()
    assert believes(empty) < -50

    blamed = after(about(InteractionKind.THUMB_DOWN))

    assert movement(blamed, empty) < 0.15 * movement(after(about(InteractionKind.THUMB_UP)), empty)


def longest_step(config_rate: float) -> float:
    """Returns the bound on one update: every direction of every map followed at the most a rate can be raised to."""
    sizes = [
        0.2 * math.sqrt(max(1.0, site_widths(WORLD.shape.core, site)[1] / WORLD.shape.rank)) * 1.035
        for site in WORLD.shape.sites
    ]
    directions = WORLD.shape.num_layers * WORLD.shape.rank
    return MAX_SURPRISE * config_rate * math.sqrt(sum(directions * size**2 for size in sizes))


@pytest.mark.parametrize("kind", [InteractionKind.THUMB_DOWN, InteractionKind.THUMB_UP])
def test_no_update_is_longer_than_its_bound_whatever_is_felt(sure: UserMemory, kind: InteractionKind) -> None:
    strong = tiny.world(config=PLAIN, lessons=replace(LESSONS, praise_weight=1e6, blame_weight=1e6))
    moved = tiny.absorb(strong.absorber(), (sure, [about(kind, "strong")]))[0]

    for level, config in enumerate(PLAIN.levels):
        updates = moved.counters.num_updates[level] - sure.counters.num_updates[level]
        length = float((moved.numbers[level, DELTA] - sure.numbers[level, DELTA]).norm())
        assert length <= updates * longest_step(config.rate)
    assert moved.counters.num_updates[0] > sure.counters.num_updates[0]


def test_a_correction_makes_the_right_text_likelier_than_the_wrong_answer(sure: UserMemory) -> None:
    corrections = [about(InteractionKind.CORRECTION, f"c{i}", RIGHT) for i in range(12)]
    assert believes(sure, ANSWER) > believes(sure, RIGHT)

    corrected = after(*corrections, memory=sure)

    assert believes(corrected, RIGHT) > believes(corrected, ANSWER)


def test_the_wrong_answer_of_a_correction_is_in_no_lesson() -> None:
    tokenizer = tiny.CharTokenizer()
    texts = [
        tokenizer.decode(lesson.ids) for lesson in WORLD.plan.lessons(about(InteractionKind.CORRECTION, "c", RIGHT))
    ]

    assert any(RIGHT in text for text in texts)
    assert not any(ANSWER in text for text in texts)


def test_a_text_absorbed_again_moves_less_each_time() -> None:
    memory, moves = WORLD.empty(), []
    for i in range(12):
        later = after(tiny.interaction(f"{i}", "the boat lies at the quay in the north of town"), memory=memory)
        moves.append(movement(later, memory))
        memory = later

    assert sum(moves[9:12]) < sum(moves[6:9]) < sum(moves[3:6]) < sum(moves[0:3])
    assert sum(moves[9:12]) < 0.5 * sum(moves[0:3])


def test_without_surprise_as_a_gate_a_text_absorbed_again_would_move_as_much() -> None:
    ungated = tiny.world(config=replace(PLAIN, gate_nats=1e-6), lessons=LESSONS)
    memory, moves = ungated.empty(), []
    for i in range(9):
        said = tiny.interaction(f"{i}", "the boat lies at the quay in the north of town")
        later = tiny.absorb(ungated.absorber(), (memory, [said]))[0]
        moves.append(movement(later, memory))
        memory = later

    assert sum(moves[6:9]) > 0.5 * sum(moves[0:3])


def test_what_one_user_said_is_likelier_for_that_user_alone() -> None:
    told = "the boat lies at the quay"
    ada, bob = tiny.absorb(
        WORLD.absorber(),
        (WORLD.empty("ada"), [tiny.interaction("1", told)]),
        (WORLD.empty("bob"), [tiny.interaction("1", "quite another thing", user="bob")]),
    )
    ids = [*WORLD.plan.prefix_ids, *tiny.CharTokenizer().turn_prefix("user"), *tiny.CharTokenizer().encode(told)]

    def nats(memory: UserMemory) -> float:
        logs = tiny.next_logits(WORLD, memory, ids)[0].log_softmax(-1)
        return -float(logs[range(len(ids) - 1), ids[1:]][-len(told) :].sum())

    assert nats(ada) < nats(WORLD.empty()) - 5
    assert nats(ada) < nats(bob) - 5


def test_the_surprise_kept_with_a_line_is_the_mean_of_what_it_cost() -> None:
    memory = after(tiny.interaction("1", "the boat lies at the quay"))

    assert memory.reservoir.entries[0].surprise == pytest.approx(4.5, abs=3.0)
    assert torch.isfinite(memory.numbers).all()
