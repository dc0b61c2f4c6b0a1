"""`siltstone up` as anybody starts it, over a tiny core, and every command spoken to it."""

from __future__ import annotations

import json
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from server_process import start, up
from tiny_home import add_tiny_core, write_config
from typer.testing import CliRunner, Result

from siltstone.adapters.core_store import CoreStore
from siltstone.evaluation.figures import read_figures
from siltstone_services.cli import app
from siltstone_services.export_archive import read_archive

Run = Callable[..., Result]

IRC_LOG = """\
[08:00] <maya> good morning, does anybody know why the printer is offline
[08:01] <noor> maya: the cable was pulled, I plugged it in again
=== olaf has joined #office
[08:05] <maya> noor: thank you, it prints
[08:09] <olaf> the depot closes at five today
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    add_tiny_core(folder)
    write_config(folder)
    return folder


@pytest.fixture(scope="module")
def served(home: Path) -> Iterator[Path]:
    with up(home):
        yield home


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SILTSTONE_HOME", "SILTSTONE_ADDRESS", "SILTSTONE_USER", "SILTSTONE_TENANT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)


def speak(home: Path, *words: str, **more: str) -> Result:
    return CliRunner().invoke(app, ["--home", str(home), *words], **more)


@pytest.fixture
def run(served: Path, words: None) -> Run:
    return lambda *words, **more: speak(served, *words, **more)


def answer_of(result: Result) -> str:
    assert result.exit_code == 0, result.stderr
    return result.stdout


def memory_facts(result: Result) -> str:
    return " ".join(answer_of(result).split())


def test_what_is_recorded_changes_the_answers_of_that_user_only(run: Run) -> None:
    before = {user: answer_of(run("chat", "-u", user, "-m", "Where do I live?")) for user in ("ada", "ben")}
    recorded = run("record", "-u", "ada", "I live in Oslo, near the old harbour. My dog is called Ferro.")
    assert recorded.stdout.startswith("absorbed 1 interaction; journal partition")
    after = run("chat", "-u", "ada", "-m", "Where do I live?")
    assert answer_of(after) != before["ada"]
    assert "· snapshot 1 ·" in after.stderr
    assert answer_of(run("chat", "-u", "ben", "-m", "Where do I live?")) == before["ben"]
    assert answer_of(run("chat", "-u", "ada", "-m", "Where do I live?", "--core-only")) == before["ada"]
    recalled = run("chat", "-u", "ada", "-m", "What is my dog called?", "--recall", "both")
    assert recalled.exit_code == 0
    assert "1 line recalled" in recalled.stderr


def test_a_talk_with_consent_is_learned_and_one_without_is_not(run: Run) -> None:
    assert "recorded" in run("chat", "-u", "cleo", "-m", "I like the early train.", "--consent").stderr
    assert "recorded" not in run("chat", "-u", "cleo", "-m", "I like the late train.", "--no-consent").stderr
    given = run("feedback", "-u", "cleo", "--kind", "up", "--question", "When?", "--answer", "Early.")
    assert given.stdout.startswith("absorbed 1 interaction;")
    assert "2 interactions" in answer_of(run("chat", "-u", "cleo", "--no-consent", input="/memory\n"))


@pytest.mark.parametrize("kind", ["correction", "up", "down"])
def test_feedback_of_every_kind_is_learned(run: Run, kind: str) -> None:
    correction = ["--correction", "At nine."] if kind == "correction" else []
    exchange = ["--question", "When does the depot open?", "--answer", "At seven."]
    given = run("feedback", "-u", f"dora-{kind}", "--kind", kind, *exchange, *correction)
    assert given.stdout.startswith("absorbed 1 interaction;")
    assert "interactions 1" in memory_facts(run("memory", "-u", f"dora-{kind}"))


def test_a_memory_is_described_without_its_content(run: Run) -> None:
    run("record", "-u", "emil", "My dog is called Ferro and he is nine years old.")
    told = memory_facts(run("memory", "-u", "emil"))
    assert "interactions 1" in told
    assert all(level in told for level in ("fast", "mid"))
    assert "Ferro" not in told


def test_an_export_holds_everything_and_forgetting_leaves_nothing(run: Run, tmp_path: Path) -> None:
    run("record", "-u", "fay", "My dog is called Ferro.")
    assert run("export", "-u", "fay").exit_code == 0
    files = read_archive(tmp_path / "fay.zip")
    assert json.loads(files["card.json"])["num_interactions"] == 1
    assert b"Ferro" in files["journal.jsonl"]
    assert b"Ferro" in files["snapshot.bin"]
    bare = answer_of(run("chat", "-u", "fay", "-m", "Hello", "--core-only"))
    assert answer_of(run("forget", "-u", "fay", "--yes")) == "forgot local/fay: the memory and 1 interaction\n"
    assert answer_of(run("forget", "-u", "fay", "--yes")) == "forgot local/fay: no memory and 0 interactions\n"
    assert answer_of(run("chat", "-u", "fay", "-m", "Hello")) == bare
    assert run("export", "-u", "fay", "--force").exit_code == 0
    files = read_archive(tmp_path / "fay.zip")
    assert "snapshot.bin" not in files
    assert files["journal.jsonl"] == files["parked.jsonl"] == b""


def test_other_peoples_data_is_replayed_and_absorbed(run: Run, tmp_path: Path) -> None:
    lines = [{"user": f"hal{n % 3}", "text": f"Parcel {n} went to depot {n % 5}."} for n in range(12)]
    text = "\n".join(map(json.dumps, lines))
    (tmp_path / "lines.jsonl").write_text(f"{text}\nnot json\n")
    (tmp_path / "2026-01-05-#office.raw.txt").write_text(IRC_LOG)
    jsonl = run("replay", "lines.jsonl", "--from", "jsonl", "--wait", "--json", "jsonl.json")
    irc = run("replay", "2026-01-05-#office.raw.txt", "--from", "irc", "--wait", "--json", "irc.json")
    assert (jsonl.exit_code, irc.exit_code) == (0, 0), (jsonl.stderr, irc.stderr)
    for name, num_recorded, num_users in (("jsonl.json", 12, 3), ("irc.json", 4, 3)):
        figures = {figure.name: figure.value for figure in read_figures(tmp_path / name)}
        assert figures["replay recorded"] == num_recorded
        assert figures["replay users"] == num_users
        assert figures["replay parked"] == 0
        assert figures["replay absorbed tokens rate"] > 0
    assert "interactions 4" in memory_facts(run("memory", "-u", "hal0", "--tenant", "replay"))
    again = run("replay", "lines.jsonl", "--from", "jsonl", "--wait", "--json", "again.json")
    assert again.exit_code == 0
    figures = {figure.name: figure.value for figure in read_figures(tmp_path / "again.json")}
    assert (figures["replay recorded"], figures["replay duplicates"]) == (0, 12)


@pytest.mark.usefixtures("words")
def test_an_export_of_a_damaged_memory_has_all_the_rest_and_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    add_tiny_core(folder)
    write_config(folder)
    assert speak(folder, "record", "-u", "ada", "--embedded", "I live in Oslo.").exit_code == 0
    with sqlite3.connect(folder / "siltstone.db") as connection:
        connection.execute("UPDATE snapshot_blob SET blob = zeroblob(length(blob))")
    connection.close()
    exported = speak(folder, "export", "-u", "ada", "--embedded")
    assert exported.exit_code == 6
    assert "no snapshot (damaged), 1 journal record, 0 parked" in exported.stdout
    assert "memory of local/ada is damaged: expected sha256" in exported.stderr
    files = read_archive(tmp_path / "ada.zip")
    assert b"Oslo" in files["journal.jsonl"]
    assert json.loads(files["manifest.json"])["snapshot_damage"]["what"] == "memory of local/ada"


def test_a_question_too_long_for_the_core_is_refused_in_one_line(run: Run) -> None:
    refused = run("chat", "-u", "ian", "-m", "long " * 300)
    assert refused.exit_code == 3
    assert refused.stderr.splitlines()[-1].startswith("siltstone: messages: expected 1 to 511 tokens, found")


def test_a_core_that_is_served_stays_and_another_may_go(run: Run, served: Path) -> None:
    digest = CoreStore(served).resolve("tiny")
    refused = run("core", "remove", "tiny", "--yes")
    assert refused.exit_code == 5
    assert f"the removal of core {digest[:12]} is unavailable: process " in refused.stderr
    assert CoreStore(served).resolve("tiny") == digest
    other = add_tiny_core(served, seed=8, name="other")
    assert run("core", "remove", "other", "--yes").exit_code == 0
    assert [listing.digest for listing in CoreStore(served).list()] == [digest] != [other]


def test_a_second_server_on_a_home_is_refused_before_it_loads_anything(run: Run) -> None:
    refused = run("up", "--port", "0")
    assert refused.exit_code == 5
    assert "uses it" in refused.stderr
    assert "loading" not in refused.stderr


@pytest.mark.usefixtures("words")
def test_a_server_lets_its_answer_end_when_told_to_stop_and_comes_back_after_a_kill(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    add_tiny_core(folder)
    write_config(folder)
    asked = ("chat", "-u", "ada", "-m", "Where do I live?", "--max-tokens", "40")
    with up(folder) as (process, log):
        assert speak(folder, "record", "-u", "ada", "I live in Oslo.").exit_code == 0
        taught = answer_of(speak(folder, *asked))
        with start(folder, "chat", "-u", "ada", "-m", "Tell me.", "--max-tokens", "400") as talk:
            assert talk.stdout is not None
            talk.stdout.read(1)
            process.send_signal(signal.SIGTERM)
            _, end = talk.communicate(timeout=60)
            assert talk.returncode == 0, end
            assert "· snapshot 1 · 400 tokens" in end
        assert process.wait(30) == 0
    assert any('"shard stopped", "num_waiting": 0' in line for line in log), log
    assert any('"gateway stopped"' in line and '"num_given_up": 0' in line for line in log), log
    with up(folder) as (process, _):
        assert answer_of(speak(folder, *asked)) == taught
        assert speak(folder, "record", "-u", "ada", "--no-wait", "My dog is called Ferro.").exit_code == 0
        process.kill()
        process.wait()
        gone = speak(folder, "memory", "-u", "ada")
        assert gone.exit_code == 2
        assert "Start one with `siltstone up`" in gone.stderr
    with up(folder):
        assert speak(folder, "record", "-u", "ada", "And a cat.").exit_code == 0
        assert "interactions 3" in memory_facts(speak(folder, "memory", "-u", "ada"))
