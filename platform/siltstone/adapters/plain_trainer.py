"""Training in this process, in plain PyTorch: the parts of a step side by side on the processor's cores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from siltstone.adapters.training_checkpoints import Checkpoint
from siltstone.adapters.training_job import TrainingJob, forget_to_stop
from siltstone.adapters.training_loop import Alone, run_job
from siltstone.crew import Crew
from siltstone.sleep.distil import Expert, Schedule, Student, make_optimiser, train
from siltstone.sleep.train_config import TrainConfig
from siltstone.sleep_values import StepDone


class PlainTrainer:
    """`ports.CoreTrainer` in plain PyTorch, on `num_threads` threads of a processor, or on a GPU."""

    def __init__(self, config: TrainConfig, device: str = "cpu", num_threads: int = 1) -> None:
        self._config, self._device = config, device
        self._crew = Crew(num_threads if device == "cpu" else 1)

    def train(
        self,
        job: Path,
        on_step: Callable[[StepDone], None] = lambda _: None,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> Path:
        """See `ports.CoreTrainer.train`."""
        forget_to_stop(job)
        return run_job(job, self._config, self._device, Alone(), self._crew, self._open, on_step, is_cancelled)

    def _open(self, student: Student, schedule: Schedule, job: TrainingJob, found: Checkpoint | None) -> PlainStepper:
        return PlainStepper(student, schedule, job, found, self._crew, self._config.num_bundles)


class PlainStepper:
    """`training_loop.Stepper` by `sleep.distil.train`."""

    def __init__(
        self,
        student: Student,
        schedule: Schedule,
        job: TrainingJob,
        found: Checkpoint | None = None,
        crew: Crew | None = None,
        num_bundles: int = 1,
    ) -> None:
        self._expert, self._optimiser = student.expert, make_optimiser(student, job.distil)
        start = 0
        if found is not None:
            start = found.step
            restore_means(self._optimiser, student.expert, found)
        self._steps = train(student, schedule, job.distil, start, self._optimiser, crew, num_bundles)

    def step(self) -> StepDone:
        """See `training_loop.Stepper.step`."""
        return next(self._steps)

    def tensors(self) -> dict[str, Tensor]:
        """See `training_loop.Stepper.tensors`."""
        return whole_state(self._optimiser, self._expert)


def whole_state(optimiser: torch.optim.Optimizer, expert: Expert) -> dict[str, Tensor]:
    """Returns the expert, and the two running means that AdamW keeps of each of its parameters."""
    tensors: dict[str, Tensor] = {}
    for site, write in expert.write.items():
        kept = optimiser.state[write]
        tensors |= {
            f"{site}.write": write.detach(),
            f"{site}.first": kept["exp_avg"],
            f"{site}.second": kept["exp_avg_sq"],
        }
    return tensors


def restore_means(optimiser: torch.optim.Optimizer, expert: Expert, found: Checkpoint) -> None:
    """Gives AdamW the running means of a checkpoint, and how many steps they are of."""
    for site, write in expert.write.items():
        optimiser.state[write] = {
            "step": torch.tensor(float(found.step)),
            "exp_avg": found.tensors[f"{site}.first"].to(write.device).clone(),
            "exp_avg_sq": found.tensors[f"{site}.second"].to(write.device).clone(),
        }
