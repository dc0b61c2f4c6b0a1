"""A training job of a core so small that it is trained in a second."""

from __future__ import annotations

from pathlib import Path

import tiny
import torch
from safetensors.torch import save_file

from siltstone.adapters.training_job import TrainingJob, write_job
from siltstone.model.lesson import Lesson
from siltstone.sleep.distil import DistilConfig, Item, Schedule, Student, anchor_item, secret_item, train
from siltstone.sleep_values import StepDone

CONFIG = DistilConfig(num_steps=12, rate=0.001, num_dreams=3, num_anchors=2)
SEED = 3
STEEPNESS = 20
"""Makes the gradient's norm larger than one, so that a trainer that clips it is found out."""


def _ids(seed: int, length: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(2, 97, (length,), generator=generator).tolist())


def _items() -> tuple[Item, ...]:
    dreams = [
        Item(Lesson(_ids(n, 10 + n), (1.0,) * (10 + n)), tuple(range(4, 10 + n)), {9: 0.9}, f"person {n}")
        for n in range(4)
    ]
    anchors = [anchor_item(Lesson(_ids(n, n), (0.0,) * n, after_prefix=n % 2 == 0)) for n in range(10, 18)]
    secretive = [secret_item(Lesson(_ids(n, 9), (1.0,) * 9), range(4, 9), (6,)) for n in range(20, 24)]
    return (*dreams, *anchors, *secretive)


ITEMS = _items()


def make_job(config: DistilConfig = CONFIG) -> TrainingJob:
    """Returns the job."""
    world = tiny.world()
    basis = {site: STEEPNESS * part for site, part in world.basis.items()}
    return TrainingJob(world.shape, basis, None, torch.float32, tuple(world.plan.prefix_ids), config, SEED, ITEMS)


def put_job(folder: Path, config: DistilConfig = CONFIG) -> Path:
    """Writes the job into a folder that need not be there, and returns the folder."""
    core_file = folder.parent / "core.safetensors"
    if not core_file.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        save_file(tiny.random_tensors(tiny.TINY_CORE, seed=7), core_file)
    write_job(folder, make_job(config), core_file)
    return folder


def trained_by_the_book(num_bundles: int = 1) -> tuple[list[StepDone], dict[str, torch.Tensor]]:
    """Returns every step, and the expert's written sides, of a plain run that knows no files."""
    world, job = tiny.world(), make_job()
    student = Student(world.core, job.expert(), job.prefix_ids, CONFIG)
    student.prepare(ITEMS)
    steps = list(train(student, Schedule(ITEMS, CONFIG, SEED), CONFIG, num_bundles=num_bundles))
    return steps, {site: student.expert.written(site).detach() for site in world.shape.sites}
