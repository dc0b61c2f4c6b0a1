"""siltstone objects: the object store in which a cluster has its large memories."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from siltstone_services.cli.later import Later

if TYPE_CHECKING:
    from siltstone_services.commands import objects as command
else:
    command = Later("siltstone_services.commands.objects")

app = typer.Typer(no_args_is_help=True, help="The object store of large memories.")


@app.callback()
def objects() -> None:
    """The object store of large memories."""


@app.command("sweep")
def sweep(context: typer.Context) -> None:
    """Remove the objects that no memory's record points to, which crashes and lost answers leave behind.

    Looks twice, with objects.put_within_s between: what is on its way is left alone. Servers may run meanwhile; killed
    half-way it can be begun again.
    """
    command.sweep(context.obj)
