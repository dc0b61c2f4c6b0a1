"""One night of one home folder: from the plan to the verdict, and the version that is recorded whatever it says.

1. Plan: which users, up to which journal positions; clear up after nights before; then those whose memory is due sleep,
each alone, where no server uses the home. 2. Filter and dream. 3. Distil. 4. Keep the candidate core. 5. Measure it.
6. Record it with its evidence and lineage, and before the first one the core that it all began with. 7. Judge. 8. Clear
up. Nothing serves before somebody promotes it; killed between any two steps, what serves is untouched, and a memory is
as it was or has slept; the same night run again is done anew, and recorded and judged once.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import torch

from siltstone.adapters.basis_store import BasisStore
from siltstone.adapters.core_store import CoreStore, LoadedCore
from siltstone.adapters.identity_file import Identities, read_identities
from siltstone.adapters.key_file import lineage_key
from siltstone.adapters.personal_data import holds_personal_data
from siltstone.config import SiltstoneConfig
from siltstone.crew import Look, go_on
from siltstone.evaluation.external_probes import asked_suites
from siltstone.faults import fault_point
from siltstone.gate.measure import Material
from siltstone.gate.probe_suites import ProbeSuite
from siltstone.gate.verdict import judge
from siltstone.model.core import Core
from siltstone.sleep.filter import Statement
from siltstone.sleep.held_out import people_needed
from siltstone.sleep_values import CoreVersion, Lineage, NightStage, SleepPlan, StepDone
from siltstone.versions.keeping import origin_of
from siltstone.versions.lineage import contributors
from siltstone_services.bed import Bed
from siltstone_services.dream_stage import DreamtNight, dream
from siltstone_services.evidence_json import to_json
from siltstone_services.journal_and_store import open_journal_and_store
from siltstone_services.judging import Exam, exam_of, material_of
from siltstone_services.keeping import Keeper, name_of_night
from siltstone_services.learning import lesson_plan, prepare_ground
from siltstone_services.precision import dtype_for
from siltstone_services.private_sleeper import sleep_where_free
from siltstone_services.served import ServedCores, record_origin
from siltstone_services.sleeper import (
    Distilled,
    candidate_of,
    distil,
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


def make_bed(config: SiltstoneConfig, loaded: LoadedCore, look: Look = go_on) -> Bed:
    """Returns the core that serves, as its users learn on it."""
    core = Core(
        loaded.config, loaded.tensors, config.engine.device, dtype_for(config.engine.dtype, config.engine.device)
    )
    lessons = lesson_plan(loaded.tokenizer, core, config.lessons)
    shape = config.memory.shape_for(core.config)
    return Bed(loaded, core, shape, lessons, prepare_ground(loaded, core, shape, lessons, config), look)


def nobody_watches(stage: NightStage, step: int, num_steps: int) -> None:
    """Takes no notice of where a night is."""


def run_night(
    config: SiltstoneConfig,
    seed: int,
    since_ms: int,
    say: Say,
    on_step: Callable[[StepDone], None],
    at: At = nobody_watches,
    look: Look = go_on,
    exam: Exam | None = None,
    before: NightDone | None = None,
) -> NightDone:
    """Runs a night over a home folder. A server may use it meanwhile: the night reads what was committed.

    A night `before` over the same plan lends its dreams, so that another way of learning them can be tried.
    What `say`, `on_step` or `at` raises ends the night there; up to and with `at(RECORD, ...)` nothing is recorded. So
    does what `look` raises, which is called between two readings of the core, on any thread, and never after that.

    Raises: InvalidInput when there is nothing to sleep over; ConfigInvalid and NotFound for a probe file; ConfigInvalid
    when the policy or the identities cannot be used; NotFound without a core; Corrupt; Unavailable. Nothing serves that
    did not before, and the night can be run again.
    """
    at(NightStage.PLAN, 0, 0)
    home = config.home_path
    # Before anything is done: a night whose questions cannot be asked or judged must not run at all.
    suites, people = asked_suites(config.gate), identities_of(config)
    exam = exam or exam_of(config, suites)
    cores = CoreStore(home)
    with ExitStack() as opened:
        served = opened.enter_context(ServedCores(config))
        loaded = served.load(served.digest())
        bed = make_bed(config, loaded, look)
        journal, store = opened.enter_context(open_journal_and_store(config))
        registry = opened.enter_context(open_registry(config))
        # 1.
        plan = make_plan(journal, store, loaded.digest, since_ms, _FOREVER_MS, seed)
        keeper = Keeper(registry, store, cores, BasisStore(home), {loaded.digest}, config.sleep.keep_versions)
        keeper.clear_up(plan.id, say)
        interactions = interactions_of(plan, journal, config)
        say(f"night {plan.id}: {len(plan.users)} users, {len(interactions)} interactions")
        sleep_where_free(plan, store, bed, config, say)
        fault_point("night.planned")
        # 2.
        at(NightStage.DREAM, 0, 0)
        if before is not None and before.plan == plan:
            night = before.night
        else:
            person_of, on_read = people.person_of, partial(at, NightStage.DREAM)
            night = dream(plan, interactions, store, bed, config, person_of, holds_personal_data, say, on_read)
        say(f"{len(night.dreams)} of {night.num_dreamt} dreams teach the core something")
        fault_point("night.dreamt")
        # 3.
        num_steps = config.sleep.distil.num_steps
        at(NightStage.DISTIL, 0, num_steps)

        def on_distilled(done: StepDone) -> None:
            on_step(done)
            at(NightStage.DISTIL, done.step + 1, num_steps)

        distilled = distil(items_of(night, bed, config), bed, config, seed, on_distilled)
        say(f"{100 * distilled.share:.0f} % of the expert: as much as neutral text allows")
        fault_point("night.distilled")
        # 4.
        digest = cores.add(candidate_of(distilled.written, bed, plan.id), name_of_night(plan.id))
        fault_point("night.kept")
        # 5.
        at(NightStage.MEASURE, 0, 0)
        origin = served.load(origin_of(registry.list(), loaded.digest))
        material = _material(suites, night, bed, config, seed)
        notes = _notes(night, config)
        evidence = exam.measure(home, digest, loaded, origin, material, say, config.engine, notes, look)
        fault_point("night.measured")
        # 6.
        at(NightStage.RECORD, 0, 0)
        record_origin(registry, home / "cores" / loaded.digest, importlib.metadata.version("siltstone"))
        lineage = _lineage(plan, night, config, people)
        version = registry.record(home / "cores" / digest, lineage, to_json(evidence, _told(night, distilled)))
        fault_point("night.recorded")
        # 7. A night that had come so far before is not judged twice.
        at(NightStage.JUDGE, 0, 0)
        if version.verdict is None:
            version = registry.set_verdict(version.number, judge(evidence, exam.policy))
        fault_point("night.judged")
        # 8.
        keeper.clear_up(plan.id, say)
        return NightDone(plan, night, version)


def identities_of(config: SiltstoneConfig) -> Identities:
    """Returns who is behind the accounts, by the file that the configuration names; everybody for themselves without.

    Raises: ConfigInvalid.
    """
    told = config.sleep.identities
    return read_identities(config.home_path / Path(told).expanduser()) if told else Identities()


def _material(
    suites: Sequence[ProbeSuite], night: DreamtNight, bed: Bed, config: SiltstoneConfig, seed: int
) -> Material:
    seen: list[Statement] = []
    held_out: list[Statement] = []
    for one in night.filtered.statements:
        (held_out if one.person in night.left_out else seen).append(one)
    tokenizer, size = bed.loaded.tokenizer, bed.loaded.config.vocab_size
    return material_of(suites, seen, held_out, tokenizer, size, night.taught, seed)


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


def _lineage(plan: SleepPlan, night: DreamtNight, config: SiltstoneConfig, people: Identities) -> Lineage:
    took_part = {
        owner: num
        for owner, num in night.filtered.num_interactions.items()
        if people.person_of(owner) not in night.left_out
    }
    told = {
        "sleep": repr(config.sleep),
        "identities": people.digest,
        "policy": config.gate.policy_sha256,
        "memory": hashlib.sha256(repr(config.memory).encode()).hexdigest(),
        "torch": torch.__version__,
    }
    revision = importlib.metadata.version("siltstone")
    return Lineage(
        plan.core,
        plan.id,
        plan.positions,
        contributors(took_part, lineage_key(config.home_path)),
        {"sleep": plan.seed},
        told,
        revision,
        len({people.person_of(owner) for owner in took_part}),
    )


def _told(night: DreamtNight, distilled: Distilled) -> Mapping[str, object]:
    return {
        "expert_share": distilled.share,
        "dreams": len(night.dreams),
        "dreamt": night.num_dreamt,
        "dropped": {reason.value: num for reason, num in night.dropped.items()},
    }
