"""siltstone up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from siltstone_services.cli.later import Later

if TYPE_CHECKING:
    from siltstone_services.commands import up as command
else:
    command = Later("siltstone_services.commands.up")


def up(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="Address to listen at (default: this machine only).")] = None,
    port: Annotated[int | None, typer.Option(help="TCP port; 0 takes a free one.")] = None,
    core: Annotated[str | None, typer.Option(help="Core to serve.")] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Start the server: gateway, journal and memories in one process. Ctrl-C lets running answers end, then stops."""
    command.run(context.obj.overrides(gateway__host=host, gateway__port=port, core=core), context.obj.config, log_level)
