"""A training job on disk: all that training needs, so that another process or another machine can do it. No pickle.

    <job>/job.json             what is trained, on what and from which seed, with the sha256 of the two files below
    <job>/core.safetensors     the core's tensors
    <job>/ground.safetensors   its read basis and write guard
    <job>/below/...            what lies below the expert, computed once (training_loop)
    <job>/checkpoints/...      work that a crash does not cost (training_checkpoints)
    <job>/expert.safetensors   the result; expert.json, written after it, holds its sha256 and every step's losses
    <job>/cancel               asks whoever runs the job to stop before the next step

It holds what people said, as token ids; whose it is, only as a number. Whoever made the job removes it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save
from torch import Tensor

from siltstone.adapters.whole_file import flush, sha256_of, write_whole
from siltstone.errors import Corrupt, NotFound, Unavailable
from siltstone.faults import fault_point
from siltstone.model.config import CoreConfig
from siltstone.model.core import Core
from siltstone.model.deltas import Basis, DeltaShape, Site
from siltstone.model.guard import Guard, SiteGuard
from siltstone.model.lesson import Lesson
from siltstone.sleep.distil import DistilConfig, Expert, Item
from siltstone.sleep_values import StepDone

_SCHEMA: Final = 2
_JOB: Final = "job.json"
_CORE: Final = "core.safetensors"
_GROUND: Final = "ground.safetensors"
_EXPERT: Final = "expert.safetensors"
_SEAL: Final = "expert.json"
_CANCEL: Final = "cancel"
_DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """What is trained: an expert of `shape` beside a core, on `items`, the core computing in `dtype`."""

    shape: DeltaShape
    basis: Basis
    guard: Guard | None
    dtype: torch.dtype
    prefix_ids: tuple[int, ...]
    distil: DistilConfig
    seed: int
    items: tuple[Item, ...]

    def expert(self, device: torch.device | str = "cpu") -> Expert:
        """Returns an expert that has learned nothing."""
        basis = {site: part.to(device) for site, part in self.basis.items()}
        guard = None
        if self.guard is not None:
            guard = {
                site: SiteGuard(one.directions.to(device), one.shrink.to(device)) for site, one in self.guard.items()
            }
        return Expert(self.shape, basis, guard).to(device)


def write_job(folder: Path, job: TrainingJob, core_file: Path) -> None:
    """Makes the folder this job's, with a core's safetensors file, linked where that can be.

    The same job that is there already stays, with the work done; any other is removed.

    Raises: Unavailable when it cannot be written.
    """
    try:
        ground = save({name: part.contiguous().cpu() for name, part in _ground(job).items()})
        digests = {_CORE: sha256_of(core_file), _GROUND: sha256(ground).hexdigest()}
        told = _told(job, digests)
        if (folder / _JOB).is_file() and (folder / _JOB).read_bytes() == told:
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700, parents=True)
        try:
            os.link(core_file, folder / _CORE)
        except OSError:
            shutil.copyfile(core_file, folder / _CORE)
        flush(folder / _CORE)
        write_whole(folder / _GROUND, ground)
        fault_point("train-ground-written")
        # Written last: a folder without it is no job.
        write_whole(folder / _JOB, told)
    except OSError as error:
        raise Unavailable("the training job", error.strerror or str(error)) from error


def read_job(folder: Path) -> tuple[TrainingJob, str]:
    """Returns a job and its digest, all of it but the core verified.

    Raises: NotFound when there is none; Corrupt.
    """
    try:
        raw = (folder / _JOB).read_bytes()
    except OSError as error:
        raise NotFound("training job", str(folder)) from error
    try:
        told: Any = json.loads(raw)
        if told["schema"] != _SCHEMA:
            raise Corrupt("the training job", f"schema {_SCHEMA}", str(told["schema"]))
        ground = load((folder / _GROUND).read_bytes())
        _check(folder, _GROUND, told)
        shape = DeltaShape(
            CoreConfig(**told["core"]), told["num_layers"], tuple(told["sites"]), told["rank"], told["has_momentum"]
        )
        job = TrainingJob(
            shape,
            {site: ground[f"{site}.basis"] for site in shape.sites},
            _guard(shape.sites, ground),
            _DTYPES[told["dtype"]],
            tuple(told["prefix_ids"]),
            DistilConfig(**told["distil"]),
            told["seed"],
            tuple(_item(item) for item in told["items"]),
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise Corrupt("the training job", f"a job of schema {_SCHEMA}", f"{type(error).__name__}: {error}") from error
    return job, sha256(raw).hexdigest()


def read_core(folder: Path, job: TrainingJob, device: torch.device | str) -> Core:
    """Returns the core of a job, every byte of it verified.

    Raises: Corrupt.
    """
    try:
        _check(folder, _CORE, json.loads((folder / _JOB).read_bytes()))
        return Core(job.shape.core, load_file(folder / _CORE), device, job.dtype)
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise Corrupt("the core of a training job", "its tensors", str(error)) from error


def write_expert(folder: Path, written: Mapping[Site, Tensor], trace: Sequence[StepDone]) -> Path:
    """Keeps the result of a job: the written side of each site, and what every step gave."""
    content = save({str(site): part.contiguous().cpu() for site, part in written.items()})
    write_whole(folder / _EXPERT, content)
    fault_point("train-expert-written")
    seal = {"sha256": sha256(content).hexdigest(), "trace": [asdict(done) for done in trace]}
    write_whole(folder / _SEAL, json.dumps(seal).encode())
    return folder / _EXPERT


def find_expert(folder: Path) -> tuple[Path, list[StepDone]] | None:
    """Returns the result of a job and what every step gave; None while it is not there or not as it was written."""
    try:
        seal: Any = json.loads((folder / _SEAL).read_bytes())
        if sha256_of(folder / _EXPERT) != seal["sha256"]:
            return None
        return folder / _EXPERT, [StepDone(**done) for done in seal["trace"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_expert(path: Path) -> dict[Site, Tensor]:
    """Returns the written side of each site: [layers, R, O]."""
    found: dict[Any, Tensor] = load(path.read_bytes())
    return found


def ask_to_stop(folder: Path) -> None:
    """Asks whoever runs the job to stop before the next step."""
    (folder / _CANCEL).touch()


def forget_to_stop(folder: Path) -> None:
    """Takes that back, before a job is run anew."""
    (folder / _CANCEL).unlink(missing_ok=True)


def is_to_stop(folder: Path) -> bool:
    """Says whether somebody has asked for the job to stop."""
    return (folder / _CANCEL).exists()


def _told(job: TrainingJob, digests: Mapping[str, str]) -> bytes:
    # The schedule depends on the order of the owners' names, which the numbers keep.
    owners = sorted({item.owner for item in job.items if item.owner})
    number = {owner: f"{index:08d}" for index, owner in enumerate(owners)} | {"": ""}
    told = {
        "schema": _SCHEMA,
        "core": asdict(job.shape.core),
        "dtype": next(name for name, dtype in _DTYPES.items() if dtype == job.dtype),
        "num_layers": job.shape.num_layers,
        "sites": list(job.shape.sites),
        "rank": job.shape.rank,
        "has_momentum": job.shape.has_momentum,
        "prefix_ids": list(job.prefix_ids),
        "distil": asdict(job.distil),
        "seed": job.seed,
        "items": [_told_item(replace(item, owner=number[item.owner])) for item in job.items],
        "files": dict(digests),
    }
    return json.dumps(told, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _told_item(item: Item) -> list[Any]:
    lesson = item.lesson
    raised = sorted(item.raised.items())
    return [lesson.ids, lesson.weights, lesson.after_prefix, item.places, raised, item.owner, item.secrets]


def _item(told: list[Any]) -> Item:
    ids, weights, after_prefix, places, raised, owner, secrets = told
    lesson = Lesson(tuple(ids), tuple(weights), after_prefix)
    return Item(lesson, tuple(places), dict(raised), owner, tuple(secrets))


def _ground(job: TrainingJob) -> dict[str, Tensor]:
    parts = {f"{site}.basis": part for site, part in job.basis.items() if site in job.shape.sites}
    for site, guard in (job.guard or {}).items():
        parts |= {f"{site}.directions": guard.directions, f"{site}.shrink": guard.shrink}
    return parts


def _guard(sites: Sequence[Site], ground: Mapping[str, Tensor]) -> Guard | None:
    if f"{sites[0]}.directions" not in ground:
        return None
    return {site: SiteGuard(ground[f"{site}.directions"], ground[f"{site}.shrink"]) for site in sites}


def _check(folder: Path, name: str, told: Mapping[str, Any]) -> None:
    expected, found = told["files"][name], sha256_of(folder / name)
    if found != expected:
        raise Corrupt(f"{name} of a training job", f"sha256 {expected}", found)
