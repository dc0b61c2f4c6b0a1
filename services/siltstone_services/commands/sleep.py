"""Runs nights, tells where they are, and ends them."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from siltstone.adapters.system_clock import SystemClock
from siltstone.config import SiltstoneConfig
from siltstone.errors import InvalidInput, NotFound
from siltstone.sleep.tasks import Task, read_task
from siltstone.sleep_values import Night, NightStage
from siltstone_services.allocator import keep_freed_memory
from siltstone_services.cli.later import Later
from siltstone_services.cli.options import Format, Reach
from siltstone_services.commands.configuration import load
from siltstone_services.commands.operator import Desk, ask_desk
from siltstone_services.commands.screen import err, out, print_json, table
from siltstone_services.commands.versions import print_verdict
from siltstone_services.home import NoServer, find_server
from siltstone_services.night_desk import require_extra
from siltstone_services.nights import HeldNight, NightCancelled, Nights

_night_process = Later("siltstone_services.night_process")  # to look at a night takes no model

Show = Callable[[Night], None]


def run(reach: Reach, seed: int, since_ms: int, is_waiting: bool) -> None:
    """Runs one night: through the server where there is one, else here, or beside us when we do not wait.

    Exit code 0 says that it ran, not that the candidate was accepted.
    """
    config = load(reach.settings)
    if is_waiting and reach.address is None and not _is_served(config):
        night = _run_here(config, seed, since_ms, None)
    else:
        night = ask_desk(reach, lambda desk: _run_there(desk, desk.nights.run(seed, since_ms), is_waiting))
    _tell_end(reach, night)


def status(reach: Reach, number: int | None, form: Format) -> None:
    """Prints the nights, or one night."""
    if number is not None:
        night = ask_desk(reach, lambda desk: desk.nights.get(number))
        (print_json if form is Format.JSON else _print_night)(night)
        return
    nights = ask_desk(reach, lambda desk: desk.nights.list())
    if form is Format.JSON:
        print_json(nights)
        return
    if not nights:
        out().print("no nights yet; `siltstone sleep run` begins one", soft_wrap=True)
        return
    shown = table("#night", "task", "stage", "#step", "began", "version", "told")
    for night in nights:
        shown.add_row(
            str(night.number),
            escape(night.task),
            _stage(night),
            _steps(night),
            _instant(night.started_at_ms),
            f"{night.version}, {night.verdict}" if night.version else "",
            night.error or ("" if night.is_over else night.said),
        )
    out().print(shown)


def cancel(reach: Reach, number: int | None) -> None:
    """Asks a night to end: the one that runs, if none is named."""

    async def ask(desk: Desk) -> Night:
        return await desk.nights.cancel(number or _running(await desk.nights.list()).number)

    night = ask_desk(reach, ask)
    out().print(f"night {night.number} ends between two steps; what serves stays as it is", soft_wrap=True)


def improve(reach: Reach, file: Path, seed: int, is_waiting: bool) -> None:
    """Runs one night over the task of a file, where `run` would run one over what users said."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InvalidInput("the task", "a file that can be read", f"{file}: {error.strerror}") from error
    task = read_task(content)
    config = load(reach.settings)
    if is_waiting and reach.address is None and not _is_served(config):
        night = _run_here(config, seed, 0, task)
    else:
        night = ask_desk(reach, lambda desk: _run_there(desk, desk.nights.run_task(content, seed), is_waiting))
    _tell_end(reach, night)


def _is_served(config: SiltstoneConfig) -> bool:
    try:
        find_server(config.home_path)
    except NoServer:
        return False
    return True


def _run_here(config: SiltstoneConfig, seed: int, since_ms: int, task: Task | None) -> Night:
    """Runs a night in this process. Ctrl-C or SIGTERM cancels it, a second one ends it at once."""
    require_extra()
    nights = Nights(config.home_path, SystemClock(), config.night.max_kept)
    held = nights.begin(seed, since_ms, task.name if task is not None else "")
    try:
        keep_freed_memory()
        with _progress() as show, _cancelled_by_signals(held):
            _night_process.run_held(config, held, show, task)
    except NightCancelled:
        # The night tells so itself.
        pass
    finally:
        held.close()
    return held.night


@contextmanager
def _cancelled_by_signals(held: HeldNight) -> Iterator[None]:
    """Lets the first Ctrl-C or SIGTERM end a night between two steps, as `sleep cancel` does, and no further one."""
    if threading.current_thread() is not threading.main_thread():
        # Signals are the main thread's.
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def as_before() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def on_signal(*_: object) -> None:
        held.tell_to_end()
        as_before()
        err().print("the night ends between two steps; once more ends it at once", soft_wrap=True)

    for number in before:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        as_before()


async def _run_there(desk: Desk, beginning: Awaitable[Night], is_waiting: bool) -> Night:
    """Begins a night in a process of its own. Ctrl-C stops our looking on, not the night."""
    night = await beginning
    if not is_waiting:
        return night
    try:
        with _progress() as show:
            async with aclosing(desk.nights.watch(night.number)) as seen:
                async for night in seen:
                    show(night)
    except asyncio.CancelledError:
        told = f"night {night.number} goes on; `siltstone sleep cancel {night.number}` ends it"
        err().print(told, soft_wrap=True)
        raise
    return night


@contextmanager
def _progress() -> Iterator[Show]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    said = ""
    with Progress(*columns, console=err(), transient=True) as progress:
        task = progress.add_task("night")

        def show(night: Night) -> None:
            nonlocal said
            if night.said != said:
                said = night.said
                progress.console.print(said, soft_wrap=True, markup=False)
            told = f"night {night.number}: {_stage(night)}"
            progress.update(task, description=told, completed=night.step, total=night.num_steps or None)

        yield show


def _tell_end(reach: Reach, night: Night) -> None:
    """Prints what came of a night.

    Raises: typer.Exit when nothing did.
    """
    match night.stage:
        case NightStage.DONE:
            print_verdict(reach, night.version)
            if night.task:
                # A night over a task ends by saying how its questions were answered.
                out().print(night.said, soft_wrap=True, markup=False)
        case NightStage.FAILED | NightStage.CANCELLED:
            why = f": {night.error}" if night.error else ""
            err().print(f"night {night.number} {night.stage.value}{why}", soft_wrap=True, markup=False)
            raise typer.Exit(1)
        case _:
            out().print(
                f"night {night.number} runs; `siltstone sleep status {night.number}` tells where it is", soft_wrap=True
            )


def _print_night(night: Night) -> None:
    facts = table("", "")
    facts.show_header = False
    rows = {
        "night": str(night.number),
        "task": escape(night.task),
        "stage": _stage(night),
        "step": _steps(night),
        "said": night.said,
        "seed": str(night.seed),
        "since": _instant(night.since_ms) if night.since_ms else "",
        "began": _instant(night.started_at_ms),
        "told": _instant(night.updated_at_ms),
        "process": "" if night.is_over else str(night.pid),
        "version": str(night.version) if night.version else "",
        "verdict": night.verdict,
        "error": night.error,
    }
    for name, value in rows.items():
        if value:
            facts.add_row(name, value)
    out().print(facts)


def _running(nights: tuple[Night, ...]) -> Night:
    for night in nights:
        if not night.is_over:
            return night
    raise NotFound("night", "none runs")


def _stage(night: Night) -> str:
    return f"{night.stage.value}, to be cancelled" if night.is_cancelling else night.stage.value


def _steps(night: Night) -> str:
    return f"{night.step} of {night.num_steps}" if night.num_steps and not night.is_over else ""


def _instant(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
