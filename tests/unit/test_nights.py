"""What is known of nights: one at a time, told as it is, whatever became of its process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from siltstone.adapters.system_clock import SystemClock
from siltstone.errors import NotFound, WrongState
from siltstone.sleep_values import NightStage
from siltstone_services.nights import HeldNight, NightCancelled, Nights

SLEEPER = """
import sys, time
from pathlib import Path
from siltstone.adapters.system_clock import SystemClock
from siltstone.sleep_values import NightStage
from siltstone_services.nights import Nights
held = Nights(Path(sys.argv[1]), SystemClock(), 9).begin(0, 0)
held.at(NightStage.DISTIL, 3, 10)
print("sleeps", flush=True)
time.sleep(600)
"""


def nights_of(home: Path, max_kept: int = 9) -> Nights:
    return Nights(home, SystemClock(), max_kept)


@pytest.fixture
def held(tmp_path: Path) -> Iterator[HeldNight]:
    held = nights_of(tmp_path).begin(5, 7)
    yield held
    held.close()


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of a night."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    command = [sys.executable, "-c", SLEEPER, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "sleeps\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_night_is_told_as_its_holder_left_it(tmp_path: Path, held: HeldNight) -> None:
    held.at(NightStage.DISTIL, 0, 10)
    held.say("half of it")
    seen = nights_of(tmp_path).get(1)
    assert (seen.stage, seen.num_steps, seen.said) == (NightStage.DISTIL, 10, "half of it")
    assert (seen.seed, seen.since_ms, seen.pid, seen.is_over) == (5, 7, os.getpid(), False)
    held.end(NightStage.DONE, version=3, verdict="accepted")
    seen = nights_of(tmp_path).get(1)
    assert (seen.stage, seen.version, seen.verdict, seen.is_over) == (NightStage.DONE, 3, "accepted", True)


def test_steps_are_told_soon_and_not_each_one(tmp_path: Path, held: HeldNight) -> None:
    for step in range(200):
        held.at(NightStage.DISTIL, step, 1000)
    assert nights_of(tmp_path).get(1).step < 200
    while nights_of(tmp_path).get(1).step < 200:
        held.at(NightStage.DISTIL, 200, 1000)
        time.sleep(0.01)


def test_two_nights_at_once_are_refused(tmp_path: Path) -> None:
    held = nights_of(tmp_path).begin(0, 0)
    with pytest.raises(WrongState, match="night 1 is running: not to begin a second beside it"):
        nights_of(tmp_path).begin(0, 0)
    held.end(NightStage.CANCELLED)
    held.close()
    second = nights_of(tmp_path).begin(0, 0)
    assert second.night.number == 2
    second.close()


def test_a_night_whose_process_was_killed_has_failed(tmp_path: Path, sleeper: subprocess.Popen[str]) -> None:
    running = nights_of(tmp_path).running()
    assert running is not None
    assert (running.number, running.pid, running.stage) == (1, sleeper.pid, NightStage.DISTIL)
    sleeper.send_signal(signal.SIGKILL)
    sleeper.wait()
    died = nights_of(tmp_path).get(1)
    assert (died.stage, died.error, died.is_over) == (NightStage.FAILED, "its process died", True)
    assert nights_of(tmp_path).running() is None
    with pytest.raises(WrongState, match="failed"):
        nights_of(tmp_path).cancel(1)
    second = nights_of(tmp_path).begin(0, 0)
    # A night that runs does not bring the dead one back.
    assert nights_of(tmp_path).get(1).stage is NightStage.FAILED
    assert second.night.number == 2
    second.close()


@pytest.mark.parametrize("by_signal", [False, True])
def test_a_night_that_is_asked_to_ends_at_its_next_step(tmp_path: Path, held: HeldNight, by_signal: bool) -> None:
    held.at(NightStage.DISTIL, 1, 10)
    if by_signal:
        held.tell_to_end()
    else:
        assert nights_of(tmp_path).cancel(1).is_cancelling
        assert nights_of(tmp_path).cancel(1) == nights_of(tmp_path).get(1)
    for step in (lambda: held.at(NightStage.DISTIL, 2, 10), lambda: held.at(NightStage.RECORD), lambda: held.say("x")):
        with pytest.raises(NightCancelled, match="night 1 was cancelled"):
            step()
    assert nights_of(tmp_path).get(1).stage is NightStage.DISTIL


@pytest.mark.parametrize("stage", [NightStage.RECORD, NightStage.JUDGE])
def test_a_night_that_records_is_not_ended(tmp_path: Path, held: HeldNight, stage: NightStage) -> None:
    held.at(stage)
    with pytest.raises(WrongState, match="recording what came of it"):
        nights_of(tmp_path).cancel(1)
    held.tell_to_end()
    held.at(NightStage.JUDGE)


def test_only_the_newest_nights_are_kept(tmp_path: Path) -> None:
    for _ in range(5):
        held = nights_of(tmp_path, max_kept=2).begin(0, 0)
        nights_of(tmp_path).log_path(held.night.number).touch()
        nights_of(tmp_path).cancel(held.night.number)
        held.end(NightStage.CANCELLED)
        held.close()
    assert [night.number for night in nights_of(tmp_path).list()] == [4, 5]
    left = sorted(path.name for path in (tmp_path / "nights").iterdir())
    assert left == [".lock", *(f"00000{number}.{end}" for number in (4, 5) for end in ("cancel", "json", "log"))]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": 2}', '{"schema": 1, "stage": "x"}'])
def test_a_damaged_state_is_told_and_hides_no_other(tmp_path: Path, content: str) -> None:
    for _ in range(2):
        held = nights_of(tmp_path).begin(0, 0)
        held.end(NightStage.CANCELLED)
        held.close()
    (tmp_path / "nights" / "000001.json").write_text(content)
    first, second = nights_of(tmp_path).list()
    assert first.stage is NightStage.FAILED
    assert "cannot be read" in first.error
    assert second.stage is NightStage.CANCELLED


def test_what_is_not_there_is_not_found(tmp_path: Path) -> None:
    assert nights_of(tmp_path).list() == ()
    assert nights_of(tmp_path).running() is None
    for ask in (nights_of(tmp_path).get, nights_of(tmp_path).cancel):
        with pytest.raises(NotFound, match="no such night: 3"):
            ask(3)
