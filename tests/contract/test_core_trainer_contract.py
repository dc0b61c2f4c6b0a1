"""What every trainer of the core promises: the same losses, the same expert, stopped and taken up at any step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from tiny_training import CONFIG, make_job, put_job, trained_by_the_book

from siltstone.adapters.plain_trainer import PlainTrainer
from siltstone.adapters.training_job import ask_to_stop, read_expert, read_job, write_job
from siltstone.errors import Cancelled, Corrupt, NotFound
from siltstone.ports import CoreTrainer
from siltstone.sleep.distil import Schedule, Student
from siltstone.sleep.train_config import TrainConfig
from siltstone.sleep_values import StepDone

Make = Callable[..., CoreTrainer]
BOOK_STEPS, BOOK_EXPERT = trained_by_the_book()
LOSS_TOLERANCE, EXPERT_TOLERANCE = 2e-6, 2e-6
"""In nats and in numbers of the expert: the parts of a step are added up in another order."""


def plain(**settings: object) -> CoreTrainer:
    return PlainTrainer(TrainConfig(**settings), num_threads=2)  # type: ignore[arg-type]


def deepspeed(**settings: object) -> CoreTrainer:
    adapter = pytest.importorskip("siltstone.adapters.deepspeed_trainer")
    return adapter.DeepSpeedTrainer(TrainConfig(trainer="deepspeed", **settings))


def ray(**settings: object) -> CoreTrainer:
    adapter = pytest.importorskip("siltstone.adapters.ray_trainer")
    return adapter.RayTrainer(TrainConfig(trainer="ray", num_workers=2, **settings))


@pytest.fixture(params=[plain, deepspeed, pytest.param(ray, marks=pytest.mark.slow)], ids=lambda make: make.__name__)
def make(request: pytest.FixtureRequest) -> Make:
    return request.param


def losses(steps: list[StepDone]) -> torch.Tensor:
    return torch.tensor([(done.dream_loss, done.anchor_loss) for done in steps], dtype=torch.float64)


def assert_by_the_book(steps: list[StepDone], expert: Path) -> None:
    assert [done.step for done in steps] == list(range(CONFIG.num_steps))
    assert [done.num_tokens for done in steps] == [done.num_tokens for done in BOOK_STEPS]
    assert float((losses(steps) - losses(BOOK_STEPS)).abs().max()) < LOSS_TOLERANCE
    written = read_expert(expert)
    assert written.keys() == BOOK_EXPERT.keys()
    for site, part in BOOK_EXPERT.items():
        assert float((written[site] - part).abs().max()) < EXPERT_TOLERANCE


def test_the_gradient_is_steep_enough_to_tell_who_clips_it() -> None:
    job = make_job()
    student = Student(tiny.world().core, job.expert(), job.prefix_ids, CONFIG)
    student.prepare(job.items)
    (bundle,) = Schedule(job.items, CONFIG, job.seed).bundles(0, 1)
    gradient = torch.autograd.grad(student.total(student.losses(bundle)), list(student.expert.parameters()))

    assert float(torch.cat([part.flatten() for part in gradient]).norm()) > 2


def test_it_trains_what_the_book_says_and_a_finished_job_is_only_told_of(make: Make, tmp_path: Path) -> None:
    job = put_job(tmp_path / "job")
    first: list[StepDone] = []
    again: list[StepDone] = []

    expert = make().train(job, first.append)
    made_at = expert.stat().st_mtime_ns
    # Without the core there is nothing that could be trained.
    (job / "core.safetensors").unlink()
    assert make().train(job, again.append) == expert

    assert_by_the_book(first, expert)
    assert again == first
    assert expert.stat().st_mtime_ns == made_at


@pytest.mark.parametrize("make", [plain, deepspeed], ids=["plain", "deepspeed"])
def test_cancelled_it_stops_between_steps_and_goes_on_as_if_it_had_not(make: Make, tmp_path: Path) -> None:
    job = put_job(tmp_path / "job")
    head: list[StepDone] = []
    steps: list[StepDone] = []

    with pytest.raises(Cancelled):
        make().train(job, head.append, lambda: len(head) >= 5)
    expert = make().train(job, steps.append)

    assert len(head) >= 5
    assert steps[: len(head)] == head
    assert_by_the_book(steps, expert)


@pytest.mark.slow
def test_workers_elsewhere_stop_soon_after_they_are_told_to(tmp_path: Path) -> None:
    job = put_job(tmp_path / "job", replace(CONFIG, num_steps=400))
    head: list[StepDone] = []
    steps: list[StepDone] = []

    with pytest.raises(Cancelled) as told:
        ray().train(job, head.append, lambda: len(head) >= 5)
    plain().train(job, steps.append)

    assert 5 <= told.value.done < 400
    assert steps[: told.value.done] == head
    assert [done.step for done in steps] == list(range(400))


def test_what_is_no_job_is_not_trained(make: Make, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        make().train(tmp_path)


@pytest.mark.parametrize("make", [plain, deepspeed], ids=["plain", "deepspeed"])
def test_a_damaged_job_is_refused(make: Make, tmp_path: Path) -> None:
    for name in ("core.safetensors", "ground.safetensors"):
        job = put_job(tmp_path / name.split(".")[0] / "job")
        content = bytearray((job / name).read_bytes())
        content[-1] ^= 1
        (job / name).unlink()
        (job / name).write_bytes(bytes(content))
        with pytest.raises(Corrupt):
            make().train(job)


@pytest.mark.parametrize("make", [plain, deepspeed], ids=["plain", "deepspeed"])
def test_a_file_asks_it_to_stop_as_well(make: Make, tmp_path: Path) -> None:
    job = put_job(tmp_path / "job")

    def stop(done: StepDone) -> None:
        if done.step == 3:
            ask_to_stop(job)

    with pytest.raises(Cancelled) as told:
        make().train(job, stop)
    assert (told.value.done, told.value.whole) == (4, CONFIG.num_steps)


@pytest.mark.parametrize(
    "settings",
    [
        {"zero_stage": 0},
        {"zero_stage": 2, "gradient_accumulation": 3},
        {"zero_stage": 3},
        {"zero_stage": 1, "activation_checkpointing": True},
        {"zero_stage": 2, "offload": True},
    ],
    ids=str,
)
def test_every_way_to_divide_the_state_trains_the_same_and_goes_on(settings: dict[str, object], tmp_path: Path) -> None:
    job = put_job(tmp_path / "job")
    head: list[StepDone] = []
    steps: list[StepDone] = []

    with pytest.raises(Cancelled):
        deepspeed(**settings).train(job, head.append, lambda: len(head) >= 5)
    expert = deepspeed(**settings).train(job, steps.append)

    assert_by_the_book(steps, expert)


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_bfloat16_trains_nearly_the_same_and_goes_on_exactly(zero_stage: int, tmp_path: Path) -> None:
    whole: list[StepDone] = []
    head: list[StepDone] = []
    steps: list[StepDone] = []

    expert = deepspeed(zero_stage=zero_stage, bf16=True).train(put_job(tmp_path / "whole"), whole.append)
    job = put_job(tmp_path / "job")
    with pytest.raises(Cancelled):
        deepspeed(zero_stage=zero_stage, bf16=True).train(job, head.append, lambda: len(head) >= 5)
    other = deepspeed(zero_stage=zero_stage, bf16=True).train(job, steps.append)

    assert steps == whole
    assert expert.read_bytes() == other.read_bytes()
    assert 0 < float((losses(steps) - losses(BOOK_STEPS)).abs().max()) < 0.01


def test_one_trainer_goes_on_where_another_stopped(tmp_path: Path) -> None:
    job = put_job(tmp_path / "job")
    steps: list[StepDone] = []

    with pytest.raises(Cancelled):
        plain().train(job, steps.append, lambda: len(steps) >= 4)
    told: list[StepDone] = []
    with pytest.raises(Cancelled):
        deepspeed(zero_stage=2).train(job, told.append, lambda: len(told) >= 8)
    steps = []
    expert = plain(num_bundles=1).train(job, steps.append)

    assert_by_the_book(steps, expert)


def test_threads_change_nothing(tmp_path: Path) -> None:
    one, two = put_job(tmp_path / "one"), put_job(tmp_path / "two")

    alone = PlainTrainer(TrainConfig(num_bundles=3), num_threads=1).train(one)
    together = PlainTrainer(TrainConfig(num_bundles=3), num_threads=2).train(two)

    assert alone.read_bytes() == together.read_bytes()


def test_the_same_job_written_again_keeps_its_work_and_another_replaces_it(tmp_path: Path) -> None:
    job = put_job(tmp_path / "job")
    expert = plain().train(job)

    put_job(job)
    assert expert.exists()
    put_job(job, replace(CONFIG, rate=0.03))
    assert not expert.exists()


def test_a_job_read_back_is_the_job_but_for_names_of_people(tmp_path: Path) -> None:
    written = make_job()
    job = put_job(tmp_path / "job")

    read, digest = read_job(job)

    assert [replace(item, owner="") for item in read.items] == [replace(item, owner="") for item in written.items]
    assert [item.owner for item in read.items if item.owner] == [f"{n:08d}" for n in range(4)]
    assert b"person" not in (job / "job.json").read_bytes()
    assert (read.shape, read.dtype, read.prefix_ids) == (written.shape, written.dtype, written.prefix_ids)
    write_job(tmp_path / "copy", read, job / "core.safetensors")
    assert read_job(tmp_path / "copy")[1] == digest
