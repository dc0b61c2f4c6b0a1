"""siltstone up and cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from siltstone_services.cli.later import Later
from siltstone_services.cli.options import MAX_SHARDS, AddressOption, Format, FormatOption, Reach

if TYPE_CHECKING:
    from siltstone_services.commands import shards as shards_command
    from siltstone_services.commands import up as command
else:
    command = Later("siltstone_services.commands.up")
    shards_command = Later("siltstone_services.commands.shards")


cluster_app = typer.Typer(help="The shards of a server.")


def up(
    context: typer.Context,
    config: Annotated[Path | None, typer.Option(help="Configuration file, as before the command's name.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen at (default: this machine only).")] = None,
    port: Annotated[int | None, typer.Option(help="TCP port; 0 takes a free one.")] = None,
    core: Annotated[str | None, typer.Option(help="Core to serve.")] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Start the server. Ctrl-C lets running answers end, then stops.

    Gateway, journal and memories are in one process, unless the configuration has cluster.is_on: then shards are
    started on Ray, over the Kafka and the Redis that it names.
    """
    overrides = context.obj.overrides(gateway__host=host, gateway__port=port, core=core)
    command.run(overrides, config or context.obj.config, log_level)


@cluster_app.callback(invoke_without_command=True)
def cluster(
    context: typer.Context,
    partitions: Annotated[bool, typer.Option("--partitions", help="Show every partition too.")] = False,
    address: AddressOption = None,
    format_: FormatOption = Format.TEXT,
) -> None:
    """Show the shards of a server: what they own, what waits, what they hold and how fast they are."""
    if context.invoked_subcommand is None:
        shards_command.show(Reach(context.obj, address, False), partitions, format_)


@cluster_app.command("resize")
def resize(
    context: typer.Context,
    num_shards: Annotated[int, typer.Argument(help="Shards there are to be.", min=1, max=MAX_SHARDS)],
    address: AddressOption = None,
    format_: FormatOption = Format.TEXT,
) -> None:
    """Let shards join a running server, or leave it, until there are so many; no call fails for it.

    A shard that leaves commits the round under way, gives its partitions up, lets its answers end, and then ends. Waits
    until it is done; Ctrl-C ends the waiting only. A server that starts anew starts cluster.num_shards again.
    """
    shards_command.resize(Reach(context.obj, address, False), num_shards, format_)
