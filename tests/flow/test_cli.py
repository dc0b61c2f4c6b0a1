"""The commands, against a real server in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from echo_host import UNLEARNABLE, EchoHost
from server_process import echo_server
from typer.testing import CliRunner, Result

from siltstone.errors import Unavailable
from siltstone.evaluation.figures import read_figures
from siltstone.journal.sources import SOURCES
from siltstone_services.cli import app
from siltstone_services.cli.feeding import SourceKind
from siltstone_services.client import SiltstoneClient
from siltstone_services.export_archive import read_archive
from siltstone_services.gateway import Gateway

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("home")
    with echo_server(folder):
        yield folder


@pytest.fixture
def run(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    for name in ("SILTSTONE_HOME", "SILTSTONE_ADDRESS", "SILTSTONE_USER", "SILTSTONE_TENANT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    return lambda *words, **more: CliRunner().invoke(app, ["--home", str(home), *words], **more)


def test_what_is_recorded_is_in_the_next_answer_of_that_user_only(run: Run) -> None:
    recorded = run("record", "-u", "ada", "seven")
    assert recorded.stdout.startswith("absorbed 1 interaction; journal partition")
    answered = run("chat", "-u", "ada", "-m", "When?")
    assert (answered.exit_code, answered.stdout) == (0, "When? seven \n")
    assert answered.stderr == "core echo-core · snapshot 1 · 2 tokens\n"
    assert run("chat", "-u", "ben", "-m", "When?").stdout == "When? \n"
    assert run("chat", "-u", "ada", "-m", "When?", "--core-only").stdout == "When? \n"


def test_one_message_is_learned_only_with_consent(run: Run) -> None:
    assert "recorded" not in run("chat", "-u", "cleo", "-m", "Hello").stderr
    assert "recorded" not in run("chat", "-u", "cleo", "-m", "Hello", "--no-consent").stderr
    assert "recorded" in run("chat", "-u", "cleo", "-m", "Hello", "--consent").stderr


def test_a_talk_asks_for_consent_once_and_learns_corrections(run: Run) -> None:
    talk = run("chat", "-u", "dora", input="yes\nWhen?\n/correct At seven.\n/up\n/memory\n/new\nWhen?\n/quit\n")
    assert talk.exit_code == 0
    assert talk.stdout.count("May your memory learn") == 1
    assert talk.stdout.count("learned") == 2
    # The exchange, the correction and the thumb.
    assert "snapshot 3, 3 interactions" in talk.stdout
    assert "When? When? At seven." in talk.stdout


def test_a_talk_without_consent_learns_nothing(run: Run) -> None:
    talk = run("chat", "-u", "emil", input="n\nWhen?\n/correct At seven.\n/down\n/memory\n")
    assert talk.exit_code == 0
    assert talk.stderr.count("expected your consent to learn from this conversation") == 2
    assert "snapshot 0, 0 interactions" in talk.stdout


def test_a_talk_goes_on_after_a_line_that_is_refused(run: Run) -> None:
    talk = run("chat", "-u", "fay", "--no-consent", input="/dance\n/up\n" + "word " * 600 + "\n/help\nStill there?\n")
    assert talk.exit_code == 0
    assert "command: expected one that /help names, found /dance" in talk.stderr
    assert "/thumb_up: expected an answer to be about, found none yet" in talk.stderr
    assert "messages: expected at most 500 words, found 600" in talk.stderr
    assert "Still there?" in talk.stdout.replace("> ", "")


def test_an_answer_cannot_reach_the_terminal(run: Run) -> None:
    answered = run("chat", "-u", "gil", "-m", "red \x1b[31m[bold]text[/bold]\x07")
    assert answered.stdout == "red [31m[bold]text[/bold] \n"


def test_a_file_is_recorded_once_in_pieces(run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("\n\n".join(f"Paragraph {n}. " + "word " * 400 for n in range(20)))
    first = run("record", "-u", "hal", "--file", "notes.txt", "--no-wait")
    assert first.stdout.startswith("recorded 20 interactions; ")
    again = run("record", "-u", "hal", "--file", "notes.txt")
    known = "20 known already, or forgotten since; --again learns it anew"
    assert again.stdout.startswith(f"absorbed 0 interactions, {known}; ")


def test_a_text_said_again_under_its_id_is_recorded_once(run: Run) -> None:
    told = ("record", "-u", "hana", "The depot opens at six.")
    assert run(*told, "--id", "depot-1").stdout.startswith("absorbed 1 interaction; ")
    known = "1 known already, or forgotten since; another --id learns it anew"
    assert run(*told, "--id", "depot-1").stdout.startswith(f"absorbed 0 interactions, {known}; ")
    assert run(*told, "--id", "depot-2").stdout.startswith("absorbed 1 interaction; ")
    for words in (["--file", "notes.txt", "--id", "depot-3"], ["Six.", "--id", "no spaces"]):
        assert run("record", "-u", "hana", *words).exit_code == 3


def test_a_text_that_may_be_recorded_is_told_with_its_id(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def dies_after_recording(self: SiltstoneClient, *_: object, **__: object) -> None:
        raise Unavailable("the server", "the connection was lost")

    monkeypatch.setattr(SiltstoneClient, "record", dies_after_recording)
    failed = run("record", "-u", "hana", "The depot opens at six.", "--id", "depot-4")
    assert failed.exit_code == 5
    assert "--id depot-4" in failed.stderr


def test_a_forgotten_file_stays_forgotten_unless_it_is_to_be_learned_anew(run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("The depot opens at seven.")
    told = ("record", "-u", "hera", "--file", "notes.txt")
    assert run(*told).stdout.startswith("absorbed 1 interaction; ")
    run("forget", "-u", "hera", "--yes")
    assert run(*told).stdout.startswith("absorbed 0 interactions, 1 known already, or forgotten since; --again")
    assert "seven" not in run("chat", "-u", "hera", "-m", "When?").stdout
    assert run(*told, "--again").stdout.startswith("absorbed 1 interaction; ")
    assert "seven" in run("chat", "-u", "hera", "-m", "When?").stdout


@pytest.mark.parametrize("words", [[UNLEARNABLE], ["--file", "notes.txt"]])
def test_what_was_parked_is_not_called_absorbed(run: Run, tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "notes.txt").write_text(f"{UNLEARNABLE}\n\n" + "word " * 795 + "\n\nThe depot opens at seven.")
    failed = run("record", "-u", f"hugo{len(words)}", *words)
    num_absorbed = "1 interaction" if len(words) == 2 else "0 interactions"
    assert failed.stdout.startswith(f"absorbed {num_absorbed}, 1 parked; ")
    assert failed.stderr == "parked: not_finite: memory: expected finite numbers, found NaN or infinity\n"
    assert failed.exit_code == 7
    assert run("record", "-u", f"hugo{len(words)}", "--no-wait", *words).exit_code == 0


def test_parked_feedback_is_not_called_learned(run: Run) -> None:
    given = run("feedback", "-u", "iris", "--kind", "up", "--question", UNLEARNABLE, "--answer", "At nine.")
    assert (given.exit_code, given.stderr[:19]) == (7, "parked: not_finite:")
    talk = run("chat", "-u", "iris", "--consent", input=f"When?\n/correct {UNLEARNABLE}\n")
    assert "parked: not_finite:" in talk.stderr
    assert "learned" not in talk.stdout


def test_a_long_file_tells_how_far_it_is(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "long.txt").write_text("\n\n".join(f"Paragraph {n}. " + "word " * 700 for n in range(9)))
    assert run("record", "-u", "ivo", "--file", "long.txt").stderr == ""
    monkeypatch.setenv("FORCE_COLOR", "1")
    told = run("record", "-u", "ivo", "--file", "long.txt", "--again").stderr
    assert "absorbed 9 of 9 interactions" in told


async def test_ctrl_c_during_a_long_file_says_how_much_is_recorded(
    gateway: Gateway, host: EchoHost, tmp_path: Path
) -> None:
    host.is_paused = True
    (tmp_path / "long.txt").write_text("\n\n".join(f"Paragraph {n}. " + "word " * 700 for n in range(8)))
    words = ["record", "-u", "ivo", "--file", str(tmp_path / "long.txt"), "--address", gateway.address]
    recording = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "from siltstone_services.cli import main; main()",
        *words,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry), "COLUMNS": "200"},
        stderr=asyncio.subprocess.PIPE,
    )
    while (await host.status()).lag_interactions < 8 or host.num_waiters == 0:
        assert recording.returncode is None
        await asyncio.sleep(0.01)
    recording.send_signal(signal.SIGINT)
    _, told = await recording.communicate()
    assert b"stopped: recorded 8 of 8 interactions, 0 of them known to be absorbed" in told
    assert recording.returncode != 0


@pytest.mark.parametrize("words", [["a\udcffb"], ["--file", "-"], ["--document", "a\udcffb"]])
def test_a_text_that_is_none_is_refused_and_not_mended(run: Run, words: list[str]) -> None:
    refused = run("record", "-u", "jan", *words, input="seven\0eight")
    assert refused.exit_code == 3
    complaint = "--file: expected text, found a NUL character at 5" if "-" in words else "not valid unicode"
    assert complaint in refused.stderr
    assert "none yet" in run("memory", "-u", "jan").stdout


def test_a_file_comes_from_the_standard_input_too(run: Run) -> None:
    assert run("record", "-u", "ian", "--file", "-", input="some text").stdout.startswith("absorbed 1 interaction;")


@pytest.mark.parametrize("kind", ["correction", "up", "down"])
def test_feedback_is_taken(run: Run, kind: str) -> None:
    correction = ["--correction", "At seven."] if kind == "correction" else []
    given = run("feedback", "-u", "jo", "--kind", kind, "--question", "When?", "--answer", "At nine.", *correction)
    assert (given.exit_code, given.stdout[:22]) == (0, "absorbed 1 interaction")


def test_a_memory_is_described(run: Run) -> None:
    run("record", "-u", "kim", "one two three")
    shown = run("memory", "-u", "kim").stdout
    assert "local/kim under core echo-core" in shown
    assert "words" in shown
    assert "3 tokens" in shown or "tokens           3" in shown


def test_the_shards_are_shown_with_what_they_own(run: Run) -> None:
    shown = run("cluster")
    assert shown.exit_code == 0, shown.stderr
    lines = [line.split() for line in shown.stdout.splitlines()]
    assert lines[1][:5] == ["echo", "ready", "4", "7", "0"]
    assert lines[2][:4] == ["late", "stalled", "0", "-"]
    assert "2 shards, 4 partitions owned" in shown.stdout
    told = run("cluster", "--partitions").stdout.splitlines()
    assert [line.split()[:3] for line in told[-4:]] == [[str(number), "echo", "7"] for number in range(4)]


def test_a_program_reads_the_shards(run: Run) -> None:
    echo, late = json.loads(run("cluster", "--format", "json").stdout)
    assert (echo["name"], echo["state"], echo["num_parked"], echo["absorbed_per_s"]) == ("echo", "ready", 3, 0.5)
    names = ("partition", "epoch", "position", "lag_interactions", "is_damaged")
    assert [tuple(place) for place in echo["partitions"]] == [names] * 4
    assert [place["partition"] for place in echo["partitions"]] == list(range(4))
    assert (late["state"], late["partitions"], late["absorbed_per_s"]) == ("stalled", [], None)
    resized = run("cluster", "resize", "2", "--format", "json")
    # What is said meanwhile is for people, and not on the standard output.
    assert (json.loads(resized.stdout)[0]["name"], resized.stderr) == ("echo", "asking for 2 shards ...\n")


def test_the_shards_are_shown_once_there_are_so_many(run: Run) -> None:
    resized = run("cluster", "resize", "2")
    assert (resized.exit_code, resized.stderr) == (0, "asking for 2 shards ...\n")
    assert "2 shards, 4 partitions owned" in resized.stdout
    refused = run("cluster", "resize", "3")
    assert (refused.exit_code, "it has no room for another shard" in refused.stderr) == (5, True)
    assert run("cluster", "resize", "0").exit_code == 2


def test_an_export_is_a_zip_that_proves_itself(run: Run, tmp_path: Path) -> None:
    run("record", "-u", "lea", "one two three")
    exported = run("export", "-u", "lea")
    assert exported.stdout.startswith("wrote lea.zip (")
    files = read_archive(tmp_path / "lea.zip")
    assert set(files) == {"manifest.json", "card.json", "journal.jsonl", "parked.jsonl", "snapshot.bin"}
    assert json.loads(files["journal.jsonl"])["interaction"]["messages"] == [{"role": "user", "text": "one two three"}]
    assert files["snapshot.bin"] == b"one two three"
    assert (tmp_path / "lea.zip").stat().st_mode & 0o777 == 0o600
    refused = run("export", "-u", "lea")
    assert (refused.exit_code, "found lea.zip" in refused.stderr) == (3, True)
    assert run("export", "-u", "lea", "--force", "-o", "lea.zip").exit_code == 0
    with zipfile.ZipFile(tmp_path / "lea.zip") as archive:
        assert archive.testzip() is None


def test_forgetting_asks_first(run: Run) -> None:
    run("record", "-u", "max", "one two three")
    assert run("forget", "-u", "max", input="n\n").exit_code == 1
    assert "snapshot         1" in run("memory", "-u", "max").stdout
    forgotten = run("forget", "-u", "max", "--yes")
    assert forgotten.stdout == "forgot local/max: the memory and 1 interaction\n"
    assert "none yet" in run("memory", "-u", "max").stdout


def test_a_replay_writes_everything_once_and_measures_it(run: Run, tmp_path: Path) -> None:
    lines = [{"user": f"u{n % 5}", "text": f"line {n}", "id": f"r{n}"} for n in range(100)]
    bad = ['{"user": "u1"}', '{"user": "a/b", "text": "x", "id": "x"}']
    (tmp_path / "data.jsonl").write_text("\n".join([*map(json.dumps, lines), *bad]))
    first = run("replay", "data.jsonl", "--from", "jsonl", "--json", "figures.json", "--wait")
    assert first.exit_code == 0, first.stderr
    figures = {figure.name: figure.value for figure in read_figures(tmp_path / "figures.json")}
    assert (figures["replay recorded"], figures["replay users"], figures["replay skipped"]) == (100, 5, 2)
    assert "skipped: malformed 1" in first.stdout
    assert "skipped: invalid_id 1" in first.stdout
    assert run("replay", "data.jsonl", "--from", "jsonl", "--json", "figures.json").exit_code == 0
    figures = {figure.name: figure.value for figure in read_figures(tmp_path / "figures.json")}
    assert (figures["replay recorded"], figures["replay duplicates"]) == (0, 100)


@pytest.mark.parametrize(("text", "num_skipped"), [("", "0 pieces"), ("not json\n", "1 piece")])
def test_a_replay_of_nothing_that_can_be_read_fails(run: Run, tmp_path: Path, text: str, num_skipped: str) -> None:
    (tmp_path / "bad.jsonl").write_text(text)
    failed = run("replay", "bad.jsonl", "--from", "jsonl", "--json", "figures.json")
    assert failed.exit_code == 3
    found = f"none, and {num_skipped} that could not be read"
    assert failed.stderr.splitlines()[-1] == f"siltstone: FILE: expected something to replay, as jsonl, found {found}"
    assert {figure.value for figure in read_figures(tmp_path / "figures.json") if "recorded" in figure.name} == {0}


def test_one_line_recalled_is_not_several_and_what_is_not_stored_has_no_size(run: Run) -> None:
    run("record", "-u", "kira", "seven")
    told = run("chat", "-u", "kira", "-m", "When?", "--recall", "both").stderr
    assert "· 1 line recalled" in told
    assert "nothing stored" in run("memory", "-u", "nobody").stdout
    assert "nothing stored" not in run("memory", "-u", "kira").stdout


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        (["memory", "-u", "a/b"], 3, "owner.user: expected 1 to 128 plain characters, no slash, found 3 characters"),
        (["record", "-u", "ada"], 3, "record: expected a TEXT or a --file, found neither"),
        (["record", "-u", "ada", "--file", "none.txt"], 4, "no such file: none.txt"),
        (["record", "-u", "ada", " "], 3, "expected text, found only white space"),
        (["record", "-u", "ada", "--document", "x" * 70_000], 3, "text: expected at most 65536 bytes, found 70000"),
        (["replay", "none", "--from", "irc"], 4, "no such file: none"),
        (
            ["export", "-u", "ada", "-o", "none/ada.zip"],
            3,
            "--output: expected a file in a folder that is there, found",
        ),
        (["chat", "-u", "ada", "-m", "Hi", "--seed", "-1"], 3, "sampling.seed: expected 0 to 18446744073709551615"),
        (["memory", "-u", "ada", "--address", "127.0.0.1:1"], 2, "nobody answers at 127.0.0.1:1. Start one with"),
        (["core", "remove", "nope"], 4, "no such core: nope. Add one with"),
        (["core", "show"], 4, "no such core: default. Add one with `siltstone core add"),
        (["core", "add", "nowhere"], 3, "core source: expected pypi:PACKAGE"),
        (["--set", "gateway.prot=1", "config", "show"], 2, "gateway.prot: unknown key (did you mean port?)"),
        (["--set", "nonsense", "config", "show"], 2, "--set: expected NAME=VALUE"),
        (["--config", "none.toml", "config", "show"], 2, "none.toml: No such file"),
        (["chat"], 2, "Missing option"),
    ],
)
def test_a_failure_is_one_clear_line_and_an_exit_code_by_its_kind(
    run: Run, words: list[str], code: int, complaint: str
) -> None:
    failed = run(*words)
    assert complaint in failed.stderr
    assert failed.exit_code == code
    assert "Traceback" not in failed.output
    assert failed.stderr.count("\n") == 1 or "Usage" in failed.stderr


def test_without_a_server_a_command_says_how_to_start_one(tmp_path: Path) -> None:
    failed = CliRunner().invoke(app, ["--home", str(tmp_path), "memory", "-u", "ada"])
    assert failed.exit_code == 2
    assert failed.stderr.endswith("Start one with `siltstone up`, or add --embedded to this command.\n")


def test_the_configuration_shown_is_the_configuration_read(run: Run, tmp_path: Path) -> None:
    shown = run("--set", "gateway.port=1234", "--set", "core=mine", "config", "show").stdout
    (tmp_path / "copy.toml").write_text(shown)
    assert run("--config", "copy.toml", "config", "show").stdout == shown
    assert "port = 1234" in shown
    assert 'core = "mine"' in shown
    schema = json.loads(run("config", "schema").stdout)
    assert schema["properties"]["gateway"]["properties"]["port"]["default"] == 50550


def test_every_kind_of_source_can_be_asked_for() -> None:
    assert {kind.value for kind in SourceKind} == set(SOURCES)


HEAVY = ("torch", "grpc", "numpy", "siltstone.config", "siltstone.model")
SHOW_HELP = f"""
import sys
from siltstone_services.cli import main
try:
    main()
finally:
    print("heavy:", [name for name in {HEAVY} if name in sys.modules])
"""


@pytest.mark.parametrize("words", [["--help"], ["chat", "--help"], ["core", "add", "--help"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    command = [sys.executable, "-c", SHOW_HELP, *words]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "Usage" in shown.stdout
    assert shown.stdout.endswith("heavy: []\n")


def test_an_error_nobody_foresaw_is_one_line_too() -> None:
    program = """
import siltstone_services.commands.configuration as configuration
def broken(settings): raise ZeroDivisionError("by zero")
configuration.show = broken
from siltstone_services.cli import main
main()
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    for trace in ("", "1"):
        failed = subprocess.run(
            [sys.executable, "-c", program, "config", "show"],
            env={**environment, "SILTSTONE_TRACE": trace},
            capture_output=True,
            text=True,
            check=False,
        )
        assert failed.returncode == 1
        assert ("Traceback" in failed.stderr) == bool(trace)
        assert "ZeroDivisionError: by zero" in failed.stderr


def test_ctrl_c_gives_an_answer_up_and_the_talk_goes_on(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    program = "from siltstone_services.cli import main; main()"
    with echo_server(tmp_path, pause_s=0.05):
        talk = subprocess.Popen(
            [sys.executable, "-c", program, "--home", str(tmp_path), "chat", "-u", "ada", "--no-consent"],
            env={**environment, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=0,
        )
        with talk:
            assert talk.stdin is not None
            assert talk.stdout is not None
            talk.stdin.write("word " * 400 + "\n")
            while talk.stdout.read(1) != "w":
                pass
            talk.send_signal(signal.SIGINT)
            talk.stdin.write("still there?\n")
            talk.stdin.close()
            rest = talk.stdout.read()
            assert talk.stderr is not None
            told = talk.stderr.read()
    assert talk.returncode == 0, told
    assert "still there? \n" in rest
    assert "given up" in told
    assert rest.count("word") < 400
