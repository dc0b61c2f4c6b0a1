"""The sleep benchmark's mechanics on a core that knows no words; no test looks at a time or at what was learned."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_home import tiny_config
from tiny_night import make_home, sleep

from siltstone.evaluation.office_material import load_office
from siltstone_services import bench
from siltstone_services.benchmark.canaries import Planting
from siltstone_services.benchmark.office_night import Trial, check_night
from siltstone_services.benchmark.planted_facts import run_planted_facts
from siltstone_services.demo import quick_plan
from siltstone_services.night import open_registry

FEW = Planting(num_facts=1, num_people=6, num_tellings=1)


def silent(text: str) -> None:
    """Says nothing."""


def test_all_cases_of_the_sleep_run_and_leave_no_home_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("deepspeed")
    monkeypatch.chdir(tmp_path)

    assert bench.run_sleep(True, Path("figures.json"), tiny_config(tmp_path), None) == 0

    figures = json.loads(Path("figures.json").read_text())
    names = {figure["name"] for figure in figures}
    assert all(figure["target"] == "" for figure in figures)
    assert {
        "training step, small, DeepSpeed / plain",
        "training step, small, DeepSpeed, of the matrix products' limit",
        "planted facts, small core, as it is, held by k-1 people, transferred",
        "planted facts, small core, one person is enough, refused by a check on secrets",
        "night, small core, duration",
        "night, small core, newcomer, shared facts",
        "night, small core, own facts kept",
        "night, small core, control without anchors, refused by a check on anchors",
        "night, small core, control with own teachers, newcomer, private facts",
    } <= names
    assert list(Path("runs").iterdir()) == []


def test_planted_facts_that_nobody_holds_are_not_measured(tmp_path: Path) -> None:
    outcomes = list(run_planted_facts(FEW, 1, (1,), tmp_path, silent, {"sleep.consensus.evidence_nats": 60.0}))

    assert len(outcomes) == 1
    assert "memories" in outcomes[0].refusal
    assert outcomes[0].readings == ()


def test_a_night_that_moved_what_serves_or_was_not_judged_is_not_timed(tmp_path: Path) -> None:
    config = tiny_config(make_home(tmp_path))
    done, trial = sleep(tmp_path), Trial("tiny", config, quick_plan(load_office()))

    assert check_night(trial, done) == ""
    assert "not judged" in check_night(trial, replace(done, version=replace(done.version, verdict=None)))
    assert "nothing was checked" in check_night(
        trial, replace(done, version=replace(done.version, digest=done.plan.core))
    )

    with open_registry(config) as registry:
        champion = registry.champion()
        assert champion is not None
        registry.promote(done.version.number, champion.epoch)
    assert "no longer what served" in check_night(trial, done)
