"""Which versions a home need not keep the core of. Standard library only."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from siltstone.errors import NotFound
from siltstone.sleep_values import Champion, CheckResult, CoreVersion, Verdict, VersionState
from siltstone.versions.lifecycle import predecessor


def abandoned(versions: Sequence[CoreVersion], sleep_id: str) -> tuple[CoreVersion, ...]:
    """Returns the candidates of other sleeps than this one: they ended before the gate judged."""
    return tuple(v for v in versions if v.state is VersionState.CANDIDATE and v.lineage.sleep_id != sleep_id)


def refusal_of_abandoned(version: CoreVersion) -> Verdict:
    """Returns the verdict on a candidate whose sleep ended before the gate judged it."""
    reason = "the sleep ended before the gate judged, and another sleep has begun"
    result = CheckResult("the sleep was brought to its end", False, reason, None, None, None, "", 0)
    return Verdict(version.digest, "none", accepted=False, results=(result,))


def to_retire(versions: Sequence[CoreVersion], num_kept: int) -> tuple[CoreVersion, ...]:
    """Returns the accepted versions that wait while so many newer ones do."""
    waiting = [version for version in versions if version.state is VersionState.ACCEPTED]
    return tuple(waiting[: max(0, len(waiting) - max(1, num_kept))])


def to_discard(
    versions: Sequence[CoreVersion], champion: Champion | None, pinned: Collection[str], num_kept: int
) -> tuple[CoreVersion, ...]:
    """Returns the refused and retired versions whose folder may go: all but the newest `num_kept`.

    Never one whose core is in `pinned`, one that no night made, or the one that a rollback would go to: they are kept
    beside the newest.
    """
    try:
        needed = {predecessor(versions, champion).number}
    except NotFound:
        needed = set()
    spare = [
        version
        for version in versions
        if version.state in (VersionState.REFUSED, VersionState.RETIRED)
        and version.seal
        and version.lineage.parent
        and version.number not in needed
        and version.digest not in pinned
    ]
    return tuple(spare[: max(0, len(spare) - num_kept)])


def origin_of(versions: Sequence[CoreVersion], digest: str) -> str:
    """Returns the first core of the line that a core stands in: itself, when no sleep has made it."""
    parents = {version.digest: version.lineage.parent for version in versions}
    seen = {digest}
    while (parent := parents.get(digest)) and parent not in seen:
        digest = parent
        seen.add(digest)
    return digest
