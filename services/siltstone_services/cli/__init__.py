"""The command line: declarations only. What a command does is imported when it runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from siltstone.errors import SiltstoneError
from siltstone_services.cli import (
    chat,
    configuration,
    core,
    evaluation,
    feeding,
    keys,
    memory,
    objects,
    server,
    sleep,
    versions,
)
from siltstone_services.cli.exits import exit_code, one_line
from siltstone_services.cli.options import Settings


class _Commands(TyperGroup):
    """Tells an error of ours as one line, with an exit code by its kind."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except SiltstoneError as error:
            typer.echo(one_line(error), err=True)
            raise typer.Exit(exit_code(error)) from error


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="One language model that learns each of its users while it serves them.",
)


@app.callback()
def siltstone(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option(help="Configuration file (default: siltstone.toml in the home).")
    ] = None,
    home: Annotated[Path | None, typer.Option(help="Home folder (default: $SILTSTONE_HOME or ~/.siltstone).")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Set one value of the configuration.")
    ] = None,
) -> None:
    """Takes the options that hold for every command."""
    context.obj = Settings(config, home, tuple(set_ or ()))


app.command("up")(server.up)
app.add_typer(server.cluster_app, name="cluster")
app.command("chat")(chat.chat)
app.command("record")(feeding.record)
app.command("feedback")(feeding.feedback)
app.command("replay")(feeding.replay)
app.command("memory")(memory.memory)
app.command("export")(memory.export)
app.command("forget")(memory.forget)
app.add_typer(core.app, name="core")
app.command("demo")(evaluation.demo)
app.add_typer(evaluation.bench_app, name="bench")
app.add_typer(configuration.app, name="config")
app.add_typer(keys.app, name="keys")
app.add_typer(objects.app, name="objects")
app.add_typer(sleep.app, name="sleep")
app.add_typer(versions.app, name="versions")
app.add_typer(versions.gate_app, name="gate")


def main() -> None:
    """Runs the command line. An error nobody foresaw is one line too; SILTSTONE_TRACE=1 shows where it came from."""
    try:
        app()
    except Exception as error:
        if os.environ.get("SILTSTONE_TRACE"):
            raise
        told = f"siltstone: internal error: {type(error).__name__}: {error} (SILTSTONE_TRACE=1 shows where)"
        typer.echo(told, err=True)
        sys.exit(1)
