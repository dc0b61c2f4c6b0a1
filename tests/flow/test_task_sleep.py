"""A sleep over a task: from a file that the operator names to a version that the gate has judged."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_home import add_tiny_core, is_registry_open, tiny_config, write_config
from typer.testing import CliRunner

from siltstone.adapters.core_store import CoreStore
from siltstone.errors import InvalidInput
from siltstone.sleep.tasks import Task, read_task
from siltstone.sleep_values import VersionState
from siltstone_services.cli import app
from siltstone_services.night import make_bed
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
name = "harbour"
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
    return run_task(config, task, 1, lambda _: None, lambda *_: None, lambda _: None)


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
