"""Runs a night, and shows and moves versions."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from siltstone.errors import InvalidInput, NotFound
from siltstone.gate.policy import load_policy
from siltstone.gate.verdict import explain
from siltstone.sleep.distil import StepDone
from siltstone.sleep.restem import RoundDone
from siltstone.sleep.tasks import read_task
from siltstone.sleep_values import Champion, CoreVersion
from siltstone_services.allocator import keep_freed_memory
from siltstone_services.cli.options import Settings
from siltstone_services.commands.configuration import load
from siltstone_services.commands.screen import counted, err, out, table
from siltstone_services.home import exclusive
from siltstone_services.night import open_registry, run_night
from siltstone_services.task_sleep import run_task


def run(settings: Settings, seed: int, since_ms: int) -> None:
    """Runs one night and prints the verdict. Exit code 0 says that it ran, not that the candidate was accepted."""
    keep_freed_memory()
    config = load(settings)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with exclusive(config.home_path), Progress(*columns, console=err(), transient=True) as progress:
        task = progress.add_task("distilling", total=config.sleep.distil.num_steps, visible=False)

        def on_step(done: StepDone) -> None:
            progress.update(task, completed=done.step + 1, visible=True)

        done = run_night(config, seed, since_ms, lambda text: progress.console.print(text), on_step)
    explain_version(done.version)
    out().print(f"version {done.version.number}: {done.version.state.value}", soft_wrap=True)


def improve(settings: Settings, file: Path, seed: int) -> None:
    """Runs one sleep over a task and prints the scores and the verdict."""
    keep_freed_memory()
    try:
        task = read_task(file.read_bytes())
    except OSError as error:
        raise InvalidInput("the task", "a file that can be read", f"{file}: {error.strerror}") from error
    config = load(settings)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with exclusive(config.home_path), Progress(*columns, console=err(), transient=True) as progress:
        bar = progress.add_task("distilling", total=config.sleep.distil.num_steps, visible=False)

        def on_round(done: RoundDone) -> None:
            progress.console.print(
                f"round {done.number + 1}: {done.num_dreamt} dreams, {len(done.rewarded)} of {len(done.gains)} rewarded"
            )

        def on_step(done: StepDone) -> None:
            progress.update(bar, completed=done.step + 1, visible=True)

        done = run_task(config, task, seed, lambda text: progress.console.print(text), on_round, on_step)
    explain_version(done.version)
    for when, score in (("before", done.before), ("after", done.after)):
        told = f"{score.num_right} of {score.num_questions} right, {score.nats:.3f} nats"
        out().print(f"questions held out, {when}: {told}", soft_wrap=True)
    out().print(f"version {done.version.number}: {done.version.state.value}", soft_wrap=True)


def show_all(settings: Settings) -> None:
    """Prints the versions."""
    with open_registry(load(settings)) as registry:
        versions, champion = registry.list(), registry.champion()
    if not versions:
        out().print("no versions yet; `siltstone sleep run` makes one", soft_wrap=True)
        return
    shown = table("", "#number", "digest", "state", "#people", "parent", "made")
    for one in versions:
        is_champion = champion is not None and champion.number == one.number
        made = datetime.fromtimestamp(one.created_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")
        people = str(len(one.lineage.contributors))
        shown.add_row(
            "*" if is_champion else "",
            str(one.number),
            one.digest[:12],
            one.state.value,
            people,
            one.lineage.parent[:12],
            made,
        )
    out().print(shown)


def show(settings: Settings, number: int) -> None:
    """Prints one version."""
    version = _find(settings, number)
    facts = table("", "")
    facts.show_header = False
    lineage = version.lineage
    for name, value in (
        ("version", f"{version.number}, {version.state.value}"),
        ("core", version.digest),
        ("parent", lineage.parent),
        ("night", lineage.sleep_id),
        ("people", counted(len(lineage.contributors), "keyed hash").replace("hashs", "hashes")),
        ("interactions", str(sum(one.num_interactions for one in lineage.contributors))),
        ("seeds", ", ".join(f"{name} {seed}" for name, seed in sorted(lineage.seeds.items()))),
        ("code", lineage.code_revision),
        ("evidence", version.evidence_digest),
    ):
        facts.add_row(name, value)
    out().print(facts)
    explain_version(version)


def explain_verdict(settings: Settings, number: int) -> None:
    """Prints the verdict on a version."""
    explain_version(_find(settings, number))


def explain_version(version: CoreVersion) -> None:
    """Prints what the gate said of a version."""
    if version.verdict is None:
        out().print("the gate has not judged it", soft_wrap=True)
        return
    out().print("\n".join(explain(version.verdict, load_policy())), soft_wrap=True)


def promote(settings: Settings, number: int) -> None:
    """Makes a version the champion."""
    with open_registry(load(settings)) as registry:
        champion = registry.champion()
        _told(registry.promote(number, champion.epoch if champion else 0))


def rollback(settings: Settings) -> None:
    """Makes the former champion champion again."""
    with open_registry(load(settings)) as registry:
        champion = registry.champion()
        if champion is None:
            raise NotFound("champion", "none has been promoted")
        _told(registry.rollback(champion.epoch))


def _told(champion: Champion) -> None:
    out().print(f"champion: version {champion.number} ({champion.digest[:12]}), epoch {champion.epoch}", soft_wrap=True)
    out().print(
        "memories learned on another core are not moved to it yet: serve it with `core = "
        f'"{champion.digest[:12]}"` to newcomers only',
        soft_wrap=True,
    )


def _find(settings: Settings, number: int) -> CoreVersion:
    with open_registry(load(settings)) as registry:
        found: CoreVersion = registry.show(number)
        return found
