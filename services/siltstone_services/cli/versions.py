"""siltstone versions and gate: the versions of the core, what speaks for each, and which one serves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from siltstone_services.cli.later import Later
from siltstone_services.cli.options import MAX_NUMBER, AddressOption, Format, FormatOption, Reach

if TYPE_CHECKING:
    from siltstone_services.commands import versions as command
else:
    command = Later("siltstone_services.commands.versions")

app = typer.Typer(no_args_is_help=True, help="The versions of the core.")
gate_app = typer.Typer(no_args_is_help=True, help="What a version must pass.")

NumberArgument = Annotated[int, typer.Argument(help="The number of a version.", min=1, max=MAX_NUMBER)]
EpochOption = Annotated[
    int | None,
    typer.Option(
        help="Refuse if the champion is no longer that of this epoch (default: the present one).", min=0, max=MAX_NUMBER
    ),
]


@app.command("list")
def list_(context: typer.Context, address: AddressOption = None, format_: FormatOption = Format.TEXT) -> None:
    """List the versions."""
    command.show_all(Reach(context.obj, address, False), format_)


@app.command("show")
def show(
    context: typer.Context,
    number: NumberArgument,
    address: AddressOption = None,
    format_: FormatOption = Format.TEXT,
) -> None:
    """Show one version: where it comes from, what was measured and what the gate said."""
    command.show(Reach(context.obj, address, False), number, format_)


@app.command("promote")
def promote(
    context: typer.Context, number: NumberArgument, expected_epoch: EpochOption = None, address: AddressOption = None
) -> None:
    """Make a version that passed the gate the champion."""
    command.promote(Reach(context.obj, address, False), number, expected_epoch)


@app.command("rollback")
def rollback(context: typer.Context, expected_epoch: EpochOption = None, address: AddressOption = None) -> None:
    """Go back to the champion before."""
    command.rollback(Reach(context.obj, address, False), expected_epoch)


@app.command("compare")
def compare(
    context: typer.Context,
    number: NumberArgument,
    other: NumberArgument,
    measure: Annotated[
        bool, typer.Option("--measure", help="Also read the anchors under both cores, in this process.")
    ] = False,
    address: AddressOption = None,
    format_: FormatOption = Format.TEXT,
) -> None:
    """Compare two versions: what was measured, what the gate said, where they come from."""
    command.compare(Reach(context.obj, address, False), number, other, measure, format_)


@gate_app.command("explain")
def explain(
    context: typer.Context,
    number: NumberArgument,
    address: AddressOption = None,
    format_: FormatOption = Format.TEXT,
) -> None:
    """Say in words why a version was accepted or refused."""
    command.explain(Reach(context.obj, address, False), number, format_)
