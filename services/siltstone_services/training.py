"""The trainer of the core that the configuration names, and the job it is given."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from siltstone.adapters.plain_trainer import PlainTrainer
from siltstone.adapters.training_job import TrainingJob, read_expert, write_job
from siltstone.config import SiltstoneConfig
from siltstone.errors import Unavailable
from siltstone.model.deltas import Site
from siltstone.ports import CoreTrainer
from siltstone.sleep_values import StepDone


def core_trainer(config: SiltstoneConfig) -> CoreTrainer:
    """Returns the trainer that `sleep.train` names.

    Raises: Unavailable when it needs a package that is not installed.
    """
    settings, engine = config.sleep.train, config.engine
    if settings.trainer == "deepspeed":
        deepspeed: CoreTrainer = trainer_adapter("deepspeed_trainer").DeepSpeedTrainer(settings, engine.device)
        return deepspeed
    if settings.trainer == "ray":
        ray: CoreTrainer = trainer_adapter("ray_trainer").RayTrainer(settings)
        return ray
    return PlainTrainer(settings, engine.device, engine.num_threads or os.cpu_count() or 1)


def train_expert(
    job: TrainingJob,
    core_file: Path,
    config: SiltstoneConfig,
    on_step: Callable[[StepDone], None],
    is_cancelled: Callable[[], bool],
) -> dict[Site, Tensor]:
    """Trains an expert and returns its written side, site by site.

    The job lies in the home folder until it is done: cancelled or killed, the same job goes on from there.

    Raises: Cancelled; Unavailable; Corrupt.
    """
    folder = _job_folder(config)
    write_job(folder, job, core_file)
    written = read_expert(core_trainer(config).train(folder, on_step, is_cancelled))
    shutil.rmtree(folder)
    return written


def forget_job(config: SiltstoneConfig) -> None:
    """Removes the training job of a home, whoever works on it: it holds what people said."""
    shutil.rmtree(_job_folder(config), ignore_errors=True)


def _job_folder(config: SiltstoneConfig) -> Path:
    return config.home_path / "training"


def trainer_adapter(name: str) -> Any:
    """Returns an adapter whose library takes seconds to import, and need not be installed.

    Raises: Unavailable when it is not.
    """
    try:
        return importlib.import_module(f"siltstone.adapters.{name}")
    except ModuleNotFoundError as error:
        raise Unavailable("the trainer", f"{error.name} is missing: install siltstone[train]") from error
