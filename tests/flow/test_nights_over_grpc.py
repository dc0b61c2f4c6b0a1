"""Nights beside a real server, begun, watched and ended over gRPC: each has a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest
from server_process import echo_server, start, up
from tiny_home import ADA, BEN, CLEO, DORA, add_tiny_core, asking, said, tiny_config, write_config
from typer.testing import CliRunner, Result

from siltstone.adapters.sqlite_file import SqliteFile
from siltstone.adapters.system_clock import SystemClock
from siltstone.errors import ConfigInvalid, InvalidInput, NotFound, Unavailable, WrongState
from siltstone.sleep_values import Night, NightStage
from siltstone.values import Consent
from siltstone_services.cli import app
from siltstone_services.client import SiltstoneClient
from siltstone_services.home import find_server
from siltstone_services.nights import Nights

FACT = "The printer upstairs is called Gertrude."
TASK = """
name = "harbour"
context = "Two green lamps light the harbour."

[[questions]]
question = "How many lamps?"
answer = "two"
wrong = ["nine"]

[[questions]]
question = "Which colour?"
answer = "green"
wrong = ["brown"]
held_out = true
"""
NO_EXTRA = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("mlflow", "model_signing"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""


@asynccontextmanager
async def client_of(home: Path) -> AsyncIterator[SiltstoneClient]:
    async with SiltstoneClient(find_server(home).address, timeout_s=60.0) as client:
        yield client


async def teach(home: Path) -> None:
    """Lets four people say what all of them know."""
    async with client_of(home) as client:
        for owner in (ADA, BEN, CLEO, DORA):
            told = [
                replace(said(owner, f"{owner.user}-{number}", text), consent=Consent(learn=True, share=True))
                for number, text in enumerate([FACT, f"Indeed. {FACT}"])
            ]
            await client.record(told, wait_absorbed=True)


@pytest.fixture(scope="module")
def settings(mlflow_address: str) -> dict[str, object]:
    return {
        "sleep.held_out_share": 0.0,
        "sleep.consensus.evidence_nats": 0.05,
        "memory.fast.rate": 1.0,
        "sleep.sampling.min_words": 1,
        "sleep.task.num_rounds": 1,
        "sleep.task.num_dreams": 12,
        "sleep.task.num_kept": 6,
        "sleep.task.num_steps": 2,
        "sleep.task.rate": 0.03,
        "sleep.task.min_gain_nats": 0.0,
        "night.niceness": 0,
        "night.poll_interval_s": 0.05,
        "mlflow.address": mlflow_address,
        "mlflow.name": "nights",
    }


@pytest.fixture(scope="module")
def endless(settings: dict[str, object]) -> dict[str, object]:
    return {**settings, "sleep.distil.num_steps": 10_000_000}


def make_home(folder: Path, settings: dict[str, object]) -> Path:
    add_tiny_core(folder)
    write_config(folder, settings)
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, endless: dict[str, object]) -> Iterator[Path]:
    """A home that is served, whose nights would never end by themselves."""
    home = make_home(tmp_path_factory.mktemp("served"), endless)
    with up(home):
        asyncio.run(teach(home))
        yield home


async def seen(client: SiltstoneClient, number: int, is_there: Callable[[Night], bool]) -> Night:
    """Watches a night until it is somewhere."""
    async with asyncio.timeout(60), aclosing(client.nights.watch(number)) as nights:
        async for night in nights:
            if is_there(night):
                return night
    raise AssertionError("the night never came there")


def distils(night: Night) -> bool:
    return night.stage is NightStage.DISTIL and night.step > 0


def is_over(night: Night) -> bool:
    return night.is_over


@asynccontextmanager
async def night_of(client: SiltstoneClient) -> AsyncIterator[Night]:
    """Gives a night that distils, and ends it."""
    night = await client.nights.run(1, 0)
    try:
        yield await seen(client, night.number, distils)
    finally:
        now = await client.nights.get(night.number)
        if not now.is_over:
            await client.nights.cancel(night.number)
            await seen(client, night.number, is_over)


async def test_a_server_records_and_answers_while_a_night_runs_until_it_is_cancelled(served: Path) -> None:
    async with client_of(served) as client, night_of(client) as night:
        assert (night.num_steps, night.seed, night.version) == (10_000_000, 1, 0)
        assert night.pid not in (0, os.getpid(), find_server(served).pid)
        before = await client.memory(ADA)
        (receipt,) = await client.record([said(ADA, "meanwhile", "I live in Oslo.")], wait_absorbed=True)
        text, end = await client.answer(asking(ADA, "Where do I live?"))
        assert receipt.parked is None
        assert text
        assert end.snapshot_sequence > before.sequence
        later = await seen(client, night.number, lambda now: now.step > night.step)
        assert later.stage is NightStage.DISTIL

        with pytest.raises(WrongState, match=f"night {night.number} is running: not to begin a second beside it"):
            await client.nights.run(2, 0)

        assert (await client.nights.cancel(night.number)).is_cancelling
        ended = await seen(client, night.number, is_over)
        assert (ended.stage, ended.version, ended.error) == (NightStage.CANCELLED, 0, "")
        assert await client.versions.list() == ((), None)
        assert (await client.status()).core == end.core
        # The server waits for the process: no zombie is left.
        while Path(f"/proc/{night.pid}").exists():
            await asyncio.sleep(0.01)
        with pytest.raises(WrongState, match="cancelled"):
            await client.nights.cancel(night.number)


async def test_a_task_runs_beside_the_server_as_a_night_does_and_is_cancelled(served: Path) -> None:
    async with client_of(served) as client:
        night = await client.nights.run_task(TASK.encode(), 1)
        assert (night.task, night.seed, night.since_ms) == ("harbour", 1, 0)
        before = []

        def keeps_until_it_distils(now: Night) -> bool:
            before.append(now)
            return distils(now)

        now = await seen(client, night.number, keeps_until_it_distils)
        assert {one.task for one in before} == {"harbour"}
        # Who looks from time to time may miss a stage that is soon over; never does he see one after a later one.
        assert {one.num_steps for one in before if one.stage is NightStage.DREAM} <= {6}
        assert [stage for stage, _ in groupby(one.stage for one in before)] == sorted(
            {one.stage for one in before}, key=list(NightStage).index
        )
        assert now.pid not in (0, os.getpid(), find_server(served).pid)
        assert (await client.answer(asking(BEN, "Where do I live?")))[0]
        for call in (client.nights.run(2, 0), client.nights.run_task(TASK.encode(), 2)):
            with pytest.raises(WrongState, match="begin a second beside it"):
                await call

        status = await asyncio.to_thread(speak, served, "sleep", "status", str(night.number))
        assert "harbour" in status.stdout
        assert "of 10000000" in status.stdout
        cancelled = await asyncio.to_thread(speak, served, "sleep", "cancel")
        assert cancelled.exit_code == 0
        ended = await seen(client, night.number, is_over)
        assert (ended.stage, ended.version, ended.error) == (NightStage.CANCELLED, 0, "")
        assert await client.versions.list() == ((), None)


def test_a_night_that_would_sample_forever_is_cancelled(
    tmp_path: Path, served: Path, settings: dict[str, object]
) -> None:
    forever = {"sleep.sampling.num_per_user": 100_000, "sleep.sampling.max_s": 1e9, "engine.num_threads": 2}
    home = make_home(tmp_path, {**settings, **forever})
    with SqliteFile(served / "siltstone.db", tiny_config(home).store) as file:
        file.backup_to(home / "siltstone.db")
    nights = Nights(home, SystemClock(), 9)

    def wait_until(is_there: Callable[[Night], bool]) -> Night:
        until_s = time.monotonic() + 60
        while not is_there(night := nights.get(1)):
            assert not night.is_over, night.error
            assert time.monotonic() < until_s, night
            time.sleep(0.02)
        return night

    assert speak(home, "sleep", "run", "--no-wait").exit_code == 0
    pid = wait_until(lambda night: "statements of" in night.said).pid
    try:
        assert speak(home, "sleep", "cancel").exit_code == 0
        ended = wait_until(is_over)
    except BaseException:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        raise
    assert (ended.stage, ended.error) == (NightStage.CANCELLED, "")


async def test_a_file_that_tells_no_task_begins_no_night(served: Path) -> None:
    async with client_of(served) as client:
        before = await client.nights.list()
        for content, reason in (
            (b"\xff", "UTF-8"),
            (TASK.replace("wrong", "wrongs").encode(), "wrongs"),
            (b"", "name"),
        ):
            with pytest.raises(InvalidInput, match=reason):
                await client.nights.run_task(content, 0)
        with pytest.raises(InvalidInput, match="seed"):
            await client.nights.run_task(TASK.encode(), -1)
        assert await client.nights.list() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_a_task_in_the_foreground(
    tmp_path: Path, endless: dict[str, object], number: signal.Signals
) -> None:
    home = make_home(tmp_path, endless)
    (home / "task.toml").write_text(TASK)
    nights = Nights(home, SystemClock(), 9)
    process = start(home, "sleep", "task", str(home / "task.toml"))
    try:
        while not ((night := nights.running()) and distils(night)):
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(number)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1
    assert "night 1 cancelled" in told
    assert "Traceback" not in told
    assert nights.get(1).stage is NightStage.CANCELLED
    assert "no versions yet" in speak(home, "versions", "list").stdout


async def test_nights_that_are_not_there_and_wishes_that_cannot_be_are_refused(served: Path) -> None:
    async with client_of(served) as client:
        for call in (client.nights.get, client.nights.cancel):
            with pytest.raises(NotFound, match="no such night: 999"):
                await call(999)
        with pytest.raises(NotFound, match="no such night: -1"):
            await seen(client, -1, is_over)
        with pytest.raises(InvalidInput, match="seed"):
            await client.nights.run(-1, 0)
        with pytest.raises(InvalidInput, match="since_ms"):
            await client.nights.run(0, -1)
        with pytest.raises(InvalidInput, match="numbers in range"):
            await client.nights.run(1 << 64, 0)


async def test_a_night_goes_on_without_its_server_until_it_is_killed_and_has_failed(
    tmp_path: Path, served: Path, endless: dict[str, object]
) -> None:
    home = make_home(tmp_path, endless)
    with SqliteFile(served / "siltstone.db", tiny_config(home).store) as file:
        file.backup_to(home / "siltstone.db")
    with echo_server(home) as (process, address):
        async with SiltstoneClient(address, timeout_s=60.0) as client:
            night = await client.nights.run(1, 0)
            watching = asyncio.create_task(seen(client, night.number, is_over))
            now = await seen(client, night.number, distils)
            process.send_signal(signal.SIGTERM)
            # Who watches does not hold the server up.
            with pytest.raises(Unavailable, match="it is stopping; the night goes on"):
                await watching
        assert await asyncio.to_thread(process.wait, 30) == 0
    with echo_server(home) as (_, address):
        async with SiltstoneClient(address, timeout_s=60.0) as client:
            later = await seen(client, night.number, lambda one: one.step > now.step)
            assert (later.stage, later.pid) == (NightStage.DISTIL, now.pid)
            os.kill(later.pid, signal.SIGKILL)
            died = await seen(client, night.number, is_over)
            assert (died.stage, died.error) == (NightStage.FAILED, "its process died")
            assert await client.versions.list() == ((), None)
    # The home's own command tells the same, and another night may begin.
    status = await asyncio.to_thread(speak, home, "sleep", "status")
    assert "its process died" in status.stdout
    second = Nights(home, SystemClock(), 9).begin(0, 0)
    assert second.night.number == night.number + 1
    second.close()


async def test_without_the_extra_a_server_serves_and_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_EXTRA)
    monkeypatch.syspath_prepend(str(tmp_path))
    home = tmp_path / "home"
    with echo_server(home) as (_, address):
        async with SiltstoneClient(address, timeout_s=60.0) as client:
            assert (await client.answer(asking(ADA, "one two")))[0] == "one two "
            for call in (client.nights.run(0, 0), client.versions.list(), client.versions.promote(1, 0)):
                with pytest.raises(ConfigInvalid, match=r"cannot sleep: install siltstone\[sleep\]"):
                    await call
            assert await client.nights.list() == ()


def speak(home: Path, *words: str) -> Result:
    return CliRunner().invoke(app, ["--home", str(home), *words])


def test_a_night_in_the_foreground_tells_its_error_and_keeps_it(tmp_path: Path, settings: dict[str, object]) -> None:
    home = make_home(tmp_path, settings)
    failed = speak(home, "sleep", "run")
    assert failed.exit_code == 3
    assert "found nothing" in failed.stderr
    assert "failed" in speak(home, "sleep", "status").stdout
    assert "found nothing" in speak(home, "sleep", "status", "1").stdout
    assert speak(home, "sleep", "status", "2").exit_code == 4
    nobody = speak(home, "sleep", "cancel")
    assert nobody.exit_code == 4
    assert "none runs" in nobody.stderr
    assert speak(home, "sleep", "run", "--address", "127.0.0.1:1").exit_code == 2


def test_a_core_stays_while_a_night_runs(tmp_path: Path, settings: dict[str, object]) -> None:
    home = make_home(tmp_path, settings)
    held = Nights(home, SystemClock(), 9).begin(0, 0)
    refused = speak(home, "core", "remove", "tiny", "--yes")
    assert refused.exit_code == 5
    assert "night 1 runs; let it end first" in refused.stderr
    held.end(NightStage.CANCELLED)
    held.close()
    assert speak(home, "core", "remove", "tiny", "--yes").exit_code == 0


@pytest.mark.slow
def test_a_whole_night_through_the_server_ends_in_a_version_that_everybody_can_look_at(
    tmp_path: Path, settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    home = make_home(tmp_path, {**settings, "mlflow.name": "a whole night", "sleep.distil.num_steps": 12})
    with up(home):
        asyncio.run(teach(home))
        ran = speak(home, "sleep", "run", "--seed", "1")
        assert ran.exit_code == 0, ran.stderr
        # A gate that misses evidence refuses; the first version is the core that it all began with.
        assert ran.stdout.endswith("version 2: refused\n")
        assert "asking 2 cores" in ran.stderr
        assert "2, refused" in speak(home, "sleep", "status").stdout
        served = [speak(home, *words) for words in (("versions", "list"), ("versions", "show", "2"))]
        refused = speak(home, "versions", "promote", "2")
        assert refused.exit_code == 3
        assert "refused" in refused.stderr
        assert speak(home, "gate", "explain", "2").stdout in served[1].stdout
        assert "canary_exposure" in served[1].stdout
    # Without the server the same is told.
    assert [speak(home, *words).stdout for words in (("versions", "list"), ("versions", "show", "2"))] == [
        result.stdout for result in served
    ]
    again = speak(home, "sleep", "run", "--seed", "1")
    assert again.stdout.endswith("version 2: refused\n")


@pytest.mark.slow
def test_a_whole_task_through_the_server_ends_in_a_version(tmp_path: Path, settings: dict[str, object]) -> None:
    home = make_home(tmp_path, {**settings, "mlflow.name": "a whole task", "sleep.distil.num_steps": 6})
    (home / "task.toml").write_text(TASK)
    with up(home):
        ran = speak(home, "sleep", "task", str(home / "task.toml"))
    assert ran.exit_code == 0, ran.stderr
    assert "version 2: refused\nquestions held out: " in ran.stdout
    assert "harbour" in speak(home, "sleep", "status", "1").stdout
