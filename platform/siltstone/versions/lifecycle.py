"""The life of a version as one table, and the decisions that follow from it. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from siltstone.errors import InvalidInput, NotFound, StaleEpoch, WrongState
from siltstone.sleep_values import Champion, CoreVersion, Verdict, VersionState


class Trigger(StrEnum):
    """What may happen to a version."""

    ACCEPT = "accept"
    REFUSE = "refuse"
    SERVE = "serve"
    RETIRE = "retire"


TRANSITIONS: Final[Mapping[tuple[VersionState, Trigger], VersionState]] = {
    (VersionState.CANDIDATE, Trigger.ACCEPT): VersionState.ACCEPTED,
    (VersionState.CANDIDATE, Trigger.REFUSE): VersionState.REFUSED,
    (VersionState.ACCEPTED, Trigger.SERVE): VersionState.SERVING,
    (VersionState.ACCEPTED, Trigger.RETIRE): VersionState.RETIRED,
    (VersionState.SERVING, Trigger.RETIRE): VersionState.RETIRED,
    (VersionState.RETIRED, Trigger.SERVE): VersionState.SERVING,
}
"""(state, trigger) to the next state; what is not here is refused. A retired version serves again if it ever did."""

PASSED_THE_GATE: Final = frozenset({VersionState.ACCEPTED, VersionState.SERVING, VersionState.RETIRED})
"""The states whose artefact may be handed out. A retired version still answers those who are pinned to it."""


@dataclass(frozen=True, slots=True)
class Succession:
    """One change of champion: the new one, and both versions as they are afterwards.

    `leaving` is None for the first.
    """

    champion: Champion
    rising: CoreVersion
    leaving: CoreVersion | None


def next_state(version: CoreVersion, trigger: Trigger) -> VersionState:
    """Returns the state that the trigger leads to.

    Raises: WrongState.
    """
    after = TRANSITIONS.get((version.state, trigger))
    if after is None:
        raise WrongState(f"version {version.number}", version.state.value, trigger.value)
    if trigger is Trigger.SERVE and version.state is VersionState.RETIRED and not version.first_served_epoch:
        raise WrongState(f"version {version.number}", "retired without having served", trigger.value)
    return after


def judge(version: CoreVersion, verdict: Verdict) -> CoreVersion:
    """Returns the candidate with its verdict, accepted or refused.

    Raises: WrongState when it is no candidate. InvalidInput when the verdict is another core's, accepts what a check
    did not pass, or accepts without any check a core that a sleep made; only a core without a parent needs none.
    """
    after = next_state(version, Trigger.ACCEPT if verdict.accepted else Trigger.REFUSE)
    if verdict.candidate != version.digest:
        raise InvalidInput("verdict.candidate", f"the core of version {version.number}", verdict.candidate)
    if verdict.accepted:
        if failed := [result.check for result in verdict.results if not result.passed]:
            raise InvalidInput("verdict.accepted", "only passed checks", f"{failed[0]}, which did not pass")
        if version.lineage.parent and not verdict.results:
            raise InvalidInput("verdict.results", "the results of the gate's checks", "none")
    return replace(version, state=after, verdict=verdict)


def retire(version: CoreVersion) -> CoreVersion:
    """Returns an accepted version taken out of the line. The serving one leaves only when another takes its place.

    Raises: WrongState.
    """
    if version.state is VersionState.SERVING:
        raise WrongState(
            f"version {version.number}", version.state.value, f"{Trigger.RETIRE.value} without a successor"
        )
    return replace(version, state=next_state(version, Trigger.RETIRE))


def discard(version: CoreVersion) -> CoreVersion:
    """Returns a refused or retired version without its folder.

    Raises: WrongState.
    """
    if version.state not in (VersionState.REFUSED, VersionState.RETIRED):
        raise WrongState(f"version {version.number}", version.state.value, "discard")
    return replace(version, seal="")


def succeed(
    rising: CoreVersion, champion: Champion | None, leaving: CoreVersion | None, expected_epoch: int
) -> Succession:
    """Decides whether a version becomes champion after `leaving`, the present one, under the next epoch.

    Raises: StaleEpoch when the champion's epoch is not `expected_epoch` (0 while there is none): the mover has not seen
    the newest one. WrongState when the version may not serve. NotFound when its folder was discarded.
    """
    epoch = champion.epoch if champion else 0
    if expected_epoch != epoch:
        raise StaleEpoch(expected_epoch, epoch)
    after = next_state(rising, Trigger.SERVE)
    if not rising.seal:
        raise NotFound("folder of version", str(rising.number))
    next_epoch = epoch + 1
    risen = replace(rising, state=after, first_served_epoch=rising.first_served_epoch or next_epoch)
    left = replace(leaving, state=next_state(leaving, Trigger.RETIRE)) if leaving else None
    return Succession(Champion(rising.number, rising.digest, next_epoch), risen, left)


def predecessor(versions: Sequence[CoreVersion], champion: Champion | None) -> CoreVersion:
    """Returns the version to roll back to: of those kept that first served before the champion first did, the latest.

    A second rollback so goes a step further back, never forward to the version just rolled back from.

    Raises: NotFound when there is none.
    """
    since = next((v.first_served_epoch for v in versions if champion and v.number == champion.number), 0)
    earlier = [
        version
        for version in versions
        if version.state is VersionState.RETIRED and version.seal and 0 < version.first_served_epoch < since
    ]
    if not earlier:
        raise NotFound("version", "one that served before the champion")
    return max(earlier, key=lambda version: version.first_served_epoch)
