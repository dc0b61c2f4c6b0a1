"""Where a version may go: the whole table, and the decisions that follow from it."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siltstone.errors import InvalidInput, NotFound, SiltstoneError, StaleEpoch, WrongState
from siltstone.sleep_values import Champion, CheckResult, CoreVersion, Lineage, Verdict, VersionState
from siltstone.versions.lifecycle import TRANSITIONS, Trigger, discard, judge, next_state, predecessor, retire, succeed

ALLOWED = {
    ("candidate", "accept", "accepted"),
    ("candidate", "refuse", "refused"),
    ("accepted", "serve", "serving"),
    ("accepted", "retire", "retired"),
    ("serving", "retire", "retired"),
    ("retired", "serve", "serving"),
}


def version(number=1, state=VersionState.CANDIDATE, parent="", first_served_epoch=0):
    lineage = Lineage(parent, "night", {}, (), {}, {}, "r1")
    return CoreVersion(
        number, f"core-{number}", state, lineage, 0, first_served_epoch=first_served_epoch, seal=f"seal-{number}"
    )


def verdict(candidate="core-1", accepted=True, passed=True, num_checks=1):
    result = CheckResult("retention", passed, "it kept what it knew", 0.0, 0.1, 0.01, "nats", 100)
    return Verdict(candidate, "shipped", accepted, (result,) * num_checks)


@pytest.mark.parametrize(("state", "trigger"), list(product(VersionState, Trigger)))
def test_a_version_goes_only_where_the_table_says(state, trigger):
    served = version(state=state, first_served_epoch=1)
    after = {then for before, by, then in ALLOWED if (before, by) == (state.value, trigger.value)}
    if after:
        assert {next_state(served, trigger).value} == after
    else:
        with pytest.raises(WrongState, match=state.value):
            next_state(served, trigger)


def test_refused_is_final():
    assert not any(before is VersionState.REFUSED for before, _ in TRANSITIONS)


def test_a_retired_version_serves_again_only_if_it_ever_did():
    with pytest.raises(WrongState, match="without having served"):
        next_state(version(state=VersionState.RETIRED), Trigger.SERVE)
    assert next_state(version(state=VersionState.RETIRED, first_served_epoch=1), Trigger.SERVE) is VersionState.SERVING


def test_a_verdict_moves_a_candidate():
    assert judge(version(), verdict()).state is VersionState.ACCEPTED
    refused = judge(version(), verdict(accepted=False, passed=False))
    assert (refused.state, refused.verdict) == (VersionState.REFUSED, verdict(accepted=False, passed=False))


@pytest.mark.parametrize(
    ("parent", "unsound", "field"),
    [
        ("core-0", verdict("core-2"), "verdict.candidate"),
        ("core-0", verdict(passed=False), "verdict.accepted"),
        ("core-0", verdict(num_checks=0), "verdict.results"),
    ],
)
def test_a_verdict_that_does_not_hold_together_accepts_nothing(parent, unsound, field):
    with pytest.raises(InvalidInput, match=field):
        judge(version(parent=parent), unsound)


def test_a_core_that_no_sleep_made_needs_no_checks():
    assert judge(version(parent=""), verdict(num_checks=0)).state is VersionState.ACCEPTED


def test_the_serving_version_is_not_retired_without_a_successor():
    with pytest.raises(WrongState, match="successor"):
        retire(version(state=VersionState.SERVING, first_served_epoch=1))
    assert retire(version(state=VersionState.ACCEPTED)).state is VersionState.RETIRED


def test_a_succession_moves_both_versions_under_the_next_epoch():
    first, second = version(1, VersionState.SERVING, first_served_epoch=4), version(2, VersionState.ACCEPTED)
    change = succeed(second, Champion(1, "core-1", 6), first, 6)
    assert change.champion == Champion(2, "core-2", 7)
    assert (change.rising.state, change.rising.first_served_epoch) == (VersionState.SERVING, 7)
    assert change.leaving == replace(first, state=VersionState.RETIRED)


@pytest.mark.parametrize("expected", [0, 5, 7])
def test_a_mover_that_has_not_seen_the_newest_champion_is_refused(expected):
    first = version(1, VersionState.SERVING, first_served_epoch=4)
    with pytest.raises(StaleEpoch, match="6"):
        succeed(version(2, VersionState.ACCEPTED), Champion(1, "core-1", 6), first, expected)


@pytest.mark.parametrize("state", [VersionState.CANDIDATE, VersionState.REFUSED, VersionState.RETIRED])
def test_who_has_not_passed_the_gate_or_never_served_before_retiring_does_not_become_champion(state):
    with pytest.raises(WrongState):
        succeed(version(2, state), None, None, 0)


def test_a_rollback_goes_to_who_served_before_and_never_forward():
    retired = VersionState.RETIRED
    versions = [version(number, retired, first_served_epoch=number) for number in (1, 2, 3)]
    versions += [version(4, retired), version(5, VersionState.ACCEPTED)]
    assert predecessor(versions, Champion(3, "core-3", 3)).number == 2
    assert predecessor(versions, Champion(2, "core-2", 4)).number == 1
    with pytest.raises(NotFound):
        predecessor(versions, Champion(1, "core-1", 5))
    with pytest.raises(NotFound):
        predecessor(versions, None)


@pytest.mark.parametrize("state", [VersionState.CANDIDATE, VersionState.ACCEPTED, VersionState.SERVING])
def test_what_may_still_serve_is_not_discarded(state):
    with pytest.raises(WrongState, match="discard"):
        discard(version(state=state))


def test_what_was_discarded_while_its_promotion_was_under_way_does_not_become_champion():
    with pytest.raises(NotFound, match="2"):
        succeed(discard(version(2, VersionState.RETIRED, first_served_epoch=1)), None, None, 0)


def test_a_rollback_passes_over_what_was_discarded():
    versions = [version(number, VersionState.RETIRED, first_served_epoch=number) for number in (1, 2, 3)]
    versions[1] = discard(versions[1])
    assert predecessor(versions, Champion(3, "core-3", 3)).number == 1


class World:
    """What a registry does, without storing it."""

    def __init__(self):
        self.versions = {}
        self.champion = None

    def apply(self, action, number, lag):
        versions, found = self.versions, self.versions.get(number)
        if action == "record":
            number = len(versions) + 1
            versions[number] = version(number)
        elif action == "roll back":
            self._succeed(predecessor(list(versions.values()), self.champion), lag)
        elif found is None:
            return
        elif action == "serve":
            self._succeed(found, lag)
        elif action == "retire":
            versions[number] = retire(found)
        else:
            accepted = action == "accept"
            versions[number] = judge(found, verdict(found.digest, accepted, accepted))

    def _succeed(self, rising, lag):
        epoch = self.champion.epoch if self.champion else 0
        leaving = self.versions[self.champion.number] if self.champion else None
        change = succeed(rising, self.champion, leaving, epoch - lag)
        self.champion = change.champion
        for changed in (change.rising, change.leaving):
            if changed is not None:
                self.versions[changed.number] = changed


ACTIONS = st.sampled_from(["record", "accept", "refuse", "serve", "retire", "roll back"])


@given(st.lists(st.tuples(ACTIONS, st.integers(1, 6), st.sampled_from([0, 0, 0, 1, -1])), max_size=60))
def test_whatever_is_tried_one_champion_serves_and_the_epoch_only_rises(steps):
    world, passed = World(), set()
    for action, number, lag in steps:
        before = world.champion.epoch if world.champion else 0
        refused = {v.number for v in world.versions.values() if v.state is VersionState.REFUSED}
        try:
            world.apply(action, number, lag)
        except SiltstoneError:
            pass
        else:
            if action == "accept":
                passed.add(number)
        after = world.champion.epoch if world.champion else 0
        serving = [v.number for v in world.versions.values() if v.state is VersionState.SERVING]
        assert serving == ([world.champion.number] if world.champion else [])
        assert after in (before, before + 1)
        assert set(serving) <= passed
        assert all(world.versions[one].state is VersionState.REFUSED for one in refused)
