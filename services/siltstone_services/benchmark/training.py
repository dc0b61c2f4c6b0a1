"""Training an expert: a step with DeepSpeed in one process against the same step in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Final

import torch

from siltstone.adapters.plain_trainer import PlainStepper
from siltstone.adapters.training_job import TrainingJob
from siltstone.adapters.training_loop import Alone, Stepper
from siltstone.crew import Crew
from siltstone.errors import Unavailable
from siltstone.model.lesson import Lesson
from siltstone.sleep.distil import DistilConfig, Item, Schedule, Student, anchor_item
from siltstone.sleep.train_config import TrainConfig
from siltstone_services.benchmark.products import Product, ProductLimit, head_product, layer_products
from siltstone_services.benchmark.readings import Outcome, Reading, Say, at_most, ratio_readings
from siltstone_services.benchmark.timing import Turn, take_turns
from siltstone_services.benchmark.world import World
from siltstone_services.training import trainer_adapter

OF_PLAIN: Final = at_most(1.15, "x")
_DREAM_TOKENS: Final = 64
_ANCHOR_TOKENS: Final = 96
_NUM_STEPS: Final = 1_000
"""Steps of the schedule: more than any run takes."""
_CHECKED_STEPS: Final = 8
_LOSS_TOLERANCE: Final = 1e-4
_EXPERT_TOLERANCE: Final = 1e-2
"""Of the expert's size. AdamW's first steps are the gradient's sign, and where that is near zero rounding decides."""

OpenStepper = Callable[[Student, Schedule, TrainingJob], Stepper]


def bench_job(world: World, num_steps: int = _NUM_STEPS) -> TrainingJob:
    """Returns a night's training on random ids: dreams of a third of their tokens, anchors of both kinds."""
    dreams = [_dream(tuple(world.ids(_DREAM_TOKENS).tolist()), f"person {number}") for number in range(12)]
    anchors = [
        anchor_item(Lesson(tuple(world.ids(_ANCHOR_TOKENS).tolist()), (0.0,) * _ANCHOR_TOKENS, number % 2 == 0))
        for number in range(12)
    ]
    return TrainingJob(
        world.deltas,
        world.basis,
        world.guard,
        world.dtype,
        tuple(world.ids(16).tolist()),
        DistilConfig(num_steps=num_steps),
        0,
        (*dreams, *anchors),
    )


def _dream(ids: tuple[int, ...], owner: str) -> Item:
    places = tuple(range(2 * len(ids) // 3, len(ids)))
    return Item(Lesson(ids, (1.0,) * len(ids)), places, {places[0]: 0.9}, owner)


def check_training(ours: Stepper, theirs: Stepper) -> str:
    """Says what is wrong with two trainers of one job, or nothing: their losses and experts must agree."""
    for _ in range(_CHECKED_STEPS):
        one, other = ours.step(), theirs.step()
        for here, there in ((one.dream_loss, other.dream_loss), (one.anchor_loss, other.anchor_loss)):
            if not abs(here - there) <= _LOSS_TOLERANCE * one.dream_loss:
                return f"step {one.step}: losses of {here} and {there}"
    expected, found = ours.tensors(), theirs.tensors()
    for name, tensor in expected.items():
        apart, size = float((tensor - found[name]).norm()), float(tensor.norm())
        if not size > 0:
            return f"{name} has not moved, so that nothing was checked"
        if not apart <= _EXPERT_TOLERANCE * size:
            return f"{name} differs by {apart / size:.1e} of it, allowed {_EXPERT_TOLERANCE:.1e}"
    return ""


def step_products(world: World, num_tokens: int, num_learned: int) -> list[Product]:
    """Returns the products that a training step cannot do without.

    Of a core whose last k layers, of P numbers each, the expert bends, H more in its head, for T tokens read of which N
    are learned:
        FLOP = 2 (2 T k P + 2 N H)
    What lies below the bent layers is kept from step to step; through these forward, and back to the inputs; the head
    both ways.
    """
    layer, head = layer_products(world.core.config, num_tokens), head_product(world.core.config, num_learned)
    return [*[*layer, *(one.back for one in layer)] * world.deltas.num_layers, head, head.back]


def run_training(world: World, rounds: int, say: Say, open_other: OpenStepper | None = None) -> Outcome:
    """Times a step of DeepSpeed in one process in turns with plain PyTorch, on one torch thread each.

    By the thread's processor time, beside the matrix products alone, and by the clock; and plain PyTorch on two threads
    against one, by the clock.
    `open_other` takes DeepSpeed's place, for a check of the check.
    """
    case = f"training step, {world.name}"
    device = str(world.device)
    group: AbstractContextManager[None] = nullcontext()
    if open_other is None:
        try:
            adapter = trainer_adapter("deepspeed_trainer")
        except Unavailable as error:
            return Outcome(case, absence=str(error))
        group = adapter.group_of_one(device)
        settings = TrainConfig(trainer="deepspeed")

        def open_other(student: Student, schedule: Schedule, job: TrainingJob) -> Stepper:
            stepper: Stepper = adapter.DeepSpeedStepper(student, schedule, job, None, settings, Alone())
            return stepper

    say(case)
    job = bench_job(world)
    schedule = Schedule(job.items, job.distil, job.seed)

    def student() -> Student:
        made = Student(world.core, job.expert(device), job.prefix_ids, job.distil)
        made.prepare(job.items)
        return made

    with group:
        plain, other = PlainStepper(student(), schedule, job), open_other(student(), schedule, job)
        if complaint := check_training(plain, other):
            return Outcome(case, refusal=complaint)
        both = {"plain": Turn(plain.step, warm=False), "DeepSpeed": Turn(other.step, warm=False)}
        tokens = schedule.num_tokens(0)
        (bundle,) = schedule.bundles(0, 1)
        num_learned = sum(len(job.items[index].places) for part in bundle for index in part.indexes)
        limit = ProductLimit(world, step_products(world, tokens, num_learned))
        threads_before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            computed = take_turns(both | {"limit": Turn(limit.run)}, rounds, world.device)
            aside = PlainStepper(student(), schedule, job, None, Crew(2), 2)
            aside.step()
            clocked = take_turns(both | {"two": Turn(aside.step, warm=False)}, rounds, world.device, waits=True)
        finally:
            torch.set_num_threads(threads_before)
    return Outcome(
        case,
        (
            *ratio_readings(f"{case}, DeepSpeed / plain", computed["DeepSpeed"], computed["plain"], OF_PLAIN),
            *ratio_readings(f"{case}, DeepSpeed / plain, by the clock", clocked["DeepSpeed"], clocked["plain"]),
            *ratio_readings(f"{case}, plain on one thread / on two, by the clock", clocked["plain"], clocked["two"]),
            *ratio_readings(
                f"{case}, DeepSpeed, of the matrix products' limit", computed["limit"], computed["DeepSpeed"]
            ),
            Reading(f"{case}, DeepSpeed", tuple(tokens / one for one in computed["DeepSpeed"]), "tokens/s"),
            Reading(f"{case}, limit", tuple(tokens / one for one in computed["limit"]), "tokens/s"),
            Reading(f"{case}, plain", tuple(tokens / one for one in computed["plain"]), "tokens/s"),
            Reading(f"{case}, plain on two threads", tuple(tokens / one for one in clocked["two"]), "tokens/s"),
        ),
    )
