"""What `ports.VersionRegistry` promises, for every adapter."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_versions import EVIDENCE, accept, add_core, lineage, record, sqlite_registry, verdict

from siltstone.adapters.core_store import CoreStore
from siltstone.adapters.mlflow_registry import MlflowConfig, MlflowRegistry
from siltstone.errors import Corrupt, InvalidInput, NotFound, SiltstoneError, StaleEpoch, WrongState
from siltstone.ports import VersionRegistry
from siltstone.sleep_values import Champion, VersionState

ADAPTERS = ("sqlite", "mlflow")
_names = count()

Opening = Callable[[], AbstractContextManager[VersionRegistry]]


@pytest.fixture(params=ADAPTERS)
def opening(request: pytest.FixtureRequest, tmp_path: Path, mlflow_address: str) -> Opening:
    config = MlflowConfig(mlflow_address, f"contract-{next(_names)}")

    @contextmanager
    def opened() -> Iterator[VersionRegistry]:
        with sqlite_registry(tmp_path) as ledger:
            yield MlflowRegistry(tmp_path, ledger, config) if request.param == "mlflow" else ledger

    return opened


@pytest.fixture
def registry(opening: Opening) -> Iterator[VersionRegistry]:
    with opening() as registry:
        yield registry


def state_of(registry):
    return [registry.list(), registry.champion(), registry.history()]


def test_an_empty_registry_has_no_versions_and_no_champion(registry):
    assert state_of(registry) == [(), None, ()]
    with pytest.raises(NotFound):
        registry.show(1)
    with pytest.raises(NotFound):
        registry.promote(1, 0)
    with pytest.raises(NotFound):
        registry.rollback(0)


def test_a_recorded_core_is_a_candidate_and_stays_as_it_was_also_after_a_restart(opening, tmp_path):
    with opening() as registry:
        version = registry.record(add_core(tmp_path, 1), lineage("night-1", "origin"), EVIDENCE)
        assert (version.number, version.state, version.verdict) == (1, VersionState.CANDIDATE, None)
        assert version.lineage == lineage("night-1", "origin")
        before = state_of(registry)
    with opening() as registry:
        assert state_of(registry) == before
        assert registry.show(1) == version


def test_numbers_rise_by_one_and_the_same_core_of_the_same_sleep_is_recorded_once(registry, tmp_path):
    first, second = record(registry, tmp_path, 1), record(registry, tmp_path, 2)
    assert [first.number, second.number] == [1, 2]
    assert record(registry, tmp_path, 1) == first
    again = registry.record(add_core(tmp_path, 1), lineage("night-9"), EVIDENCE)
    assert (again.number, again.digest) == (3, first.digest)


def test_what_is_not_a_sound_core_with_evidence_is_not_recorded(registry, tmp_path):
    core = add_core(tmp_path, 1)
    with pytest.raises(NotFound):
        registry.record(core.with_name("0" * 64), lineage(), EVIDENCE)
    with pytest.raises(InvalidInput, match="evidence"):
        registry.record(core, lineage(), b"{")
    weights = bytearray((core / "core.safetensors").read_bytes())
    weights[-1] ^= 1
    (core / "core.safetensors").write_bytes(weights)
    with pytest.raises(Corrupt):
        registry.record(core, lineage(), EVIDENCE)
    assert state_of(registry) == [(), None, ()]


@pytest.mark.parametrize(("accepted", "state"), [(True, VersionState.ACCEPTED), (False, VersionState.REFUSED)])
def test_a_verdict_is_kept_with_its_version_and_is_given_once(opening, tmp_path, accepted, state):
    with opening() as registry:
        version = record(registry, tmp_path, 1)
        judged = registry.set_verdict(1, verdict(version, accepted))
        assert (judged.state, judged.verdict) == (state, verdict(version, accepted))
        with pytest.raises(WrongState):
            registry.set_verdict(1, verdict(version))
    with opening() as registry:
        assert registry.show(1) == judged


def test_a_measurement_that_is_no_number_survives_in_the_verdict_that_refuses_it(registry, tmp_path):
    version = record(registry, tmp_path, 1)
    registry.set_verdict(1, verdict(version, False, math.nan))
    stored = registry.show(1).verdict
    assert math.isnan(stored.results[0].value)


def test_an_unsound_verdict_changes_nothing(registry, tmp_path):
    version = record(registry, tmp_path, 1)
    before = state_of(registry)
    unsound = [
        replace(verdict(version), candidate="another"),
        replace(verdict(version, False), accepted=True),
        replace(verdict(version), results=()),
    ]
    for one in unsound:
        with pytest.raises(InvalidInput):
            registry.set_verdict(1, one)
    with pytest.raises(NotFound):
        registry.set_verdict(2, verdict(version))
    assert state_of(registry) == before


@pytest.mark.parametrize("refused", [True, False])
def test_what_has_not_passed_the_gate_is_neither_handed_out_nor_served(registry, tmp_path, refused):
    version = record(registry, tmp_path, 1)
    if refused:
        registry.set_verdict(1, verdict(version, accepted=False))
    before = state_of(registry)
    for attempt in (lambda: registry.artefact(1), lambda: registry.promote(1, 0)):
        with pytest.raises(WrongState):
            attempt()
    assert state_of(registry) == before


def test_a_promotion_retires_the_former_champion_under_the_next_epoch(opening, tmp_path):
    with opening() as registry:
        first, second = accept(registry, tmp_path, 1), accept(registry, tmp_path, 2)
        assert registry.promote(1, 0) == Champion(1, first.digest, 1)
        assert registry.promote(2, 1) == Champion(2, second.digest, 2)
    with opening() as registry:
        assert registry.champion() == Champion(2, second.digest, 2)
        states = [(v.state, v.first_served_epoch) for v in registry.list()]
        assert states == [(VersionState.RETIRED, 1), (VersionState.SERVING, 2)]


def test_a_mover_that_has_not_seen_the_newest_champion_changes_nothing(registry, tmp_path):
    for seed in (1, 2):
        accept(registry, tmp_path, seed)
    registry.promote(1, 0)
    before = state_of(registry)
    for expected in (0, 2):
        with pytest.raises(StaleEpoch):
            registry.promote(2, expected)
        with pytest.raises(StaleEpoch):
            registry.rollback(expected)
    with pytest.raises(WrongState):
        registry.promote(1, 1)
    assert state_of(registry) == before


def test_a_rollback_goes_back_step_by_step_and_the_epoch_still_rises(registry, tmp_path):
    for seed in (1, 2, 3):
        accept(registry, tmp_path, seed)
        registry.promote(seed, seed - 1)
    assert [registry.rollback(3).number, registry.rollback(4).number] == [2, 1]
    with pytest.raises(NotFound):
        registry.rollback(5)
    assert registry.champion().epoch == 5
    assert registry.promote(3, 5).epoch == 6
    assert registry.show(3).first_served_epoch == 3


def test_an_accepted_version_taken_out_of_the_line_never_serves(registry, tmp_path):
    for seed in (1, 2):
        accept(registry, tmp_path, seed)
    registry.promote(1, 0)
    assert registry.retire(2).state is VersionState.RETIRED
    for attempt in (lambda: registry.retire(1), lambda: registry.promote(2, 1)):
        with pytest.raises(WrongState):
            attempt()
    assert registry.champion().number == 1


def test_the_artefact_is_a_home_of_its_own_from_which_the_core_is_loaded(registry, tmp_path):
    version = accept(registry, tmp_path, 1)
    before = CoreStore(tmp_path).load(version.digest)
    CoreStore(tmp_path).remove(version.digest)
    loaded = CoreStore(registry.artefact(1)).load(version.digest)
    assert loaded.digest == version.digest
    assert all(bool((loaded.tensors[name] == tensor).all()) for name, tensor in before.tensors.items())
    names = {path.name for path in registry.artefact(1).iterdir() if path.is_file()}
    wanted = {"version.json", "lineage.json", "evidence.json", "verdict.json", "card.md", "version.sig"}
    assert names == wanted
    assert (registry.artefact(1) / "evidence.json").read_bytes() == EVIDENCE


def test_a_retired_version_is_still_handed_out_to_who_is_pinned_to_it(registry, tmp_path):
    for seed in (1, 2):
        accept(registry, tmp_path, seed)
        registry.promote(seed, seed - 1)
    assert registry.artefact(1) != registry.artefact(2)


def test_a_discarded_version_is_gone_but_still_told_of_and_a_rollback_passes_over_it(opening, tmp_path):
    with opening() as registry:
        for seed in (1, 2, 3):
            accept(registry, tmp_path, seed)
            registry.promote(seed, seed - 1)
        folder = registry.artefact(2)
        with pytest.raises(WrongState):
            registry.discard(3)
        assert registry.discard(2) == registry.discard(2)
        assert not folder.exists()
        assert (registry.show(2).verdict, registry.show(2).lineage.sleep_id) == (verdict(registry.show(2)), "night-2")
    with opening() as registry:
        for attempt in (lambda: registry.artefact(2), lambda: registry.promote(2, 3)):
            with pytest.raises(NotFound, match="2"):
                attempt()
        assert registry.rollback(3).number == 1


def test_the_history_tells_every_move_in_order(registry, tmp_path):
    first = accept(registry, tmp_path, 1)
    second = record(registry, tmp_path, 2)
    registry.set_verdict(2, verdict(second, accepted=False))
    accept(registry, tmp_path, 3)
    registry.promote(1, 0)
    registry.promote(3, 1)
    lines = [(m.number, m.before and m.before.value, m.after.value, m.epoch) for m in registry.history()]
    assert lines == [
        (1, None, "candidate", 0),
        (1, "candidate", "accepted", 0),
        (2, None, "candidate", 0),
        (2, "candidate", "refused", 0),
        (3, None, "candidate", 0),
        (3, "candidate", "accepted", 0),
        (1, "accepted", "serving", 1),
        (1, "serving", "retired", 2),
        (3, "accepted", "serving", 2),
    ]
    assert registry.history()[0].digest == first.digest


ACTIONS = st.sampled_from(["record", "accept", "refuse", "promote", "retire", "rollback"])


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(ACTIONS, st.integers(1, 4), st.sampled_from([0, 0, 0, -1])), max_size=14))
def test_whatever_is_tried_the_history_leads_to_what_stands(tmp_path, steps):
    home = tmp_path / f"home-{next(_names)}"
    home.mkdir()
    with sqlite_registry(home) as registry:
        for action, number, lag in steps:
            champion = registry.champion()
            epoch = (champion.epoch if champion else 0) + lag
            try:
                match action:
                    case "record":
                        record(registry, home, len(registry.list()))
                    case "accept" | "refuse":
                        registry.set_verdict(number, verdict(registry.show(number), action == "accept"))
                    case "promote":
                        registry.promote(number, epoch)
                    case "retire":
                        registry.retire(number)
                    case _:
                        registry.rollback(epoch)
            except SiltstoneError:
                assert registry.champion() == champion
        states: dict[int, VersionState] = {}
        for move in registry.history():
            assert states.get(move.number) == move.before
            states[move.number] = move.after
        assert states == {version.number: version.state for version in registry.list()}
        serving = [number for number, state in states.items() if state is VersionState.SERVING]
        assert serving == ([registry.champion().number] if registry.champion() else [])
        epochs = [move.epoch for move in registry.history()]
        assert epochs == sorted(epochs)
    shutil.rmtree(home)
