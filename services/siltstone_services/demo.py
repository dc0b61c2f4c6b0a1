"""siltstone demo: twelve people of one office tell the model about themselves, then ask it."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from siltstone.adapters.system_clock import SystemClock
from siltstone.config import SiltstoneConfig
from siltstone.errors import Unavailable
from siltstone.evaluation.figures import observe_origin, write_figures
from siltstone.evaluation.office_material import NUM_SLOTS, Office, load_office
from siltstone.values import Figure
from siltstone_services.allocator import keep_freed_memory
from siltstone_services.cli.later import Later
from siltstone_services.client import SiltstoneClient
from siltstone_services.commands.screen import err, out
from siltstone_services.demo_course import run_course
from siltstone_services.demo_figures import figures_of
from siltstone_services.demo_home import give_back, make_home, provide_core
from siltstone_services.demo_night import spend_night
from siltstone_services.demo_outcome import CoursePlan, Outcome
from siltstone_services.demo_screen import DemoScreen
from siltstone_services.demo_setting import Setting
from siltstone_services.gateway import Gateway
from siltstone_services.wiring import cluster_host, embedded_host

MAX_DURATION_S: Final = 240.0
"""How long the full course should take on two processors, but for its night."""

_report = Later("siltstone_services.demo_report")  # its plots need an extra, whose absence is to be told in words


def full_plan(office: Office) -> CoursePlan:
    """Returns the course with everybody and everything told, for minutes on two cores."""
    return CoursePlan(
        office.users,
        num_facts=NUM_SLOTS,
        num_answered=4,
        num_choices_with_text=2,
        num_passages=3,
        num_watched=3,
        has_shared=True,
    )


def quick_plan(office: Office) -> CoursePlan:
    """Returns the course of three users, for one minute."""
    return CoursePlan(
        office.users[:3],
        num_facts=4,
        num_answered=2,
        num_choices_with_text=1,
        num_passages=2,
        num_watched=2,
        has_shared=False,
    )


def run_demo(quick: bool, json_path: Path | None, config: SiltstoneConfig, runs: Path) -> int:
    """Runs the demo on the configured core and writes its report; returns 0 when it ran, whatever it found.

    The memories lie in a home folder of their own, beside the report, so that the user's own stay as they are.
    Raises: Unavailable when the demo's extra is not installed; what the host raises.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise Unavailable("the demo", "its plots need matplotlib; install siltstone[demo]")
    keep_freed_memory()
    clock = SystemClock()
    screen = DemoScreen(err(), out(), clock)
    started_s = clock.monotonic_s()
    provide_core(config, screen.say)
    run = _make_run_folder(runs)
    here = make_home(run / "home", config)
    outcome = asyncio.run(_run(here, (quick_plan if quick else full_plan)(load_office()), screen))
    give_back(here, config)
    elapsed_s = clock.monotonic_s() - started_s - (outcome.night.elapsed_s if outcome.night is not None else 0.0)
    figures = figures_of(outcome, observe_origin(), elapsed_s, None if quick else MAX_DURATION_S)
    _write_results(run, json_path, outcome, figures, screen)
    _point_latest(runs, run)
    screen.tell(f"\nreport: {run / 'report.html'}")
    if not here.cluster.is_on:
        # The memories of a cluster are not in its home.
        talker = outcome.plan.users[0].id
        screen.tell(f"talk on: siltstone --home {run / 'home'} chat --user {talker} --embedded --recall both")
    return 0


def _make_run_folder(runs: Path) -> Path:
    """Makes the folder of this run, named by the time; a second run within the second waits for its own name."""
    runs.mkdir(parents=True, exist_ok=True)
    name = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    for number in range(100):
        run = runs / (name if number == 0 else f"{name}-{number}")
        try:
            run.mkdir()
        except FileExistsError:
            continue
        return run
    raise Unavailable(f"the folder {runs}", f"a hundred runs are named {name}")


async def _run(config: SiltstoneConfig, plan: CoursePlan, screen: DemoScreen) -> Outcome:
    clock = SystemClock()
    gateway_config = dataclasses.replace(config.gateway, host="127.0.0.1", port=0)
    where = f"{config.cluster.num_shards} shards on Ray" if config.cluster.is_on else "the server in this process"
    screen.say(f"starting {where}; for a core that was not served before, that takes a minute or two")
    open_host = cluster_host if config.cluster.is_on else embedded_host
    async with (
        open_host(config) as host,
        Gateway(host, gateway_config, config.admission, clock) as gateway,
        SiltstoneClient(gateway.address, max_message_bytes=gateway_config.max_message_bytes) as client,
    ):
        if config.cluster.is_on:
            # It serves as soon as the first shard is there. A share that moves to the next one in the middle of what is
            # taught costs the round under way.
            await host.resize(config.cluster.num_shards)
        num_users = len(plan.users)
        screen.say(f"it listens at {gateway.address}; {num_users} users, {plan.num_facts} private facts each")
        # Without what several people say of the same thing there is nothing to sleep over.
        night = partial(spend_night, config=config) if plan.has_shared else None
        return await run_course(Setting(client, load_office(), plan, clock, screen), night)


def _write_results(
    run: Path, json_path: Path | None, outcome: Outcome, figures: Sequence[Figure], screen: DemoScreen
) -> None:
    write_figures(run / "figures.json", figures)
    if json_path is not None:
        write_figures(json_path, figures)
    _report.write(run / "report.html", outcome, figures)
    screen.show([_report.recall_table(outcome)], figures)


def _point_latest(runs: Path, run: Path) -> None:
    """Makes `runs/latest` name the run, in one step."""
    beside = runs / f".latest-{run.name}"
    beside.symlink_to(run.name, target_is_directory=True)
    beside.replace(runs / "latest")
