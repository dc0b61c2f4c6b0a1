"""Figures are written so that they can be believed, and read back as they were."""

from __future__ import annotations

import json
import subprocess
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from siltstone.errors import Corrupt, InvalidInput
from siltstone.evaluation.figures import (
    Origin,
    command_text,
    commit_id,
    count_text,
    date_text,
    format_value,
    hardware_text,
    observe_origin,
    read_figures,
    spread_text,
    write_figures,
)
from siltstone.values import Figure

ORIGIN = Origin("siltstone demo", "abc", "a machine", "2026-01-01T00:00:00+00:00")


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_figures_come_back_as_they_were_written(tmp_path: Path) -> None:
    figures = [
        ORIGIN.figure("recall", 0.9375, "share", target=">= 0.9", reached=True, spread="0.9..1, n=3"),
        ORIGIN.figure("rate", 3, "tokens/s"),
    ]
    write_figures(tmp_path / "runs" / "figures.json", figures)
    assert read_figures(tmp_path / "runs" / "figures.json") == figures


def test_the_file_is_a_list_with_the_promised_fields(tmp_path: Path) -> None:
    write_figures(tmp_path / "figures.json", [ORIGIN.figure("rate", 3.5, "tokens/s", reached=False)])
    entries = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert [list(entry) for entry in entries] == [
        ["name", "value", "unit", "target", "reached", "spread", "command", "commit", "hardware", "date"]
    ]
    assert entries[0]["reached"] is False


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_figure_that_is_no_number_leaves_the_old_file(tmp_path: Path, value: float) -> None:
    path = tmp_path / "figures.json"
    write_figures(path, [ORIGIN.figure("rate", 1, "s")])
    before = path.read_bytes()
    with pytest.raises(InvalidInput, match="rate"):
        write_figures(path, [ORIGIN.figure("rate", value, "s")])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[1]", '[{"name": "rate"}]', "[{"],
)
def test_a_file_that_is_no_list_of_figures_is_corrupt(tmp_path: Path, text: str) -> None:
    path = tmp_path / "figures.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(Corrupt):
        read_figures(path)


@pytest.mark.parametrize(("name", "value"), [("value", "fast"), ("value", True), ("reached", 1), ("unit", None)])
def test_a_field_of_the_wrong_type_is_corrupt(tmp_path: Path, name: str, value: object) -> None:
    path = tmp_path / "figures.json"
    write_figures(path, [ORIGIN.figure("rate", 1, "s")])
    entries = json.loads(path.read_text(encoding="utf-8"))
    entries[0][name] = value
    path.write_text(json.dumps(entries), encoding="utf-8")
    with pytest.raises(Corrupt, match=name):
        read_figures(path)


def test_a_spread_gives_the_extremes_and_how_many_there_were() -> None:
    assert spread_text([0.25, 0.125, 12345.6]) == "0.125..12,346, n=3"
    with pytest.raises(InvalidInput):
        spread_text([])


def test_never_is_given_with_its_bound() -> None:
    assert count_text(0, 120) == "0 of 120, rate below 2.5 % (3/n)"
    assert count_text(0, 2) == "0 of 2, rate below 100 % (3/n)"


def test_sometimes_is_given_as_a_rate() -> None:
    assert count_text(3, 120) == "3 of 120, 2.5 %"


@pytest.mark.parametrize(("num_events", "num_trials"), [(0, 0), (3, 2), (-1, 2)])
def test_a_count_that_cannot_be_is_refused(num_events: int, num_trials: int) -> None:
    with pytest.raises(InvalidInput):
        count_text(num_events, num_trials)


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.98765, "0.9877"), (999.94, "999.9"), (100000, "100,000"), (-1.5e-6, "-1.5e-06")]
)
def test_numbers_are_short_and_readable(value: float, text: str) -> None:
    assert format_value(value) == text


def test_a_command_is_shown_as_it_could_be_typed_again() -> None:
    assert command_text(["/some/where/bin/siltstone", "chat", "--user", "two words"]) == (
        "siltstone chat --user 'two words'"
    )
    assert command_text([]) == ""


def test_a_date_is_utc_wherever_it_was_taken() -> None:
    moment = datetime(2026, 3, 1, 1, 30, 15, 999, tzinfo=timezone(timedelta(hours=2)))
    assert date_text(moment) == "2026-02-28T23:30:15+00:00"


def test_the_hardware_names_an_accelerator_only_when_there_is_one() -> None:
    assert hardware_text("a GPU") == f"{hardware_text()}, a GPU"
    assert "core" in hardware_text()
    assert "GiB memory" in hardware_text()


def test_a_commit_is_known_in_a_checkout_and_marked_when_files_differ(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "code.py").write_text("x = 1\n", encoding="utf-8")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-q", "-m", "first")
    commit = git(tmp_path, "rev-parse", "--short=12", "HEAD")
    assert commit_id(tmp_path) == commit
    (tmp_path / "code.py").write_text("x = 2\n", encoding="utf-8")
    assert commit_id(tmp_path) == f"{commit}+"


def test_a_copy_outside_git_or_untracked_in_it_has_no_commit(tmp_path: Path) -> None:
    assert commit_id(tmp_path) == "unknown"
    git(tmp_path, "init", "-q")
    (tmp_path / "code.py").touch()
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-q", "-m", "first")
    installed = tmp_path / "site-packages"
    installed.mkdir()
    (installed / "copy.py").touch()
    assert commit_id(installed) == "unknown"


def test_an_observed_origin_fills_every_field_of_a_figure() -> None:
    figure = observe_origin("a GPU").figure("rate", 1.0, "s")
    assert isinstance(figure, Figure)
    assert all((figure.command, figure.commit, figure.hardware.endswith(", a GPU"), figure.date.endswith("+00:00")))
