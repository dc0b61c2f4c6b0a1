"""The bench of training steps times what trains the same, and refuses what does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from siltstone.adapters.plain_trainer import PlainStepper
from siltstone.adapters.training_job import TrainingJob
from siltstone.memory.user_memory import MemoryConfig
from siltstone.model.config import CoreConfig
from siltstone.sleep.distil import Schedule, Student
from siltstone_services.benchmark.training import run_training
from siltstone_services.benchmark.world import Shape, World

SMALL = Shape(
    "small",
    CoreConfig(128, 32, 3, 4, 2, 8, 48, 10_000.0, 1e-5, 256, tied_head=True),
    MemoryConfig(num_layers=2, rank=4, guarded_directions=4),
)


def test_deepspeed_and_plain_pytorch_are_timed_when_they_agree() -> None:
    pytest.importorskip("deepspeed")

    outcome = run_training(World(SMALL), 2, lambda _: None)

    assert not outcome.refusal
    assert not outcome.absence
    assert {reading.unit for reading in outcome.readings} == {"x", "tokens/s"}


def test_a_trainer_of_half_the_rate_is_not_timed() -> None:
    def at_half_rate(student: Student, schedule: Schedule, job: TrainingJob) -> PlainStepper:
        return PlainStepper(student, schedule, replace(job, distil=replace(job.distil, rate=job.distil.rate / 2)))

    outcome = run_training(World(SMALL), 2, lambda _: None, at_half_rate)

    assert outcome.refusal
    assert not outcome.readings
