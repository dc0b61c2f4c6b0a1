"""Nights in a process of their own: what they come to, and what becomes of their errors and of the process."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
from tiny_home import add_tiny_core, tiny_config
from tiny_night import SETTINGS, exam, make_home

from siltstone.errors import InvalidInput, Unavailable
from siltstone_services.night_apart import NightsApart
from siltstone_services.version_records import open_registry


def test_a_night_apart_is_recorded_and_an_error_of_one_before_is_raised_here(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    add_tiny_core(tmp_path / "empty")
    (tmp_path / "told").mkdir()
    config = tiny_config(make_home(tmp_path / "told"), SETTINGS)
    said: list[str] = []
    steps: list[None] = []

    with NightsApart() as nights:
        with pytest.raises(InvalidInput):
            nights.sleep(tiny_config(tmp_path / "empty", SETTINGS), exam(), said.append, lambda: None)
        slept = nights.sleep(config, exam(), said.append, lambda: steps.append(None))
        again = nights.sleep(config, exam(accepts=False), said.append, lambda: None)

    assert len(steps) == config.sleep.distil.num_steps
    assert slept.num_dreams
    assert said
    with open_registry(config) as registry:
        assert [(one.number, one.digest == slept.core) for one in registry.list()] == [
            (1, True),
            (slept.version, False),
        ]
    # The same plan and the same learning: the version that is there.
    assert again == slept
    assert not multiprocessing.active_children()


def test_a_process_that_is_killed_is_told_of(tmp_path: Path) -> None:
    config = tiny_config(make_home(tmp_path), SETTINGS)

    def kill(_: str) -> None:
        for process in multiprocessing.active_children():
            process.kill()

    with NightsApart() as nights, pytest.raises(Unavailable, match="the process of the night"):
        nights.sleep(config, exam(), kill, lambda: None)
    assert not multiprocessing.active_children()
