"""The frozen values that travel through a shared sleep: plan, evidence, verdict, version. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from siltstone.values import UserKey


@dataclass(frozen=True, slots=True)
class SleepPlan:
    """What one shared sleep may look at. Everything after it is a function of it and of what the journal holds.

    `positions` is the vector of journal positions seen: of each partition, what lies before it takes part.
    """

    id: str
    core: str
    users: tuple[UserKey, ...]
    since_ms: int
    until_ms: int
    positions: Mapping[int, int]
    seed: int


@dataclass(frozen=True, slots=True)
class StepDone:
    """What one training step gave: the losses, in nats a token, before it moved anything."""

    step: int
    dream_loss: float
    anchor_loss: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Contributor:
    """A user whose words took part in a core, as a keyed hash, with the number of interactions."""

    user_hash: str
    num_interactions: int


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a core comes from: enough to find every version a user took part in, and to make it again without them.

    `config` and `seeds` are what the sleep was run with; `code_revision` names the code. Contributors are accounts, so
    that each can be asked for; `num_people` says how many people are behind them, 0 where nobody counted.
    """

    parent: str
    sleep_id: str
    positions: Mapping[int, int]
    contributors: tuple[Contributor, ...]
    seeds: Mapping[str, int]
    config: Mapping[str, str]
    code_revision: str
    num_people: int = 0


@dataclass(frozen=True, slots=True)
class Measurement:
    """One quantity measured on a candidate, item by item, so that its uncertainty can be told.

    `candidate`, `champion` and `origin` hold the same items in the same order; a quantity that compares two cores
    itself (a divergence) or has no counterpart leaves the others empty. `clusters` names the group of each item (its
    user, its passage): items of a group are not independent. A higher number is better where `higher_is_better`.
    """

    name: str
    unit: str
    candidate: tuple[float, ...]
    champion: tuple[float, ...] = ()
    origin: tuple[float, ...] = ()
    clusters: tuple[str, ...] = ()
    higher_is_better: bool = True

    @property
    def is_whole(self) -> bool:
        """Whether it has items, every one of them is a number, and what it is compared with has equally many."""
        parts = (self.candidate, self.champion, self.origin)
        lengths = {len(part) for part in parts if part}
        has_clusters = not self.clusters or len(self.clusters) == len(self.candidate)
        finite = all(math.isfinite(value) for part in parts for value in part)
        return bool(self.candidate) and len(lengths) == 1 and has_clusters and finite


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that was measured on a candidate, once. The digests are those of the cores that were compared."""

    candidate: str
    champion: str
    origin: str
    measurements: tuple[Measurement, ...]
    notes: Mapping[str, str] = field(default_factory=dict)

    def get(self, name: str) -> Measurement | None:
        """Returns a measurement by its name; None when it was not made."""
        return next((one for one in self.measurements if one.name == name), None)


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What one check of the gate says.

    `value` is what was found and `limit` what it was held against, in `unit`; `smallest_effect` is the smallest change
    the check could have seen with this many items. A check that could not be made has not passed.
    """

    check: str
    passed: bool
    reason: str
    value: float | None
    limit: float | None
    smallest_effect: float | None
    unit: str
    num_items: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate says of a candidate: accepted only when every check of the policy has passed."""

    candidate: str
    policy: str
    accepted: bool
    results: tuple[CheckResult, ...]


class VersionState(StrEnum):
    """Where a version of the core stands."""

    CANDIDATE = "candidate"
    ACCEPTED = "accepted"
    SERVING = "serving"
    RETIRED = "retired"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class CoreVersion:
    """One version of the core as the registry knows it. `digest` names the core's content, `number` its place.

    `first_served_epoch` is the epoch under which it first became champion; 0 says it never was. `seal` is the sha256 of
    the signature of its folder: what a caller pins who wants exactly this and nothing signed earlier or later.
    Without a seal the folder was discarded.
    """

    number: int
    digest: str
    state: VersionState
    lineage: Lineage
    created_ms: int
    evidence_digest: str = ""
    verdict: Verdict | None = None
    first_served_epoch: int = 0
    seal: str = ""


@dataclass(frozen=True, slots=True)
class Champion:
    """Which version serves. `epoch` grows with every move, so that a late mover is refused."""

    number: int
    digest: str
    epoch: int


@dataclass(frozen=True, slots=True)
class VersionMove:
    """One line of the registry's history. `before` is None for a version that was just recorded.

    `epoch` is the champion's after the move; a change of champion moves two versions under one epoch.
    """

    number: int
    digest: str
    before: VersionState | None
    after: VersionState
    epoch: int
    moved_at_ms: int


class NightStage(StrEnum):
    """What a night does, in this order, or how it ended."""

    PLAN = "plan"
    DREAM = "dream"
    DISTIL = "distil"
    MEASURE = "measure"
    RECORD = "record"
    JUDGE = "judge"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Night:
    """One night of a home folder, as it is now.

    `num_steps` is 0 where a stage counts none; `version` is 0 before there is one; `error` says what ended a night that
    failed. `said` holds no user's words. `task` names what the operator lets the core improve itself on; it is empty
    where the night is over what users said.
    """

    number: int
    stage: NightStage
    seed: int
    since_ms: int
    pid: int
    started_at_ms: int
    updated_at_ms: int
    step: int = 0
    num_steps: int = 0
    said: str = ""
    is_cancelling: bool = False
    version: int = 0
    verdict: str = ""
    error: str = ""
    task: str = ""

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes of it."""
        return self.stage in (NightStage.DONE, NightStage.FAILED, NightStage.CANCELLED)


@dataclass(frozen=True, slots=True)
class VersionCard:
    """What may be told of a version: of who took part, only how many. Without a seal its folder was discarded."""

    number: int
    digest: str
    state: VersionState
    parent: str
    sleep_id: str
    num_people: int
    num_interactions: int
    seeds: Mapping[str, int]
    code_revision: str
    created_at_ms: int
    evidence_digest: str
    first_served_epoch: int
    seal: str


@dataclass(frozen=True, slots=True)
class MeasurementSummary:
    """One measurement by the means over its items; None where there are none."""

    name: str
    unit: str
    num_items: int
    candidate: float | None
    champion: float | None
    origin: float | None
    higher_is_better: bool


@dataclass(frozen=True, slots=True)
class VersionReport:
    """A version with what speaks for and against it."""

    card: VersionCard
    verdict: Verdict | None
    measurements: tuple[MeasurementSummary, ...]


@dataclass(frozen=True, slots=True)
class VersionComparison:
    """Two versions side by side. `origins` holds what differs in where they come from: (what, of one, of the other)."""

    reports: tuple[VersionReport, VersionReport]
    origins: tuple[tuple[str, str, str], ...]
