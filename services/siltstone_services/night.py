"""One night of one home folder: from the plan to the verdict, and the version that is recorded whatever it says.

1. Plan: which users, up to which journal positions. 2. Filter and dream. 3. Distil. 4. Keep the candidate core.
5. Measure it. 6. Record it with its evidence and lineage, and before the first one the core that it all began with.
7. Judge. Nothing serves before somebody promotes it; killed anywhere, what serves is untouched; the same night run
again is done anew, and recorded and judged once.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import torch

from siltstone.adapters.core_store import CoreStore, LoadedCore
from siltstone.adapters.key_file import lineage_key
from siltstone.adapters.personal_data import holds_personal_data
from siltstone.adapters.sqlite_file import SqliteFile
from siltstone.adapters.sqlite_journal import SqliteJournal
from siltstone.adapters.sqlite_snapshots import SqliteSnapshotStore
from siltstone.config import SiltstoneConfig
from siltstone.evaluation.external_probes import asked_suites
from siltstone.gate.measure import Material
from siltstone.gate.policy import load_policy
from siltstone.gate.probe_suites import ProbeSuite
from siltstone.gate.verdict import judge
from siltstone.model.core import Core
from siltstone.sleep.filter import Statement
from siltstone.sleep.held_out import people_needed
from siltstone.sleep_values import CoreVersion, Lineage, NightStage, SleepPlan, StepDone
from siltstone.versions.lineage import contributors
from siltstone_services.evidence_json import to_json
from siltstone_services.judging import gather_evidence, material_of
from siltstone_services.learning import lesson_plan, prepare_ground
from siltstone_services.precision import dtype_for
from siltstone_services.served import ServedCores, origin_of, record_origin
from siltstone_services.sleeper import (
    Bed,
    DreamtNight,
    candidate_of,
    distil,
    dream,
    interactions_of,
    items_of,
    make_plan,
)
from siltstone_services.version_records import open_registry

Say = Callable[[str], None]
At = Callable[[NightStage, int, int], None]
"""Told where a night is: the stage, its steps that are done, and how many it has (0: they are not counted)."""
_FOREVER_MS: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class NightDone:
    """What a night came to."""

    plan: SleepPlan
    night: DreamtNight
    version: CoreVersion


def make_bed(config: SiltstoneConfig, loaded: LoadedCore) -> Bed:
    """Returns the core that serves, as its users learn on it."""
    core = Core(
        loaded.config, loaded.tensors, config.engine.device, dtype_for(config.engine.dtype, config.engine.device)
    )
    lessons = lesson_plan(loaded.tokenizer, core, config.lessons)
    shape = config.memory.shape_for(core.config)
    return Bed(loaded, core, shape, lessons, prepare_ground(loaded, core, shape, lessons, config))


def _nobody_watches(stage: NightStage, step: int, num_steps: int) -> None:
    pass


def run_night(
    config: SiltstoneConfig,
    seed: int,
    since_ms: int,
    say: Say,
    on_step: Callable[[StepDone], None],
    at: At = _nobody_watches,
) -> NightDone:
    """Runs a night over a home folder. A server may use it meanwhile: the night reads what was committed.

    What `say`, `on_step` or `at` raises ends the night there; up to and with `at(RECORD, ...)` nothing is recorded.

    Raises: ConfigInvalid and NotFound for a probe file; InvalidInput when there is nothing to sleep over;
    SnapshotMismatch when a user's memory is of another core; Corrupt; Unavailable. Nothing was recorded then.
    """
    at(NightStage.PLAN, 0, 0)
    home = config.home_path
    # Before anything is done: a night whose questions cannot be asked must not run at all.
    suites, policy = asked_suites(config.gate), load_policy()
    cores, served = CoreStore(home), ServedCores(config)
    loaded = served.load(served.digest())
    bed = make_bed(config, loaded)
    with SqliteFile(home / "siltstone.db", config.store) as file, open_registry(config) as registry:
        # 1.
        journal, store = SqliteJournal(file), SqliteSnapshotStore(file)
        plan = make_plan(journal, store, loaded.digest, since_ms, _FOREVER_MS, seed)
        interactions = interactions_of(plan, journal, config)
        say(f"night {plan.id}: {len(plan.users)} users, {len(interactions)} interactions")
        # 2.
        at(NightStage.DREAM, 0, 0)
        night = dream(
            plan, interactions, store, bed, config, str, holds_personal_data, say, partial(at, NightStage.DREAM)
        )
        say(f"{len(night.dreams)} of {night.num_dreamt} dreams teach the core something")
        # 3.
        num_steps = config.sleep.distil.num_steps
        at(NightStage.DISTIL, 0, num_steps)

        def on_distilled(done: StepDone) -> None:
            on_step(done)
            at(NightStage.DISTIL, done.step + 1, num_steps)

        written = distil(items_of(night, bed), bed, config, seed, on_distilled)
        # 4.
        name = f"night-{plan.id}"
        digest = cores.add(candidate_of(written, bed, plan.id), name)
        # 5.
        at(NightStage.MEASURE, 0, 0)
        origin = served.load(origin_of(loaded.digest, registry.list()))
        material = _material(suites, night, bed, config, seed)
        evidence = gather_evidence(home, digest, loaded, origin, material, say, config.engine, _notes(night, config))
        # 6.
        at(NightStage.RECORD, 0, 0)
        record_origin(registry, home / "cores" / loaded.digest, importlib.metadata.version("siltstone"))
        version = registry.record(
            home / "cores" / digest, _lineage(plan, night, config, home), to_json(evidence, _told(night))
        )
        # 7. A night that had come so far before is not judged twice.
        at(NightStage.JUDGE, 0, 0)
        if version.verdict is None:
            version = registry.set_verdict(version.number, judge(evidence, policy))
        return NightDone(plan, night, version)


def _material(
    suites: Sequence[ProbeSuite], night: DreamtNight, bed: Bed, config: SiltstoneConfig, seed: int
) -> Material:
    seen: list[Statement] = []
    held_out: list[Statement] = []
    for one in night.filtered.statements:
        (held_out if one.person in night.left_out else seen).append(one)
    tokenizer, size = bed.loaded.tokenizer, bed.loaded.config.vocab_size
    return material_of(suites, seen, held_out, tokenizer, size, config.sleep.consensus.k_min, seed)


def _notes(night: DreamtNight, config: SiltstoneConfig) -> dict[str, str]:
    """Says what a reader of the verdict should know about how the evidence came about."""
    num_people = len({one.person for one in night.filtered.statements})
    wanted = config.sleep.min_held_out
    if len(night.left_out) >= wanted:
        return {}
    needed = people_needed(wanted)
    return {
        "benefit": f"{len(night.left_out)} of {num_people} people took no part; it takes {needed} to hold out {wanted}"
    }


def _lineage(plan: SleepPlan, night: DreamtNight, config: SiltstoneConfig, home: Path) -> Lineage:
    took_part = {
        owner: num for owner, num in night.filtered.num_interactions.items() if str(owner) not in night.left_out
    }
    people = contributors(took_part, lineage_key(home))
    told = {
        "sleep": repr(config.sleep),
        "memory": hashlib.sha256(repr(config.memory).encode()).hexdigest(),
        "torch": torch.__version__,
    }
    revision = importlib.metadata.version("siltstone")
    return Lineage(plan.core, plan.id, plan.positions, people, {"sleep": plan.seed}, told, revision)


def _told(night: DreamtNight) -> Mapping[str, object]:
    return {
        "dreams": len(night.dreams),
        "dreamt": night.num_dreamt,
        "dropped": {reason.value: num for reason, num in night.dropped.items()},
    }
