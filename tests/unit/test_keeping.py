"""Which versions a home need not keep the core of."""

from __future__ import annotations

from dataclasses import replace

from siltstone.sleep_values import Champion, CoreVersion, Lineage, VersionState
from siltstone.versions.keeping import abandoned, origin_of, to_discard, to_retire

REFUSED, RETIRED, ACCEPTED = VersionState.REFUSED, VersionState.RETIRED, VersionState.ACCEPTED


def version(number: int, state: VersionState, parent: str = "", served: int = 0) -> CoreVersion:
    lineage = Lineage(parent, f"night-{number}", {}, (), {}, {}, "r1")
    return CoreVersion(number, f"core-{number}", state, lineage, 0, first_served_epoch=served, seal=f"seal-{number}")


def line() -> list[CoreVersion]:
    """A first core, three that served one after the other, and two refused."""
    return [
        version(1, RETIRED, served=1),
        version(2, RETIRED, "core-1", served=2),
        version(3, REFUSED, "core-2"),
        version(4, RETIRED, "core-2", served=3),
        version(5, REFUSED, "core-4"),
        version(6, VersionState.SERVING, "core-4", served=4),
    ]


CHAMPION = Champion(6, "core-6", 4)


def test_all_but_the_newest_go_and_never_the_first_the_last_before_the_champion_or_the_champion() -> None:
    assert [one.number for one in to_discard(line(), CHAMPION, (), 0)] == [2, 3, 5]
    assert [one.number for one in to_discard(line(), CHAMPION, (), 2)] == [2]
    assert to_discard(line(), CHAMPION, (), 3) == ()


def test_what_a_memory_is_pinned_to_is_kept_beside_the_newest() -> None:
    assert [one.number for one in to_discard(line(), CHAMPION, {"core-2"}, 0)] == [3, 5]


def test_what_was_discarded_does_not_count() -> None:
    versions = [replace(one, seal="") if one.number == 5 else one for one in line()]

    assert [one.number for one in to_discard(versions, CHAMPION, (), 1)] == [2]


def test_of_those_that_wait_the_newest_do_and_always_one() -> None:
    waiting = [version(number, ACCEPTED, "core-0") for number in (1, 2, 3)]

    assert [one.number for one in to_retire(waiting, 2)] == [1]
    assert [one.number for one in to_retire(waiting, 0)] == [1, 2]


def test_a_candidate_of_this_sleep_is_not_abandoned() -> None:
    left = [version(1, VersionState.CANDIDATE), version(2, VersionState.CANDIDATE), version(3, REFUSED)]

    assert [one.number for one in abandoned(left, "night-2")] == [1]


def test_the_first_core_of_a_line_is_what_no_sleep_has_made() -> None:
    assert origin_of(line(), "core-6") == "core-1"
    assert origin_of(line(), "another") == "another"
