"""siltstone config."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from siltstone_services.cli.later import Later

if TYPE_CHECKING:
    from siltstone_services.commands import configuration as command
else:
    command = Later("siltstone_services.commands.configuration")

app = typer.Typer(no_args_is_help=True, help="The configuration.")


@app.command("show")
def show(context: typer.Context) -> None:
    """Show the whole configuration as it holds now, in the form of siltstone.toml."""
    command.show(context.obj)


@app.command("schema")
def schema() -> None:
    """Show the JSON schema of the configuration."""
    command.show_schema()
