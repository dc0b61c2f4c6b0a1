"""`siltstone bench`: the cases in order, the table, the figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from siltstone.config import SiltstoneConfig
from siltstone.evaluation.figures import Origin, format_value, observe_origin, write_figures
from siltstone_services.allocator import keep_freed_memory
from siltstone_services.benchmark.cluster import cluster_cases
from siltstone_services.benchmark.readings import Outcome, Say
from siltstone_services.benchmark.sleep import sleep_cases
from siltstone_services.benchmark.wake import wake_cases

RUNS = Path("runs")
"""Where the stores and homes of a benchmark live while it runs: a disk, so that durable means durable."""


def run_wake(quick: bool, json_path: Path | None) -> int:
    """Measures serving and learning for many users; writes the figures. Returns 0 when all that can run here ran."""
    return _run(partial(wake_cases, quick, RUNS), json_path)


def run_sleep(quick: bool, json_path: Path | None, config: SiltstoneConfig, office: Path | None) -> int:
    """Measures nights and what trains them; writes the figures. Returns 0 when all that can run here ran.

    `office` is a home in which the demo's office was taught and has not slept; where there is none it is made there.
    """
    return _run(partial(sleep_cases, quick, RUNS, config, office), json_path)


def run_cluster(quick: bool, json_path: Path | None, brokers: str, redis: str) -> int:
    """Measures the gateway, the journal and the store of a cluster; writes the figures. What has no address is not run.

    Returns 0 when all that can run here ran.
    """
    return _run(partial(cluster_cases, quick, RUNS, brokers, redis), json_path)


def _run(cases: Callable[[Say], Iterator[Outcome]], json_path: Path | None) -> int:
    keep_freed_memory()
    torch.set_num_threads(1)
    console = Console()
    outcomes: list[Outcome] = []
    with console.status("") as status:
        for outcome in cases(status.update):
            outcomes.append(outcome)
            console.print(_line(outcome))
    return report(outcomes, json_path)


def report(outcomes: Sequence[Outcome], json_path: Path | None) -> int:
    """Shows what was measured and what was not, and writes the figures. Returns 1 when a case refused to time."""
    console = Console()
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    origin = observe_origin(name)
    console.print(_table(outcomes, origin))
    for outcome in outcomes:
        if outcome.refusal or outcome.absence:
            console.print(_line(outcome))
    console.print(
        f"{origin.hardware}; commit {origin.commit}; {origin.date}. Computing is timed on one torch thread, by the "
        "thread's own processor time; what waits for a disk or a GPU, and a whole night, by the clock."
    )
    if json_path is not None:
        write_figures(json_path, [reading.figure(origin) for outcome in outcomes for reading in outcome.readings])
    return 1 if any(outcome.refusal for outcome in outcomes) else 0


def _line(outcome: Outcome) -> str:
    if outcome.refusal:
        return f"[red]{outcome.case}: not timed, {outcome.refusal}[/red]"
    if outcome.absence:
        return f"[yellow]{outcome.case}: not run: {outcome.absence}[/yellow]"
    return f"{outcome.case}: done"


def _table(outcomes: Sequence[Outcome], origin: Origin) -> Table:
    table = Table("measure", "value", "target", "reached", "spread")
    table.columns[1].justify = "right"
    for outcome in outcomes:
        for reading in outcome.readings:
            figure = reading.figure(origin)
            reached = {True: "[green]yes[/green]", False: "[red]no[/red]", None: ""}[figure.reached]
            value = f"{format_value(figure.value)} {figure.unit}"
            table.add_row(figure.name, value, figure.target, reached, figure.spread)
        table.add_section()
    return table
