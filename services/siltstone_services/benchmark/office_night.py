"""A night over the demo's office: what a newcomer gets from it, what nobody may, and two nights that must not be."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from siltstone.adapters.core_store import CoreStore
from siltstone.adapters.sqlite_snapshots import SqliteSnapshotStore
from siltstone.config import SiltstoneConfig
from siltstone.errors import InvalidInput
from siltstone.evaluation.figures import format_value
from siltstone.evaluation.forced_choice import Accuracy
from siltstone.evaluation.office_material import NUM_USERS, OfficeUser, load_office
from siltstone.evaluation.office_questions import private_questions, shared_questions
from siltstone.gate.anchors import Passage, measure_anchors
from siltstone.memory.user_memory import UserMemory, from_blob
from siltstone.model.core import Core
from siltstone_services.bed import Bed, crew_of
from siltstone_services.benchmark.office_asked import Carried, ask, carry_over, likeliest, raised
from siltstone_services.benchmark.own_teachers import own_targets, targets_alone
from siltstone_services.benchmark.readings import Outcome, Reading, Say, Target, at_least, at_most
from siltstone_services.benchmark.verdicts import ANCHORS, SECRETS, failed_measurements
from siltstone_services.demo_figures import (
    MAX_LEAKED_PERCENT,
    MAX_SLEEP_S,
    MIN_KEPT_SHARE,
    MIN_SHARED_PERCENT,
    failed_text,
)
from siltstone_services.demo_outcome import CoursePlan
from siltstone_services.demo_setting import key_of
from siltstone_services.embedded_store import open_store
from siltstone_services.judging import Exam
from siltstone_services.lanes import Lane, open_lane
from siltstone_services.night import NightDone, run_night
from siltstone_services.version_records import open_registry

MIN_AGREEMENT_PERCENT: Final = 99.0
_CHANCE_PERCENT: Final = 100 / NUM_USERS
_YES: Final = at_least(1, "of 1")


@dataclass(frozen=True, slots=True)
class Trial:
    """A home in which the office was taught, for nights alone; without an exam, that of the package is taken."""

    name: str
    config: SiltstoneConfig
    plan: CoursePlan
    exam: Exam | None = None


def run_office_night(trial: Trial, say: Say) -> Iterator[Outcome]:
    """Sleeps as it should be; then over the same dreams without anchors, and with everybody's own memory as teacher.

    Nobody's memory sleeps before, as in a night beside a server, which lets them sleep by itself.
    """
    private = replace(trial.config.sleep.private, num_steps=0)
    trial = replace(trial, config=replace(trial.config, sleep=replace(trial.config.sleep, private=private)))
    case = f"night, {trial.name}"
    started_s = time.monotonic()
    try:
        done = _sleep(trial, trial.config, say, None)
    except InvalidInput as error:
        yield Outcome(case, refusal=str(error))
        return
    elapsed_s = time.monotonic() - started_s
    if complaint := check_night(trial, done):
        yield Outcome(case, refusal=complaint)
        return
    asking = _Asking(trial, done.plan.core)
    taken = Reading(
        f"{case}, duration",
        (elapsed_s,),
        "s",
        at_most(MAX_SLEEP_S, "s"),
        note=f"{len(done.night.dreams)} dreams, from the plan to the verdict",
    )
    say(f"{case}: asking")
    yield Outcome(case, (taken, _accepted(case, done), *asking.after(case, done)))
    yield _without_anchors(trial, case, done, say)
    yield _with_own_teachers(trial, case, done, asking, say)


def check_night(trial: Trial, done: NightDone) -> str:
    """Says what is wrong with a night, or nothing: another core must have been judged, and none have been promoted."""
    with open_registry(trial.config) as registry:
        champion = registry.champion()
    if champion is None or champion.digest != done.plan.core:
        return "what serves is no longer what served before the night"
    if done.version.digest == done.plan.core:
        return "the candidate is the core that serves, so that nothing was checked"
    if done.version.verdict is None or not done.version.verdict.results:
        return "the candidate was not judged"
    return ""


def _sleep(trial: Trial, config: SiltstoneConfig, say: Say, before: NightDone | None) -> NightDone:
    num_steps = config.sleep.distil.num_steps
    return run_night(
        config,
        0,
        0,
        lambda text: say(f"night, {trial.name}: {text}"),
        lambda done: say(f"night, {trial.name}: distilling, step {done.step + 1} of {num_steps}"),
        exam=trial.exam,
        before=before,
    )


def _without_anchors(trial: Trial, case: str, done: NightDone, say: Say) -> Outcome:
    case = f"{case}, control without anchors"
    config = targets_alone(trial.config)
    distil = replace(config.sleep.distil, num_anchors=0, anchor_weight=0.0)
    config = replace(config, sleep=replace(config.sleep, distil=distil))
    control = _sleep(trial, config, say, done)
    if complaint := check_night(trial, control):
        return Outcome(case, refusal=complaint)
    return Outcome(case, tuple(_refused(case, control, ANCHORS, "on anchors")))


def _with_own_teachers(trial: Trial, case: str, done: NightDone, asking: _Asking, say: Say) -> Outcome:
    case = f"{case}, control with own teachers"
    say(f"{case}: dreaming")
    config, old = trial.config, asking.old
    with open_store(config) as file:
        bed = Bed(old.loaded, old.core, old.shape, old.plan, old.ground)
        night = own_targets(done.night, SqliteSnapshotStore(file), bed, config)
    control = _sleep(trial, targets_alone(config), say, replace(done, night=night))
    if complaint := check_night(trial, control):
        return Outcome(case, refusal=complaint)
    leaked = asking.private(f"{case}, newcomer, private facts", asking.lane(control), at_least(_leak(), "%"))
    return Outcome(case, (leaked, *_refused(case, control, SECRETS, "on secrets")))


class _Asking:
    """Asks the cores that nights have made, beside the one from before."""

    def __init__(self, trial: Trial, core: str) -> None:
        self._trial, self._crew = trial, crew_of(trial.config)
        self._office = load_office()
        self._shared = shared_questions(self._office)
        self._private = private_questions(self._office, trial.plan.users)
        self.old = self._open(core)
        self._shared_before = ask(self.old, self._shared, self._crew)
        self._private_before = ask(self.old, self._private, self._crew)

    def _open(self, digest: str) -> Lane:
        config = self._trial.config
        return open_lane(CoreStore(config.home_path).load(digest), config, self._crew)

    def lane(self, done: NightDone) -> Lane:
        """Returns the core that a night has made, ready to answer, whatever the gate said of it."""
        return self._open(done.version.digest)

    def private(self, name: str, lane: Lane, target: Target) -> Reading:
        """Returns how much a newcomer finds raised most of what one person alone has said."""
        found = raised(ask(lane, self._private, self._crew), self._private_before)
        return _share(name, found, target, f"chance {format_value(_CHANCE_PERCENT)} %")

    def after(self, case: str, done: NightDone) -> list[Reading]:
        """Returns what a newcomer gets from a night, and what it costs those who were there before."""
        new = self.lane(done)
        known = likeliest(self._shared_before)
        learned = raised(ask(new, self._shared, self._crew), self._shared_before)
        carried = carry_over(
            self._office, self._trial.plan, self._memories(), self.old, new, self._trial.config, self._crew
        )
        return [
            _share(f"{case}, newcomer, shared facts before", known, None, "likeliest value"),
            _share(f"{case}, newcomer, shared facts", learned, at_least(MIN_SHARED_PERCENT, "%"), "raised most"),
            self.private(f"{case}, newcomer, private facts", new, at_most(_leak(), "%")),
            self._agreement(case, new),
            _kept(case, carried),
        ]

    def _agreement(self, case: str, new: Lane) -> Reading:
        # In float32: in bfloat16 rounding alone changes the likeliest token of one in forty, of one and the same core.
        core, old = (Core(one.loaded.config, one.loaded.tensors) for one in (new, self.old))
        passages = [Passage(f"held-out-{number}", one.text) for number, one in enumerate(self._office.held_out)]
        measured = measure_anchors(core, old, old, self.old.loaded.tokenizer, passages, self._crew)
        (agreed,) = (one.candidate for one in measured if one.name == "agreement_champion")
        share = 100 * sum(agreed) / len(agreed)
        name = f"{case}, likeliest next token as before"
        return Reading(
            name, (share,), "%", at_least(MIN_AGREEMENT_PERCENT, "%"), note=f"{len(agreed):,} tokens, float32"
        )

    def _memories(self) -> list[tuple[OfficeUser, UserMemory]]:
        config, found = self._trial.config, []
        with open_store(config) as file:
            store = SqliteSnapshotStore(file)
            for user in self._trial.plan.users:
                if (snapshot := store.load(key_of(user))) is not None:
                    found.append((user, from_blob(key_of(user), snapshot.blob, self.old.version, self.old.shape)))
        return found


def _leak() -> float:
    return _CHANCE_PERCENT + MAX_LEAKED_PERCENT


def _share(name: str, found: Accuracy, target: Target | None, how: str) -> Reading:
    interval = f"{format_value(100 * found.low)}..{format_value(100 * found.high)} % (95 %)"
    note = f"{found.num_right} of {found.num_asked}, {interval}; {how}"
    return Reading(name, (100 * found.share,), "%", target, note=note)


def _kept(case: str, carried: Carried) -> Reading:
    before, after = carried.before, carried.after
    note = f"{before.num_right} before, {after.num_right} after, of {before.num_asked}; "
    note += f"{carried.num_carried} of {carried.num_users} users carried over"
    share = 100 * after.num_right / max(1, before.num_right)
    return Reading(f"{case}, own facts kept", (share,), "%", at_least(100 * MIN_KEPT_SHARE, "%"), note=note)


def _accepted(case: str, done: NightDone) -> Reading:
    verdict = done.version.verdict
    is_accepted = verdict is not None and verdict.accepted
    return Reading(f"{case}, accepted by the gate", (float(is_accepted),), "of 1", _YES, note=failed_text(done.version))


def _refused(case: str, done: NightDone, measurements: frozenset[str], what: str) -> list[Reading]:
    verdict = done.version.verdict
    is_refused = verdict is not None and not verdict.accepted
    failed = failed_measurements(verdict) & measurements if verdict is not None else frozenset[str]()
    return [
        Reading(f"{case}, refused by the gate", (float(is_refused),), "of 1", _YES, note=failed_text(done.version)),
        Reading(
            f"{case}, refused by a check {what}",
            (float(is_refused and bool(failed)),),
            "of 1",
            _YES,
            note=", ".join(sorted(failed)) or "none of them failed",
        ),
    ]
