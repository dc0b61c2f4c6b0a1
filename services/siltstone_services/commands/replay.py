"""Replays a source, with live progress."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from siltstone.adapters.system_clock import SystemClock
from siltstone.errors import InvalidInput
from siltstone.evaluation.figures import format_value, observe_origin, write_figures
from siltstone.journal.sources import SourceOptions, open_source
from siltstone.values import Figure
from siltstone_services.cli.options import Reach
from siltstone_services.commands.connection import connected
from siltstone_services.commands.screen import counted, err, out, table
from siltstone_services.replay import Replay, ReplayPlan, ReplayProgress


@dataclass(frozen=True, slots=True)
class ReplayWish:
    """What is to be replayed, and how."""

    file: Path
    source: str
    max_users: int | None
    max_interactions: int | None
    rate: float | None
    batch: int
    is_waiting: bool
    json_path: Path | None
    tenant: str
    user: str
    salt: str
    is_shared: bool


def run(reach: Reach, wish: ReplayWish) -> None:
    """Replays, then prints what was measured.

    Raises: InvalidInput, after that, when there was nothing at all that could be read.
    """
    options = SourceOptions(tenant=wish.tenant, user=wish.user, salt=wish.salt, default_at_ms=SystemClock().now_ms())
    source = open_source(wish.source, wish.file, options)
    plan = ReplayPlan(wish.max_users, wish.max_interactions, wish.rate, wish.batch, wish.is_waiting, wish.is_shared)

    async def replay(tell: Live) -> ReplayProgress:
        async with connected(reach) as client:
            return await Replay(client, source, plan, SystemClock(), lambda seen: tell.update(_now(seen))).run()

    with Live(console=err(), refresh_per_second=4, transient=True) as live:
        progress = asyncio.run(replay(live))
    figures = progress.figures(observe_origin())
    if wish.json_path is not None:
        write_figures(wish.json_path, figures)
    _print_result(out(), progress, figures)
    if not progress.num_read:
        found = f"none, and {counted(sum(progress.skipped.values()), 'piece')} that could not be read"
        raise InvalidInput("FILE", f"something to replay, as {wish.source}", found)


def _now(progress: ReplayProgress) -> Table:
    rate = progress.num_recorded / progress.recording_s if progress.recording_s else 0.0
    row = {
        "recorded": f"{progress.num_recorded:,}",
        "users": f"{len(progress.users):,}",
        "known": f"{progress.num_duplicates:,}",
        "refused": f"{progress.num_refused:,}",
        "skipped": f"{sum(progress.skipped.values()):,}",
        "parked": f"{progress.num_parked:,}",
        "lag": f"{progress.lag:,}",
        "rate": f"{format_value(rate)}/s",
    }
    live = table(*(f"#{name}" for name in row))
    live.add_row(*row.values())
    return live


def _print_result(console: Console, progress: ReplayProgress, figures: Sequence[Figure]) -> None:
    results = table("", "#", "")
    results.show_header = False
    for figure in figures:
        results.add_row(figure.name, format_value(figure.value), figure.unit)
    console.print(results)
    for kind, counts in (("skipped", progress.skipped), ("refused", progress.refusals)):
        for reason, count in counts.most_common():
            console.print(f"{kind}: {reason} {count:,}", soft_wrap=True)
