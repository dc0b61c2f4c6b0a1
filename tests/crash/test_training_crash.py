"""Killed at any point, training goes on from the last whole checkpoint to the losses of a run that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_training import CONFIG, put_job

from siltstone.adapters.plain_trainer import PlainTrainer
from siltstone.adapters.training_checkpoints import Checkpoints
from siltstone.adapters.training_job import read_job
from siltstone.adapters.training_loop import Alone
from siltstone.errors import Cancelled, Corrupt, Unavailable
from siltstone.faults import FAULT_VARIABLE
from siltstone.sleep.train_config import TrainConfig
from siltstone.sleep_values import StepDone

HERE = Path(__file__).parent
TRAIN = TrainConfig(checkpoint_every_steps=3)
SAVING = (
    "train-shard-begun",
    "train-shard-written",
    "train-shard-hashed",
    "train-manifest-written",
    "train-marker-written",
    "train-checkpoint-named",
    "train-checkpoints-pruned",
)
FAULTS = [
    *(f"{point}:{count}" for point in SAVING for count in (1, 2, 3)),
    *("train-ground-written:1", "train-below-kept:1", "train-below-kept:2", "train-expert-written:1"),
    *("train-checkpoint-leaving:1", "train-step-done:1", "train-step-done:5", "train-step-done:12"),
    *(f"after:{milliseconds}" for milliseconds in (20, 60, 120)),
]


class Gullible(Checkpoints):
    """Takes the newest folder for a checkpoint, whatever its name and whatever is in it. The control."""

    def _by_age(self) -> Iterator[tuple[int, Path]]:
        paths = self._folder.iterdir() if self._folder.is_dir() else ()
        steps = sorted(((int(path.name[-8:]), path) for path in paths), reverse=True)
        yield from steps

    def _is_whole(self, path: Path) -> bool:
        return True


def train(job: Path) -> list[StepDone]:
    steps: list[StepDone] = []
    PlainTrainer(TRAIN).train(job, steps.append)
    return steps


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[StepDone], bytes]:
    job = put_job(tmp_path_factory.mktemp("unbroken") / "job")
    return train(job), (job / "expert.safetensors").read_bytes()


def test_killed_anywhere_it_goes_on_to_the_same_bits(tmp_path: Path, unbroken: tuple[list[StepDone], bytes]) -> None:
    jobs = [tmp_path / f"job-{number}" for number in range(len(FAULTS))]
    told = [str(part) for pair in zip(jobs, FAULTS, strict=True) for part in pair]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path])}
    done = subprocess.run(
        [sys.executable, str(HERE / "train_forker.py"), *told], env=environment, capture_output=True, check=True
    )
    killed = {
        fault
        for fault, status in zip(FAULTS, json.loads(done.stdout), strict=True)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    }
    assert killed >= {fault for fault in FAULTS if not fault.startswith("after")}

    fooled = 0
    for job in jobs:
        if (job / "job.json").exists():
            try:
                Gullible(job, read_job(job)[1], Alone(), 2).newest()
            except Corrupt:
                fooled += 1
        put_job(job)
        assert train(job) == unbroken[0]
        assert (job / "expert.safetensors").read_bytes() == unbroken[1]
    # Who takes the newest folder at its word could not have gone on.
    assert fooled >= 9


def stopped_at(job: Path, num_steps: int) -> None:
    steps: list[StepDone] = []
    with pytest.raises(Cancelled):
        PlainTrainer(TRAIN).train(put_job(job), steps.append, lambda: len(steps) >= num_steps)


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("name", ["shard-0-of-1.safetensors", "manifest.json", "complete"])
def test_a_damaged_checkpoint_is_passed_over(name: str, tmp_path: Path, unbroken: tuple[list[StepDone], bytes]) -> None:
    job = tmp_path / "job"
    stopped_at(job, 6)
    assert sorted(path.name for path in (job / "checkpoints").iterdir()) == ["step-00000003", "step-00000006"]
    whole = Checkpoints(job, read_job(job)[1], Alone(), 2).newest()
    spoil(job / "checkpoints" / "step-00000006" / name)

    found = Checkpoints(job, read_job(job)[1], Alone(), 2).newest()
    assert whole is not None
    assert found is not None
    assert (whole.step, found.step) == (6, 3)
    if name.startswith("shard"):
        taken = Gullible(job, read_job(job)[1], Alone(), 2).newest()
        assert taken is not None
        # Nothing tells the control that these are not the numbers that were written.
        assert any(not bool((taken.tensors[key] == part).all()) for key, part in whole.tensors.items())
    assert train(job) == unbroken[0]
    assert (job / "expert.safetensors").read_bytes() == unbroken[1]


def test_without_its_marker_a_checkpoint_is_none(tmp_path: Path, unbroken: tuple[list[StepDone], bytes]) -> None:
    job = tmp_path / "job"
    stopped_at(job, 6)
    (job / "checkpoints" / "step-00000006" / "complete").unlink()
    found = Checkpoints(job, read_job(job)[1], Alone(), 2).newest()

    assert found is not None
    assert found.step == 3
    assert train(job) == unbroken[0]


def test_the_checkpoint_of_another_job_is_none(tmp_path: Path) -> None:
    stopped_at(tmp_path / "job", 6)

    assert Checkpoints(tmp_path / "job", "another", Alone(), 2).newest() is None


def test_old_checkpoints_go(tmp_path: Path) -> None:
    stopped_at(tmp_path / "job", 11)

    names = sorted(path.name for path in (tmp_path / "job" / "checkpoints").iterdir())
    assert names == ["step-00000009", "step-00000011"]


def test_a_full_disk_is_told_and_costs_nothing(tmp_path: Path, unbroken: tuple[list[StepDone], bytes]) -> None:
    job = put_job(tmp_path / "job")
    # A file stands where the folder of the checkpoints is to be made.
    (job / "checkpoints").write_bytes(b"")
    with pytest.raises(Unavailable):
        train(job)
    (job / "checkpoints").unlink()

    assert train(job) == unbroken[0]


LONG = replace(CONFIG, num_steps=30)
RANK_FAULTS = [
    *((0, f"{point}:1") for point in SAVING),
    *((1, f"{point}:1") for point in SAVING[:3]),
    *((0, "train-checkpoint-leaving:1"), (1, "train-step-done:3"), (0, "train-step-done:2")),
]
"""Which of two ranks dies, and where. What the other does then is its affair: it ends, or is ended."""


def run_ranks(job: Path, stage: int, fault: tuple[int, str] | None = None) -> tuple[list[StepDone], list[int]]:
    """Trains with two ranks and returns what rank 0 told, and how both ended."""
    meeting = job.parent / f"meeting-{len(list(job.parent.iterdir()))}"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(HERE / "train_rank.py"), str(job), str(rank), "2", str(meeting), str(stage)],
            env=environment | ({FAULT_VARIABLE: fault[1]} if fault and fault[0] == rank else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        if fault:
            ranks[fault[0]].wait(timeout=300)
            ranks[1 - fault[0]].kill()
        told, _ = [rank.communicate(timeout=300)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    lines = [line for line in told.splitlines() if line.startswith("{") and line.endswith("}")]
    return [StepDone(**json.loads(line)) for line in lines], [rank.returncode for rank in ranks]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "faults"), [(2, RANK_FAULTS), (3, RANK_FAULTS[::4])], ids=["zero 2", "zero 3"])
def test_with_two_ranks_killed_again_and_again_it_ends_at_the_same_bits(
    stage: int, faults: list[tuple[int, str]], tmp_path: Path
) -> None:
    whole = put_job(tmp_path / "whole" / "job", LONG)
    unbroken, ends = run_ranks(whole, stage)
    assert ends == [0, 0]
    assert len(unbroken) == LONG.num_steps
    job = put_job(tmp_path / "broken" / "job", LONG)

    for rank, fault in faults:
        steps, ends = run_ranks(job, stage, (rank, fault))
        assert ends[rank] == -signal.SIGKILL
        assert steps == unbroken[: len(steps)]
        assert len(steps) < LONG.num_steps
    steps, ends = run_ranks(job, stage)

    assert ends == [0, 0]
    assert steps == unbroken
    assert (job / "expert.safetensors").read_bytes() == (whole / "expert.safetensors").read_bytes()


@pytest.mark.slow
def test_a_worker_of_ray_that_dies_is_started_anew_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray_trainer = pytest.importorskip("siltstone.adapters.ray_trainer")
    settings = TrainConfig(trainer="ray", num_workers=2, checkpoint_every_steps=3, max_restarts=1)
    whole: list[StepDone] = []
    expert = ray_trainer.RayTrainer(settings).train(put_job(tmp_path / "whole" / "job"), whole.append)
    # Workers inherit it. The second checkpoint of a run is one that the run after it does not come to.
    monkeypatch.setenv(FAULT_VARIABLE, "train-checkpoint-named:2")

    steps: list[StepDone] = []
    job = put_job(tmp_path / "broken" / "job")
    with pytest.raises(Unavailable):
        ray_trainer.RayTrainer(replace(settings, max_restarts=0)).train(job, steps.append)
    assert whole[: len(steps)] == steps
    assert len(steps) == 6

    steps = []
    job = put_job(tmp_path / "again" / "job")
    other = ray_trainer.RayTrainer(settings).train(job, steps.append)
    assert steps == whole
    assert other.read_bytes() == expert.read_bytes()
