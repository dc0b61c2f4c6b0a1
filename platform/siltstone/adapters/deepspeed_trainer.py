"""Training with DeepSpeed: in this process alone, or as one of several workers (ray_trainer)."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import deepspeed
import torch
import torch.distributed as dist
import torch.nn.functional as F
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_get_local_fp32_param,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from siltstone.adapters.plain_trainer import restore_means, whole_state
from siltstone.adapters.training_checkpoints import Checkpoint, Seat
from siltstone.adapters.training_job import TrainingJob, forget_to_stop
from siltstone.adapters.training_loop import Alone, run_job
from siltstone.crew import Crew
from siltstone.sleep.distil import Part, Schedule, Student, make_optimiser, rate_at
from siltstone.sleep.train_config import TrainConfig
from siltstone.sleep_values import StepDone

_LOCAL_RANK: Final = "LOCAL_RANK"
"""The variable of the environment in which DeepSpeed looks for its place on this machine."""
_MEANS: Final = {"first": "exp_avg", "second": "exp_avg_sq"}


class DeepSpeedTrainer:
    """`ports.CoreTrainer` with DeepSpeed, in this process and on one device."""

    def __init__(self, config: TrainConfig, device: str = "cpu") -> None:
        self._config, self._device = config, device

    def train(
        self,
        job: Path,
        on_step: Callable[[StepDone], None] = lambda _: None,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> Path:
        """See `ports.CoreTrainer.train`."""
        forget_to_stop(job)
        with group_of_one(self._device):
            return run_rank(job, self._config, self._device, Alone(), on_step, is_cancelled)


class Group:
    """The seat of a process in the process group that torch has open."""

    def __init__(self, device: torch.device | str) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._device = device

    def wait(self) -> None:
        """See `training_checkpoints.Seat.wait`."""
        self.told_by_first(0)

    def told_by_first(self, number: int) -> int:
        """See `training_checkpoints.Seat.told_by_first`."""
        told = torch.tensor([number], device=self._device)
        dist.all_reduce(told if self.rank == 0 else told.zero_())
        return int(told)


@contextmanager
def group_of_one(device: str) -> Iterator[None]:
    """Opens a process group of this process alone, which needs no port."""
    backend = "nccl" if device.startswith("cuda") else "gloo"
    before = os.environ.get(_LOCAL_RANK)
    os.environ[_LOCAL_RANK] = "0"
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        with quiet():
            yield
    finally:
        if deepspeed.comm.comm.cdb is None:
            dist.destroy_process_group()
        else:
            deepspeed.comm.destroy_process_group()
            # DeepSpeed would go on with the group that is gone in the next job.
            deepspeed.comm.comm.cdb = None
        os.environ.pop(_LOCAL_RANK)
        if before is not None:
            os.environ[_LOCAL_RANK] = before


def run_rank(
    job: Path,
    config: TrainConfig,
    device: torch.device | str,
    seat: Seat,
    on_step: Callable[[StepDone], None],
    is_cancelled: Callable[[], bool],
) -> Path:
    """Runs a job as one rank of the open process group."""

    def open_stepper(
        student: Student, schedule: Schedule, job: TrainingJob, found: Checkpoint | None
    ) -> DeepSpeedStepper:
        return DeepSpeedStepper(student, schedule, job, found, config, seat)

    with quiet():
        return run_job(job, config, device, seat, Crew(), open_stepper, on_step, is_cancelled)


class DeepSpeedStepper:
    """`training_loop.Stepper` by a DeepSpeed engine around the student.

    A step is dealt out to ranks times accumulated parts. DeepSpeed takes the mean over them where the step's loss is
    their sum, so each part's loss is that many times larger.
    """

    def __init__(
        self,
        student: Student,
        schedule: Schedule,
        job: TrainingJob,
        found: Checkpoint | None,
        config: TrainConfig,
        seat: Seat,
    ) -> None:
        self._student, self._schedule, self._distil = student, schedule, job.distil
        self._config, self._seat, self._next = config, seat, 0
        self._num_bundles = seat.world * config.gradient_accumulation
        _use_no_compiler()
        self._engine, self._optimiser, _, _ = deepspeed.initialize(
            model=_Reader(student),
            optimizer=make_optimiser(student, job.distil),
            config=engine_config(config),
            dist_init_required=False,
        )
        if found is not None:
            self._restore(found)

    def step(self) -> StepDone:
        """See `training_loop.Stepper.step`."""
        step, accumulated = self._next, self._config.gradient_accumulation
        self._set_rate(rate_at(self._distil, step))
        first = self._seat.rank * accumulated
        told = torch.zeros(2, dtype=torch.float64)
        for bundle in self._schedule.bundles(step, self._num_bundles)[first : first + accumulated]:
            losses = self._engine(bundle)
            self._engine.backward(self._student.total(losses) * self._num_bundles)
            self._engine.step()
            told += losses.detach().cpu().double()
        dream_loss, anchor_loss = self._add_up(told).tolist()
        self._next += 1
        return StepDone(step, dream_loss, anchor_loss, self._schedule.num_tokens(step))

    def tensors(self) -> dict[str, Tensor]:
        """See `training_loop.Stepper.tensors`."""
        if not self._config.zero_stage:
            return whole_state(self._optimiser, self._student.expert)
        tensors: dict[str, Tensor] = {}
        for site, write in self._student.expert.write.items():
            tensors[f"{site}.write"] = safe_get_full_fp32_param(write)
            for name, key in _MEANS.items():
                tensors[f"{site}.{name}"] = safe_get_full_optimizer_state(write, key)
        return tensors

    def _restore(self, found: Checkpoint) -> None:
        """Gives the engine the state of a checkpoint."""
        self._next = found.step
        if not self._config.zero_stage:
            restore_means(self._optimiser, self._student.expert, found)
            return
        # The optimiser lays its state out in its first step: one of rate zero, of no gradient.
        self._set_rate(0.0)
        for _ in range(self._config.gradient_accumulation):
            self._engine.backward(self._engine([]).sum())
            self._engine.step()
        for kept in self._optimiser.optimizer.state.values():
            kept["step"].fill_(found.step)
        for site, write in self._student.expert.write.items():
            self._put(write, found.tensors[f"{site}.write"], None)
            for name, key in _MEANS.items():
                self._put(write, found.tensors[f"{site}.{name}"], key)

    def _put(self, write: nn.Parameter, value: Tensor, key: str | None) -> None:
        """Gives the float32 form of a parameter, or one of its means, a value."""
        value = value.to(self._engine.device)
        if self._config.zero_stage == 3:
            # A rank has an equal share of the flat numbers, filled up at the end.
            size = safe_get_local_fp32_param(write).numel()
            flat = F.pad(value.flatten(), (0, size * self._seat.world - value.numel()))
            own = flat[size * self._seat.rank : size * (self._seat.rank + 1)]
            if key is None:
                safe_set_local_fp32_param(write, own)
            else:
                safe_set_local_optimizer_state(write, own, key)
        elif key is None:
            safe_set_full_fp32_param(write, value)
        else:
            safe_set_full_optimizer_state(write, value, key)

    def _set_rate(self, rate: float) -> None:
        for group in self._optimiser.param_groups:
            group["lr"] = rate

    def _add_up(self, told_2: Tensor) -> Tensor:
        if self._seat.world > 1:
            told_2 = told_2.to(self._engine.device)
            dist.all_reduce(told_2)
        return told_2


class _Reader(nn.Module):
    """A student as DeepSpeed wants it: one call a bundle, whose loss depends on every parameter.

    ZeRO 3 gathers the parameters of a module whenever it is called, on all ranks at once. Ranks read different numbers
    of parts, so nothing within is called as a module, and the parameters are this one's to gather.
    """

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student
        for parameter in student.expert.parameters():
            deepspeed.zero.register_external_parameter(self, parameter)

    def forward(self, bundle: Sequence[Part]) -> Tensor:
        """Returns the losses of a bundle, which may be empty: [2]."""
        if bundle:
            return self.student.losses(bundle)
        expert = self.student.expert
        nothing: Tensor = sum((expert.written(site).float().sum() * 0 for site in expert.shape.sites), torch.zeros(()))
        return torch.stack([nothing, nothing])


def engine_config(config: TrainConfig) -> dict[str, Any]:
    """Returns the configuration of a DeepSpeed engine."""
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if config.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": config.gradient_accumulation,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": config.bf16},
        # DeepSpeed clips to a norm of one when nothing is said; the plain trainer does not clip.
        "gradient_clipping": 0.0,
        "steps_per_print": 1 << 62,
    }


def _use_no_compiler() -> None:
    """Keeps DeepSpeed from compiling its own reduction in shared memory the first time it is used.

    Gloo does as well for so few numbers, and a server need have no compiler.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps libraries from telling us which names that they use of each other, or of themselves, are to go."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
