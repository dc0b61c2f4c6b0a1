"""The cases of `siltstone bench sleep`: what trains a night, what passes into the core, and a night over the office."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from siltstone.adapters.core_store import CoreStore, LoadedCore
from siltstone.config import SiltstoneConfig
from siltstone.evaluation.office_material import load_office
from siltstone.gate.measure import Cores, Material, measure_candidate
from siltstone.gate.policy import Policy, load_policy
from siltstone.memory.user_memory import MemoryConfig
from siltstone.model.core import Core
from siltstone.sleep_values import Evidence
from siltstone_services.benchmark.canaries import Planting
from siltstone_services.benchmark.office_home import copy_office, provide_office
from siltstone_services.benchmark.office_night import Trial, run_office_night
from siltstone_services.benchmark.planted_core import CORE, add_core, planted_config, train
from siltstone_services.benchmark.planted_facts import run_planted_facts
from siltstone_services.benchmark.readings import Outcome, Say
from siltstone_services.benchmark.training import run_training
from siltstone_services.benchmark.verdicts import ANCHORS, SECRETS
from siltstone_services.benchmark.world import COMMON, SMOLLM2, Shape, World
from siltstone_services.demo import full_plan
from siltstone_services.judging import Exam

_SMALL: Final = Shape("small", CORE, MemoryConfig(num_layers=2, rank=8, guarded_directions=8))
_PLANTING: Final = Planting(num_facts=8, num_people=16)
_FEW: Final = Planting(num_facts=2, num_people=6, num_tellings=1)
_HASTY: Final[dict[str, Any]] = {
    "sleep.consensus.evidence_nats": 0.05,
    "sleep.distil.num_steps": 4,
    "sleep.max_dreams": 24,
    "sleep.sampling.num_per_user": 1,
    "sleep.sampling.max_tokens": 8,
    "sleep.num_foreign_cues": 0,
    "sleep.rebase.num_steps": 1,
}
"""How a night is done whose outcome nobody looks at."""
_NUM_READING_STEPS: Final = 10
_NUM_USERS: Final = 5
_NUM_PASSAGES: Final = 4


def sleep_cases(quick: bool, folder: Path, config: SiltstoneConfig, office: Path | None, say: Say) -> Iterator[Outcome]:
    """Runs the cases one after the other, their homes in a folder.

    `quick` takes a small core that knows no words: everything runs, and nothing is asked of the figures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if quick:
        for outcome in _quick_cases(folder, say):
            yield outcome.without_targets()
        return
    yield run_training(World(COMMON), 9, say)
    yield run_training(World(SMOLLM2), 5, say)
    yield from run_planted_facts(_PLANTING, 150, (1, 2), folder, say)
    with tempfile.TemporaryDirectory(dir=folder, prefix="night-") as here:
        taught = office or Path(here) / "office"
        plan = full_plan(load_office())
        provide_office(taught, config, plan, say)
        night = copy_office(taught, Path(here) / "home", config)
        if office is None:
            shutil.rmtree(taught)
        (name,) = (one.source for one in CoreStore(night.home_path).list() if one.digest == night.core)
        yield from run_office_night(Trial(name, night, plan), say)


def _quick_cases(folder: Path, say: Say) -> Iterator[Outcome]:
    yield run_training(World(_SMALL), 3, say)
    yield from run_planted_facts(_FEW, _NUM_READING_STEPS, (1,), folder, say, _HASTY)
    office = load_office()
    plan = replace(full_plan(office), users=office.users[:_NUM_USERS], num_facts=1)
    with tempfile.TemporaryDirectory(dir=folder, prefix="night-") as here:
        shared, taught = Path(here) / "core", Path(here) / "office"
        add_core(shared, train(_NUM_READING_STEPS, seed=7))
        config = planted_config(shared, _HASTY)
        provide_office(taught, config, plan, say)
        night = copy_office(taught, Path(here) / "home", config)
        yield from run_office_night(Trial("small core", night, plan, _brief_exam()), say)


def _brief_exam() -> Exam:
    """Returns the exam without its probe suites and without the trial in a process of its own."""
    policy, asked = load_policy(), ANCHORS | SECRETS
    return Exam(_measure_briefly, Policy(policy.name, tuple(one for one in policy.rules if one.measurement in asked)))


def _measure_briefly(
    home: Path, candidate: str, champion: LoadedCore, origin: LoadedCore, material: Material, *_: object
) -> Evidence:
    loaded = CoreStore(home).load(candidate)
    cores = Cores(*(Core(one.config, one.tensors) for one in (loaded, champion, origin)))
    few = replace(material, suites=(), passages=material.passages[:_NUM_PASSAGES])
    return Evidence(loaded.digest, champion.digest, origin.digest, measure_candidate(cores, champion.tokenizer, few))
