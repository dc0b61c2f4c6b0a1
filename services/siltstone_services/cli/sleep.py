"""siltstone sleep: the nights in which the core learns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from siltstone_services.cli.later import Later
from siltstone_services.cli.options import MAX_NUMBER, AddressOption, Format, FormatOption, Reach

if TYPE_CHECKING:
    from siltstone_services.commands import sleep as command
else:
    command = Later("siltstone_services.commands.sleep")

app = typer.Typer(no_args_is_help=True, help="Let the shared core learn what many users' memories agree on.")

SeedOption = Annotated[int, typer.Option(help="Seed of everything drawn.", min=0, max=MAX_NUMBER)]
LookOption = Annotated[bool, typer.Option("--wait/--no-wait", help="Look on until it is over.")]
NightArgument = Annotated[int | None, typer.Argument(help="The number of a night.", min=1, max=MAX_NUMBER)]


@app.command("run")
def run(
    context: typer.Context,
    seed: SeedOption = 0,
    since: Annotated[
        int, typer.Option(help="Only what was said since, in milliseconds since 1970.", min=0, max=MAX_NUMBER)
    ] = 0,
    wait: LookOption = True,
    address: AddressOption = None,
) -> None:
    """Run one night, from the plan to the gate's verdict: beside the server of the home, or without one."""
    command.run(Reach(context.obj, address, False), seed, since, wait)


@app.command("status")
def status(
    context: typer.Context,
    night: NightArgument = None,
    address: AddressOption = None,
    format_: FormatOption = Format.TEXT,
) -> None:
    """Tell where the nights are, or one of them."""
    command.status(Reach(context.obj, address, False), night, format_)


@app.command("cancel")
def cancel(context: typer.Context, night: NightArgument = None, address: AddressOption = None) -> None:
    """End a night between two steps: nothing comes of it. Without a number, the one that runs."""
    command.cancel(Reach(context.obj, address, False), night)


@app.command("task")
def task(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="The task: a TOML file with a text and questions.", dir_okay=False)],
    seed: SeedOption = 0,
    wait: LookOption = True,
    address: AddressOption = None,
) -> None:
    """Run a night in which the core improves itself on a task: from dreams of the file's text to the gate's verdict."""
    command.improve(Reach(context.obj, address, False), file, seed, wait)
