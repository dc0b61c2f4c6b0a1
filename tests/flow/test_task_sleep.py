"""A sleep over a task: from a file that the operator names to a version that the gate has judged."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_home import add_tiny_core, is_registry_open, tiny_config, write_config
from tiny_night import exam, state_of
from typer.testing import CliRunner, Result

from siltstone.adapters.core_store import CoreStore
from siltstone.errors import InvalidInput
from siltstone.sleep.tasks import Task, read_task
from siltstone.sleep_values import NightStage, VersionState
from siltstone_services.cli import app
from siltstone_services.night import make_bed
from siltstone_services.nights import NightCancelled
from siltstone_services.served import record_origin
from siltstone_services.task_sleep import TaskDone, exchanges_of, run_task
from siltstone_services.version_records import open_registry

SETTINGS = {
    "sleep.distil.num_steps": 6,
    "sleep.sampling.min_words": 1,
    "sleep.task.num_rounds": 2,
    "sleep.task.num_dreams": 12,
    "sleep.task.num_kept": 6,
    "sleep.task.num_steps": 2,
    "sleep.task.dreamer_steps": 2,
    "sleep.task.rate": 0.03,
    "sleep.task.min_gain_nats": 0.0,
}
FILE = """
name = "the [red] harbour"
context = "{context}"

[[questions]]
question = "How many lamps?"
answer = "two"
wrong = ["nine"]

[[questions]]
question = "Which colour?"
stem = "It is"
answer = "green"
wrong = ["brown", "white"]
held_out = true
"""


def a_task(context: str = "Two green lamps light the harbour.") -> Task:
    return read_task(FILE.format(context=context).encode())


def sleep_over(home: Path, task: Task, settings: dict[str, object]) -> TaskDone:
    config = tiny_config(home, {**SETTINGS, **settings})
    return run_task(config, task, 1, lambda _: None, lambda _: None)


@pytest.fixture(scope="module")
def slept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TaskDone]:
    home = tmp_path_factory.mktemp("task")
    add_tiny_core(home)
    return home, sleep_over(home, a_task(), {})


def test_a_task_ends_in_a_version_that_names_it_and_no_user(slept: tuple[Path, TaskDone]) -> None:
    home, done = slept

    assert len(done.rounds) == 2
    assert any(one.rewarded for one in done.rounds)
    assert (done.before.num_questions, done.after.num_questions) == (1, 1)
    assert done.after.nats != done.before.nats
    lineage = done.version.lineage
    assert lineage.config["task"] == done.task.digest
    assert (lineage.contributors, lineage.positions) == ((), {})
    # Nobody's secrets are there to be asked for: a gate that misses evidence refuses.
    assert done.version.state is VersionState.REFUSED
    assert done.version.verdict is not None
    with open_registry(tiny_config(home)) as registry:
        origin, candidate = registry.list()
        champion = registry.champion()
    assert candidate == done.version
    # What served goes on serving.
    assert champion is not None
    assert champion.digest == origin.digest == lineage.parent
    assert CoreStore(home).default() == lineage.parent


def test_where_no_dream_helps_nothing_is_recorded(tmp_path: Path) -> None:
    digest = add_tiny_core(tmp_path)
    with open_registry(tiny_config(tmp_path)) as registry:
        record_origin(registry, tmp_path / "cores" / digest, "test")
        versions = registry.list()

    with pytest.raises(InvalidInput, match="a dream of the core that helps") as ended:
        sleep_over(tmp_path, a_task(), {"sleep.task.min_gain_nats": 1e6})
    assert ended.value
    assert not is_registry_open(tmp_path)
    with open_registry(tiny_config(tmp_path)) as registry:
        assert registry.list() == versions


def test_a_task_that_was_cancelled_at_any_stage_leaves_nothing_and_can_be_run_again(tmp_path: Path) -> None:
    add_tiny_core(tmp_path)
    config = tiny_config(tmp_path, SETTINGS)
    before = state_of(tmp_path)
    stages: dict[NightStage, int] = {}

    def sleep_until(last: NightStage | None) -> TaskDone:
        stages.clear()

        def at(stage: NightStage, step: int, num_steps: int) -> None:
            assert step <= num_steps or not num_steps
            stages[stage] = step
            # Where steps are counted, behind one of them.
            if stage is last and (step or not num_steps):
                raise NightCancelled(1)

        return run_task(config, a_task(), 1, lambda _: None, lambda _: None, at, exam=exam())

    begun = [NightStage.PLAN, NightStage.DREAM, NightStage.DISTIL, NightStage.MEASURE, NightStage.RECORD]
    for place, stage in enumerate(begun):
        with pytest.raises(NightCancelled):
            sleep_until(stage)
        assert list(stages) == begun[: place + 1]
        now = state_of(tmp_path)
        assert {**now, "cores": before["cores"]} == before
    done = sleep_until(None)
    assert list(stages) == [*begun, NightStage.JUDGE]
    assert stages[NightStage.DISTIL] == 6
    assert done.version.state is VersionState.ACCEPTED
    assert state_of(tmp_path)["cores"] == sorted([*before["cores"], done.version.digest])


def test_what_a_cancelled_task_has_kept_is_cleared_away_by_the_next(tmp_path: Path) -> None:
    add_tiny_core(tmp_path)
    config = tiny_config(tmp_path, SETTINGS)

    def at(stage: NightStage, *_: int) -> None:
        if stage is NightStage.MEASURE:
            raise NightCancelled(1)

    with pytest.raises(NightCancelled):
        run_task(config, a_task(), 1, lambda _: None, lambda _: None, at)
    assert len(CoreStore(tmp_path).list()) == 2

    done = run_task(config, a_task("Two brown lamps."), 1, lambda _: None, lambda _: None, exam=exam())

    assert {core.digest for core in CoreStore(tmp_path).list()} == {done.version.digest, done.version.lineage.parent}


def test_the_command_line_runs_a_task_and_tells_what_came_of_it(slept: tuple[Path, TaskDone]) -> None:
    home, done = slept
    write_config(home, SETTINGS)
    file = home / "task.toml"
    file.write_text(FILE.format(context=done.task.context))

    def speak(*words: str) -> Result:
        return CliRunner().invoke(app, ["--home", str(home), *words], env={"COLUMNS": "200"})

    ran = speak("sleep", "task", str(file), "--seed", "1")

    assert ran.exit_code == 0, ran.output
    assert "round 2: " in ran.stderr
    # The same task again is the same version.
    assert f"version {done.version.number}: refused\nquestions held out: " in ran.stdout
    assert "the [red] harbour  done" in speak("sleep", "status").stdout
    assert "questions held out: " in speak("sleep", "status", "1").stdout


def test_a_text_that_does_not_fit_the_core_is_refused(tmp_path: Path) -> None:
    add_tiny_core(tmp_path)

    with pytest.raises(InvalidInput, match="context"):
        sleep_over(tmp_path, a_task("Lamps. " * 200), {})


def test_a_dream_teaches_its_answer_or_its_sentences(tmp_path: Path) -> None:
    add_tiny_core(tmp_path)
    config = tiny_config(tmp_path)
    loaded = CoreStore(tmp_path).load(config.core)
    bed = make_bed(config, loaded)

    def told(text: str) -> list[str]:
        return [loaded.tokenizer.decode(lesson.ids) for lesson in exchanges_of(text, bed, "seed")]

    (asked,) = told("Question: How many lamps are there?\nAnswer: There are two lamps.")
    assert "How many lamps are there?" in asked
    assert "There are two lamps." in asked
    assert "nswer:" not in asked
    restated = told("Two lamps light it. Both lamps are green.")
    assert ["Two lamps light it." in restated[0], "Both lamps are green." in restated[1]] == [True, True]
    assert told("Lamps.") == []


def test_a_bad_file_is_refused_on_the_command_line(tmp_path: Path) -> None:
    add_tiny_core(tmp_path)
    write_config(tmp_path)
    bad = tmp_path / "task.toml"
    bad.write_text(FILE.format(context="").replace("wrong", "wrongs"))

    for file, reason in ((bad, "context"), (tmp_path / "missing.toml", "missing.toml")):
        result = CliRunner().invoke(app, ["--home", str(tmp_path), "sleep", "task", str(file)])

        assert result.exit_code != 0
        assert reason in result.output
