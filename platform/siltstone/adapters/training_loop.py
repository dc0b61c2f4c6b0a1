"""The loop that every trainer runs: open the job, go on from the newest checkpoint, step, keep, end."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from siltstone.adapters.training_checkpoints import Checkpoint, Checkpoints, Seat
from siltstone.adapters.training_job import TrainingJob, find_expert, is_to_stop, read_core, read_job, write_expert
from siltstone.adapters.whole_file import write_whole
from siltstone.crew import Crew
from siltstone.errors import Cancelled, Unavailable
from siltstone.faults import fault_point
from siltstone.sleep.distil import Item, Schedule, Student, reading_order
from siltstone.sleep.train_config import TrainConfig
from siltstone.sleep_values import StepDone


class Alone:
    """The seat of a process that trains by itself."""

    rank, world = 0, 1

    def wait(self) -> None:
        """Waits for nobody."""

    def told_by_first(self, number: int) -> int:
        """Returns the number."""
        return number


class Stepper(Protocol):
    """What steps an expert. All ranks call it at the same time."""

    def step(self) -> StepDone:
        """Makes the next step."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Returns the whole state in float32: `<site>.write`, and the means `<site>.first` and `<site>.second`."""
        ...


OpenStepper = Callable[[Student, Schedule, TrainingJob, Checkpoint | None], Stepper]
"""Returns a stepper that goes on from a checkpoint. The student's expert holds the checkpoint's numbers already."""


def run_job(
    folder: Path,
    config: TrainConfig,
    device: torch.device | str,
    seat: Seat,
    crew: Crew,
    open_stepper: OpenStepper,
    on_step: Callable[[StepDone], None],
    is_cancelled: Callable[[], bool],
) -> Path:
    """Runs a job to its end as one rank of those that train together; see `ports.CoreTrainer.train`.

    1. A finished job is only told of.
    2. Open the job; read what lies below the expert, or compute it.
    3. Go on from the newest whole checkpoint, where there is one.
    4. Step. Every so many steps, and before giving up, write a checkpoint.
    5. Rank 0 writes the expert.
    """
    try:
        # 1.
        done_before = find_expert(folder)
        if seat.told_by_first(done_before is not None) and done_before is not None:
            for done in done_before[1]:
                on_step(done)
            return done_before[0]
        # 2.
        job, digest = read_job(folder)
        core = read_core(folder, job, device)
        student = Student(core, job.expert(device), job.prefix_ids, job.distil, config.activation_checkpointing)
        _read_below(student, job.items, folder / "below", seat, crew)
        # 3.
        checkpoints = Checkpoints(folder, digest, seat, config.kept_checkpoints)
        found = checkpoints.newest()
        trace = list(found.trace) if found else []
        if found:
            _restore_expert(student, found)
        for done in trace:
            on_step(done)
        stepper = open_stepper(student, Schedule(job.items, job.distil, job.seed), job, found)
        # 4.
        num_steps, kept = job.distil.num_steps, len(trace)
        while len(trace) < num_steps:
            asked = is_cancelled() or is_to_stop(folder)
            is_asked = bool(seat.told_by_first(asked))
            is_due = len(trace) - kept >= config.checkpoint_every_steps
            if is_due or (is_asked and len(trace) > kept):
                checkpoints.save(Checkpoint(len(trace), stepper.tensors(), tuple(trace)))
                kept = len(trace)
            if is_asked:
                raise Cancelled("training", len(trace), num_steps)
            trace.append(stepper.step())
            on_step(trace[-1])
            fault_point("train-step-done")
        # 5.
        expert, learned = job.expert(), stepper.tensors()
        for site, write in expert.write.items():
            write.data.copy_(learned[f"{site}.write"])
        path = folder / "expert.safetensors"
        if seat.rank == 0:
            path = write_expert(folder, {site: expert.written(site).detach() for site in job.shape.sites}, trace)
        seat.wait()
        return path
    except OSError as error:
        raise Unavailable("the training job", error.strerror or str(error)) from error


def _restore_expert(student: Student, found: Checkpoint) -> None:
    with torch.no_grad():
        for site, write in student.expert.write.items():
            write.copy_(found.tensors[f"{site}.write"])


def _read_below(student: Student, items: Sequence[Item], folder: Path, seat: Seat, crew: Crew) -> None:
    """Gives a student what lies below its expert. Every rank computes its share, unless a run before has kept it."""
    order = reading_order(items)
    folder.mkdir(exist_ok=True)

    def compute(number: int) -> None:
        if _find_below(folder, number) is None:
            read = student.read([items[index] for index in order[number]])
            _keep_below(folder, number, read)

    crew.run([partial(compute, number) for number in range(seat.rank, len(order), seat.world)])
    seat.wait()
    for number, part in enumerate(order):
        found = _find_below(folder, number)
        if found is None:
            raise Unavailable("the training job", f"what lies below the expert, part {number}, is gone")
        for index, (below_TD, core_ND) in zip(part, found, strict=True):
            student.hold(index, items[index], below_TD, core_ND)


def _keep_below(folder: Path, number: int, read: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Keeps a part under its number and digest, so that a damaged one is not found and computed again."""
    parts = {f"{row}.below": below.cpu() for row, (below, _) in enumerate(read)}
    content = save(parts | {f"{row}.core": core.cpu() for row, (_, core) in enumerate(read)})
    write_whole(folder / f"{number:06d}-{hashlib.sha256(content).hexdigest()}.safetensors", content)
    fault_point("train-below-kept")


def _find_below(folder: Path, number: int) -> list[tuple[Tensor, Tensor]] | None:
    for path in folder.glob(f"{number:06d}-*.safetensors"):
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() == path.stem.partition("-")[2]:
            try:
                parts = load(content)
            except SafetensorError:
                continue
            return [(parts[f"{row}.below"], parts[f"{row}.core"]) for row in range(len(parts) // 2)]
    return None
