"""siltstone memory, export and forget: what is kept about a user."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from siltstone_services.cli.later import Later
from siltstone_services.cli.options import AddressOption, EmbeddedOption, Reach, TenantOption, UserOption

if TYPE_CHECKING:
    from siltstone_services.commands import memory as command
else:
    command = Later("siltstone_services.commands.memory")


def memory(
    context: typer.Context,
    user: UserOption,
    tenant: TenantOption = "local",
    address: AddressOption = None,
    embedded: EmbeddedOption = False,
) -> None:
    """Describe a user's memory, without its content."""
    command.show(Reach(context.obj, address, embedded), tenant, user)


def export(
    context: typer.Context,
    user: UserOption,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Zip file to write (default: USER.zip).")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    tenant: TenantOption = "local",
    address: AddressOption = None,
    embedded: EmbeddedOption = False,
) -> None:
    """Write everything kept about a user to a zip file."""
    command.export(Reach(context.obj, address, embedded), tenant, user, output, force)


def forget(
    context: typer.Context,
    user: UserOption,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    tenant: TenantOption = "local",
    address: AddressOption = None,
    embedded: EmbeddedOption = False,
) -> None:
    """Remove everything kept about a user, for good."""
    if not yes:
        typer.confirm(f"Remove everything kept about {tenant}/{user}, for good?", abort=True)
    command.forget(Reach(context.obj, address, embedded), tenant, user)
