"""siltstone keys: the keys that users' keys are wrapped by."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from siltstone_services.cli.later import Later

if TYPE_CHECKING:
    from siltstone_services.commands import keys as command
else:
    command = Later("siltstone_services.commands.keys")

app = typer.Typer(no_args_is_help=True, help="The master key.")


@app.callback()
def keys() -> None:
    """The master key."""


@app.command("rotate")
def rotate(context: typer.Context) -> None:
    """Wrap by the master key what the previous one (sealing.previous_key_file, ...) has wrapped of users' keys.

    Killed half-way it can be begun again, and servers may run meanwhile. Afterwards the previous master key is not
    needed any more.
    """
    command.rotate(context.obj)
