"""siltstone demo and bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from siltstone_services.cli.later import Later
from siltstone_services.cli.options import JsonOption, QuickOption

_demo = Later("siltstone_services.demo")
_bench = Later("siltstone_services.bench")
_configuration = Later("siltstone_services.commands.configuration")

bench_app = typer.Typer(no_args_is_help=True, help="Measure.")


def demo(
    context: typer.Context,
    quick: QuickOption = False,
    json_path: JsonOption = None,
    runs: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("runs"),
) -> None:
    """Twelve people of one office tell the model about themselves, then ask it."""
    config = _configuration.load(context.obj)
    raise typer.Exit(_demo.run_demo(quick=quick, json_path=json_path, config=config, runs=runs))


@bench_app.callback()
def bench() -> None:
    """Measure."""


@bench_app.command("wake")
def wake(quick: QuickOption = False, json_path: JsonOption = None) -> None:
    """Measure how fast many users are served and learned at once."""
    raise typer.Exit(_bench.run_wake(quick=quick, json_path=json_path))


@bench_app.command("sleep")
def sleep(
    context: typer.Context,
    quick: QuickOption = False,
    json_path: JsonOption = None,
    office: Annotated[
        Path | None,
        typer.Option(help="Home in which the demo's office was taught and has not slept; made there when it is not."),
    ] = None,
) -> None:
    """Measure what nights do to the core: a newcomer's facts, secrets, anchors, the gate's verdicts, speed.

    Bad candidates that were planted, promotions that race, and kills at every write point are tests:
    `pytest -m slow tests/numerics/test_gate_planted.py tests/crash`.
    """
    config = _configuration.load(context.obj)
    raise typer.Exit(_bench.run_sleep(quick=quick, json_path=json_path, config=config, office=office))


@bench_app.command("cluster")
def cluster(
    quick: QuickOption = False,
    json_path: JsonOption = None,
    kafka: Annotated[str, typer.Option(help="host:port of brokers; a topic is made there and stays.")] = "",
    redis: Annotated[
        str, typer.Option(help="redis://host:port of a server that holds nothing else; what is stored stays.")
    ] = "",
) -> None:
    """Measure what a cluster is made of: the gateway, the journal, the store by how many users it holds.

    And what users notice of a shard that joins and one that leaves. What needs brokers or a Redis is run where they are
    given.
    """
    raise typer.Exit(_bench.run_cluster(quick=quick, json_path=json_path, brokers=kafka, redis=redis))
