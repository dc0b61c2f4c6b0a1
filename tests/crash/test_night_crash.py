"""A night killed at any step: what serves is untouched, nothing is half published, and the night run again is one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
from night_worker import SETTINGS
from tiny_home import tiny_config
from tiny_night import make_home, sleep, state_of

from siltstone.errors import Corrupt
from siltstone.sleep_values import VersionState
from siltstone_services import keeping, night

WORKER = Path(__file__).with_name("night_worker.py")
STEPS = [
    "night.planned",
    "night.dreamt",
    "night.distilled",
    "night.kept",
    "night.measured",
    "night.recorded",
    "night.judged",
    "keeping.refused",
    "keeping.discarded",
    "keeping.removed",
]
WITHIN = [
    "change.states_written:1",
    "change.champion_written:1",
    "change.states_written:2",
    "change.champion_written:2",
    "mirror.uploaded:1",
]
"""Points inside the steps that record (1) and judge (2)."""

Run = Callable[..., int]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home that has a champion, its first core, and a version that waits."""
    folder = make_home(tmp_path_factory.mktemp("killed"))
    sleep(folder, seed=0)
    return folder


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(WORKER.parent.parent), *sys.path])}
    with subprocess.Popen(
        [sys.executable, str(WORKER)], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        sent, told = worker.stdin, worker.stdout

        def ended(task: str, home: Path, fault: str, seed: int = 0) -> int:
            sent.write(f"{task} {home} {fault} {seed}\n")
            sent.flush()
            return int(told.readline())

        yield ended
        sent.close()


def test_every_step_of_a_night_has_its_fault_point() -> None:
    sources = "".join(Path(str(module.__file__)).read_text() for module in (night, keeping))
    assert sorted(re.findall(r'fault_point\("(.+?)"\)', sources)) == sorted(STEPS)


_seeds = count(1)


EVERY_DAY = ("night.distilled:1", "night.recorded:1", "keeping.discarded:1", "mirror.uploaded:1")
"""Where a night is killed in the everyday run; everywhere else in the slow one."""


@pytest.mark.parametrize(
    "point",
    [
        pytest.param(point, marks=() if point in EVERY_DAY else pytest.mark.slow)
        for point in (*(f"{step}:1" for step in STEPS), *WITHIN)
    ],
)
def test_a_night_killed_anywhere_leaves_what_serves_and_run_again_is_one_version(
    home: Path, run: Run, point: str
) -> None:
    seed, before = next(_seeds), state_of(home)
    assert before["champion"] is not None

    assert run("night", home, point, seed) == -signal.SIGKILL

    after = state_of(home)
    assert (after["champion"], after["default"]) == (before["champion"], before["default"])
    assert after["versions"][: len(before["versions"])] == before["versions"]
    added = after["versions"][len(before["versions"]) :]
    assert len(added) <= 1
    assert all(state in (VersionState.CANDIDATE, VersionState.REFUSED) for _, _, state, _ in added)

    done = sleep(home, seed, accepts=False, settings=SETTINGS)

    last = state_of(home)
    assert last["champion"] == before["champion"]
    assert [one for one in last["versions"] if one[3] == done.plan.id] == [
        (done.version.number, done.version.digest, VersionState.REFUSED, done.plan.id)
    ]
    assert last["cores"] == before["cores"]
    assert not [*home.rglob(".incoming-*"), *home.rglob(".leaving-*")]


def test_a_candidate_of_a_killed_night_that_never_ran_again_is_refused_by_the_next(home: Path, run: Run) -> None:
    left, next_one = next(_seeds), next(_seeds)
    num_before = len(state_of(home)["versions"])
    assert run("night", home, "night.recorded:1", left) == -signal.SIGKILL
    assert state_of(home)["versions"][-1][2] is VersionState.CANDIDATE

    sleep(home, next_one, accepts=False, settings=SETTINGS)

    assert [state for _, _, state, _ in state_of(home)["versions"][num_before:]] == [VersionState.REFUSED] * 2
    with night.open_registry(tiny_config(home)) as registry:
        verdict = registry.list()[num_before].verdict
    assert verdict is not None
    assert "ended before the gate judged" in verdict.results[0].reason


def test_a_night_that_is_not_killed_ends(home: Path, run: Run) -> None:
    assert run("night", home, "no.such.point:1", next(_seeds)) == 0


def test_a_writer_that_works_where_a_core_lies_is_caught_half_way(tmp_path: Path, run: Run) -> None:
    """The control: were a night to write like this, the tests above would see it."""
    home = make_home(tmp_path)
    sleep(home)
    state_of(home)

    assert run("careless", home, "careless.half:1") == -signal.SIGKILL

    with pytest.raises(Corrupt):
        state_of(home)
