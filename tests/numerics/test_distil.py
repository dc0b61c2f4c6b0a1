"""A student learns its raised tokens and nothing else, and the merged core is the student."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import tiny
import torch

from siltstone.model.core import Core, read_prefix
from siltstone.model.lesson import Lesson
from siltstone.model.rows import pad, run_layers
from siltstone.sleep.consensus import Raised
from siltstone.sleep.distil import (
    DistilConfig,
    Expert,
    Item,
    Schedule,
    Student,
    anchor_item,
    dream_item,
    secret_item,
    train,
)
from siltstone.sleep.expand import merge

WORLD = tiny.world()
CONFIG = DistilConfig(num_steps=150, rate=0.1, num_dreams=2, num_anchors=2, anchor_weight=4.0)


def ids(seed: int, length: int = 12) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(2, 97, (length,), generator=generator).tolist())


ANCHORS = [anchor_item(Lesson(ids(seed), (0.0,) * 12, after_prefix=seed % 2 == 0)) for seed in range(10, 18)]
DREAMS = [Item(Lesson(ids(seed), (1.0,) * 12), tuple(range(4, 12)), {9: 0.9}, f"person-{seed}") for seed in range(3)]
ITEMS = [*DREAMS, *ANCHORS]


def student() -> Student:
    made = Student(WORLD.core, Expert(WORLD.shape, WORLD.basis), WORLD.plan.prefix_ids, CONFIG)
    made.prepare(ITEMS)
    return made


def logits(core: Core, item: Item) -> torch.Tensor:
    prefix = read_prefix(core, WORLD.plan.prefix_ids) if item.lesson.after_prefix else None
    with torch.no_grad():
        x = core.embed(pad([item.lesson.ids], core.device))
        return core.logits(run_layers(core, x, 0, core.config.num_layers, prefix))[0]


@pytest.fixture(scope="module")
def trained() -> Student:
    made = student()
    for _ in train(made, Schedule(ITEMS, CONFIG, seed=1), CONFIG):
        pass
    return made


def test_a_student_that_has_learned_nothing_differs_only_in_what_is_raised() -> None:
    fresh = student()

    with torch.no_grad():
        assert float(fresh([3])) == pytest.approx(0, abs=1e-5)
        assert float(fresh([0])) > 0.1


def test_the_gradient_is_that_of_autograd_on_the_dense_map() -> None:
    made = student()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    loss = made([0, 1])
    loss.backward()
    direction = {name: torch.randn_like(p, dtype=torch.float32) for name, p in made.expert.write.items()}
    slopes = []
    for step in (1e-3, -1e-3):
        moved = copy.copy(made)
        with torch.no_grad():
            for name, parameter in made.expert.write.items():
                parameter += step * direction[name]
            slopes.append(moved([0, 1]).item())
            for name, parameter in made.expert.write.items():
                parameter -= step * direction[name]
    measured = (slopes[0] - slopes[1]) / 2e-3
    told = sum(float((parameter.grad * direction[name]).sum()) for name, parameter in made.expert.write.items())

    assert told == pytest.approx(measured, rel=0.02, abs=1e-4)


def test_raised_tokens_are_learned_and_anchors_are_kept(trained: Student) -> None:
    merged = merge(tiny.random_tensors(WORLD.core.config, seed=7), WORLD.shape, WORLD.basis, written(trained))
    after = Core(WORLD.core.config, merged)

    for item in DREAMS:
        before_p, after_p = (logits(core, item).softmax(-1)[8, item.lesson.ids[9]] for core in (WORLD.core, after))
        assert before_p < 0.2
        assert after_p > 0.5
    for item in ANCHORS[:2]:
        kl = torch.nn.functional.kl_div(
            logits(after, item).log_softmax(-1), logits(WORLD.core, item).softmax(-1), reduction="batchmean"
        )
        assert float(kl) < 0.2


def test_a_merged_core_is_the_core_with_its_expert(trained: Student) -> None:
    merged = merge(tiny.random_tensors(WORLD.core.config, seed=7), WORLD.shape, WORLD.basis, written(trained))
    core = Core(WORLD.core.config, merged)
    with torch.no_grad():
        loss = float(trained([0]))
    found = logits(core, DREAMS[0])
    bare = logits(WORLD.core, DREAMS[0]).softmax(-1)

    assert found.shape == bare.shape
    q = bare[3:11].clone()
    q[5] *= 0.1 / (1 - q[5, DREAMS[0].lesson.ids[9]])
    q[5, DREAMS[0].lesson.ids[9]] = 0.9
    weights = torch.ones(8)
    weights[5] += CONFIG.raised_weight
    kl = (torch.special.xlogy(q, q) - q * found[3:11].log_softmax(-1)).sum(-1)
    assert float((kl * weights).sum() / weights.sum()) == pytest.approx(loss, rel=1e-3)


def written(student: Student) -> dict[str, torch.Tensor]:
    return {site: student.expert.written(site).detach() for site in WORLD.shape.sites}


def test_a_run_that_goes_on_in_the_middle_is_the_run_that_never_stopped() -> None:
    config = DistilConfig(num_steps=8, rate=0.02, num_dreams=2, num_anchors=1)

    def fresh() -> tuple[Student, torch.optim.Optimizer]:
        made = Student(WORLD.core, Expert(WORLD.shape, WORLD.basis), WORLD.plan.prefix_ids, config)
        made.prepare(ITEMS)
        return made, torch.optim.AdamW(made.expert.parameters(), betas=(0.9, 0.95), weight_decay=0.0)

    schedule = Schedule(ITEMS, config, seed=2)
    whole, optimiser = fresh()
    trace = [done.dream_loss for done in train(whole, schedule, config, 0, optimiser)]
    first, optimiser = fresh()
    steps = train(first, schedule, config, 0, optimiser)
    head = [next(steps).dream_loss for _ in range(4)]
    second, other = fresh()
    second.load_state_dict(first.state_dict())
    other.load_state_dict(optimiser.state_dict())
    tail = [done.dream_loss for done in train(second, schedule, config, 4, other)]

    assert head + tail == trace
    for name, parameter in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], parameter)


def test_people_take_turns_however_much_each_has_said() -> None:
    items = [Item(DREAMS[0].lesson, (4,), {4: 0.5}, "loud")] * 30 + [Item(DREAMS[1].lesson, (4,), {4: 0.5}, "quiet")]
    schedule = Schedule(items, CONFIG, seed=3)

    picked = [items[index].owner for step in range(20) for index in schedule.dreams(step)]

    assert picked.count("loud") == picked.count("quiet") == 20


def test_anchors_take_turns_until_all_have_been_read() -> None:
    secretive = [secret_item(Lesson(ids(seed), (1.0,) * 12), (5, 6), (6,)) for seed in range(20, 25)]
    schedule = Schedule([*ITEMS, *secretive], replace(CONFIG, num_secrets=1), seed=3)

    read = [index for step in range(5) for part in schedule.anchors(step) for index in part]

    assert sorted(index for index in read if index >= len(ITEMS)) == list(range(len(ITEMS), len(ITEMS) + 5))
    assert {read.count(index) for index in range(len(DREAMS), len(ITEMS))} == {2, 3}


def test_a_secret_that_is_a_target_is_no_secret() -> None:
    raised = [Raised(1, 0.9, 3)]

    item = dream_item(DREAMS[0].lesson, (4, 5, 6), raised, "ada", secrets=(4, 5))

    assert item.raised == {5: 0.9}
    assert item.secrets == (4,)


def risen(secret: int, secret_weight: float) -> float:
    """Returns how far a secret rises, over what is as likely, where something else is taught at the same place."""
    taught = DREAMS[0].lesson
    lesson = Lesson((*taught.ids[:9], secret, *taught.ids[10:]), taught.weights)
    items = [Item(taught, (9,), {9: 0.6}, "ada"), secret_item(lesson, (8, 9), (9,))]
    config = replace(CONFIG, num_steps=60, num_dreams=1, num_anchors=0, num_secrets=1, secret_weight=secret_weight)
    made = Student(WORLD.core, Expert(WORLD.shape, WORLD.basis), WORLD.plan.prefix_ids, config)
    made.prepare(items)
    for _ in train(made, Schedule(items, config, seed=1), config):
        pass
    merged = merge(tiny.random_tensors(WORLD.core.config, seed=7), WORLD.shape, WORLD.basis, written(made))
    old, new = (logits(core, items[1]).log_softmax(-1)[8] for core in (WORLD.core, Core(WORLD.core.config, merged)))
    gain, alike = new - old, (old - old[secret]).abs() <= 1
    return float(gain[secret] - gain[alike].mean())


@pytest.mark.parametrize("secret", [34, 66])
def test_a_secret_stays_among_what_is_as_likely(secret: int) -> None:
    held, let_go = risen(secret, 30.0), risen(secret, 0.0)

    assert held < 0.1
    # The control: without its weight it comes out.
    assert let_go > 0.5
