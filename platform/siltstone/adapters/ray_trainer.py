"""Training with DeepSpeed on Ray Train workers: on the processors of this machine, or on the GPUs of a cluster."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import ray
import ray.train
import ray.train.torch

from siltstone.adapters.deepspeed_trainer import Group, quiet, run_rank
from siltstone.adapters.training_job import ask_to_stop, find_expert, forget_to_stop, is_to_stop, read_job
from siltstone.errors import Cancelled, Unavailable
from siltstone.sleep.train_config import TrainConfig
from siltstone.sleep_values import StepDone

_PROGRESS: Final = "progress.jsonl"
_LOOK_EVERY_S: Final = 0.2


class RayTrainer:
    """`ports.CoreTrainer` with DeepSpeed on Ray Train workers. The job's folder is on a disk that all of them see."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config

    def train(
        self,
        job: Path,
        on_step: Callable[[StepDone], None] = lambda _: None,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> Path:
        """See `ports.CoreTrainer.train`."""
        described, _ = read_job(job)
        if (done_before := find_expert(job)) is not None:
            for done in done_before[1]:
                on_step(done)
            return done_before[0]
        forget_to_stop(job)
        (job / _PROGRESS).unlink(missing_ok=True)
        progress = _Progress(job / _PROGRESS, on_step)
        failed: list[Exception] = []
        with quiet(), _cluster(self._config), tempfile.TemporaryDirectory(prefix="siltstone-train-") as notes:
            running = threading.Thread(target=self._fit, args=(job, notes, failed), daemon=True)
            running.start()
            while running.is_alive():
                running.join(_LOOK_EVERY_S)
                progress.tell()
                if is_cancelled():
                    ask_to_stop(job)
        progress.tell()
        if failed:
            raise Unavailable("the training workers", _last_line(failed[0])) from failed[0]
        if (found := find_expert(job)) is not None:
            return found[0]
        if is_to_stop(job):
            raise Cancelled("training", progress.num_told, described.distil.num_steps)
        raise Unavailable("the training workers", "they ended without a result")

    def _fit(self, job: Path, notes: str, failed: list[Exception]) -> None:
        config = self._config
        trainer = ray.train.torch.TorchTrainer(
            _work,
            train_loop_config={"job": str(job.absolute()), "config": asdict(config)},
            scaling_config=ray.train.ScalingConfig(num_workers=config.num_workers, use_gpu=config.uses_gpu),
            torch_config=ray.train.torch.TorchConfig(backend="nccl" if config.uses_gpu else "gloo"),
            run_config=ray.train.RunConfig(
                name="training",
                storage_path=notes,
                failure_config=ray.train.FailureConfig(max_failures=config.max_restarts),
            ),
        )
        try:
            trainer.fit()
        except Exception as error:
            # Whatever it is, it is for the thread that waits for this one.
            failed.append(error)


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]


def _work(told: dict[str, Any]) -> None:
    """What every worker does."""
    job, config = Path(told["job"]), TrainConfig(**told["config"])
    device = ray.train.torch.get_device()
    seat = Group(device)
    with (job / _PROGRESS).open("w") if seat.rank == 0 else open(os.devnull, "w") as file:

        def on_step(done: StepDone) -> None:
            print(json.dumps(asdict(done)), file=file, flush=True)

        try:
            run_rank(job, config, device, seat, on_step, lambda: False)
        except Cancelled:
            # All ranks give up before the same step: nothing has failed, and nothing is to be started anew.
            return


class _Progress:
    """Tells of the steps that a worker writes down, each once, also when workers were started anew."""

    def __init__(self, path: Path, on_step: Callable[[StepDone], None]) -> None:
        self._path, self._on_step = path, on_step
        self.num_told = 0

    def tell(self) -> None:
        """Tells of what is new."""
        try:
            lines = self._path.read_text(encoding="utf-8").split("\n")[:-1]
        except FileNotFoundError:
            return
        for line in lines[self.num_told :]:
            self._on_step(StepDone(**json.loads(line)))
            self.num_told += 1


@contextmanager
def _cluster(config: TrainConfig) -> Iterator[None]:
    """Joins a cluster, or starts one on this machine; one that this process has joined already is used as it is."""
    if ray.is_initialized():
        yield
        return
    if config.ray_address == "local":
        # A worker is a thread of work, whatever the machine; the trainer's own actor needs no core.
        ray.init(
            address="local",
            num_cpus=config.num_workers + 1,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    else:
        ray.init(address=config.ray_address, log_to_driver=False, logging_level=logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()
