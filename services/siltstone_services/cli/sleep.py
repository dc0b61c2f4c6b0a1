"""siltstone sleep, versions and gate: what the core learned, what speaks for it, and which version serves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from siltstone_services.cli.later import Later

if TYPE_CHECKING:
    from siltstone_services.commands import sleep as command
else:
    command = Later("siltstone_services.commands.sleep")

sleep_app = typer.Typer(no_args_is_help=True, help="Let the shared core learn what many users' memories agree on.")
versions_app = typer.Typer(no_args_is_help=True, help="The versions of the core.")
gate_app = typer.Typer(no_args_is_help=True, help="What a version must pass.")

NumberArgument = Annotated[int, typer.Argument(help="The number of a version.", min=1)]


@sleep_app.command("run")
def run(
    context: typer.Context,
    seed: Annotated[int, typer.Option(help="Seed of everything drawn.", min=0)] = 0,
    since: Annotated[int, typer.Option(help="Only what was said since, in milliseconds since 1970.", min=0)] = 0,
) -> None:
    """Run one night over the home, while no server uses it: from the plan to the gate's verdict."""
    command.run(context.obj, seed, since)


@sleep_app.command("task")
def task(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="The task: a TOML file with a text and questions.", dir_okay=False)],
    seed: Annotated[int, typer.Option(help="Seed of everything drawn.", min=0)] = 0,
) -> None:
    """Let the core improve itself on a task, while no server uses the home: from dreams to the gate's verdict."""
    command.improve(context.obj, file, seed)


@versions_app.command("list")
def list_(context: typer.Context) -> None:
    """List the versions."""
    command.show_all(context.obj)


@versions_app.command("show")
def show(context: typer.Context, number: NumberArgument) -> None:
    """Show one version: where it comes from and what the gate said."""
    command.show(context.obj, number)


@versions_app.command("promote")
def promote(context: typer.Context, number: NumberArgument) -> None:
    """Make a version that passed the gate the champion."""
    command.promote(context.obj, number)


@versions_app.command("rollback")
def rollback(context: typer.Context) -> None:
    """Go back to the champion before."""
    command.rollback(context.obj)


@gate_app.command("explain")
def explain(context: typer.Context, number: NumberArgument) -> None:
    """Say in words why a version was accepted or refused."""
    command.explain_verdict(context.obj, number)
