"""siltstone record, feedback and replay: what memories are made from."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from siltstone_services.cli.later import Later
from siltstone_services.cli.options import (
    AddressOption,
    EmbeddedOption,
    JsonOption,
    Reach,
    ShareOption,
    TenantOption,
    UserOption,
    WaitOption,
)

if TYPE_CHECKING:
    from siltstone_services.commands import feeding as command
    from siltstone_services.commands import replay as replay_command
else:
    command = Later("siltstone_services.commands.feeding")
    replay_command = Later("siltstone_services.commands.replay")


class Feedback(StrEnum):
    """What a user thinks of an answer."""

    CORRECTION = "correction"
    UP = "up"
    DOWN = "down"


class SourceKind(StrEnum):
    """Kinds of other people's data."""

    JSONL = "jsonl"
    IRC = "irc"
    MBOX = "mbox"
    CHATGPT_EXPORT = "chatgpt-export"


def record(
    context: typer.Context,
    user: UserOption,
    text: Annotated[str | None, typer.Argument(help="What the user says.")] = None,
    file: Annotated[Path | None, typer.Option(help="A text file to read; - for the standard input.")] = None,
    document: Annotated[
        bool, typer.Option("--document", help="TEXT is something to read, not something said.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Learn a file anew that is known already, or was forgotten since.")
    ] = False,
    id_: Annotated[
        str, typer.Option("--id", help="Its name: TEXT said again under the same one is recorded once.")
    ] = "",
    share: ShareOption = False,
    wait: WaitOption = True,
    tenant: TenantOption = "local",
    address: AddressOption = None,
    embedded: EmbeddedOption = False,
) -> None:
    """Let a user's memory learn a text, or a file as documents. The same file a second time changes nothing."""
    wish = command.RecordWish(tenant, user, text, file, document, again, share, wait, id_)
    command.record(Reach(context.obj, address, embedded), wish)


def feedback(
    context: typer.Context,
    user: UserOption,
    kind: Annotated[Feedback, typer.Option(help="What the user thinks of the answer.")],
    question: Annotated[str, typer.Option(help="What was asked.")],
    answer: Annotated[str, typer.Option(help="What was answered.")],
    correction: Annotated[str, typer.Option(help="What should have been answered.")] = "",
    share: ShareOption = False,
    wait: WaitOption = True,
    tenant: TenantOption = "local",
    address: AddressOption = None,
    embedded: EmbeddedOption = False,
) -> None:
    """Tell what a user thinks of an answer."""
    reach = Reach(context.obj, address, embedded)
    command.feedback(reach, tenant, user, kind.value, question, answer, correction, share, wait)


def replay(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="File, archive or folder to replay.")],
    source: Annotated[SourceKind, typer.Option("--from", help="What kind of data it is.")],
    users: Annotated[int | None, typer.Option(min=1, help="Only the first so many users.")] = None,
    max_: Annotated[int | None, typer.Option("--max", min=1, help="Only so many interactions.")] = None,
    rate: Annotated[float | None, typer.Option(min=0.001, help="Interactions a second at most.")] = None,
    batch: Annotated[int, typer.Option(min=1, max=256, help="Interactions of one call.")] = 32,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until everything is absorbed.")] = False,
    json_path: JsonOption = None,
    tenant: Annotated[str, typer.Option(help="The tenant of every user.")] = "replay",
    user: Annotated[str, typer.Option(help="Whose data it is, for chatgpt-export.")] = "",
    salt: Annotated[str, typer.Option(envvar="SILTSTONE_SALT", help="Key of the hash in place of real names.")] = "",
    share: ShareOption = False,
    address: AddressOption = None,
    embedded: EmbeddedOption = False,
) -> None:
    """Feed other people's data to the server as if they had said it now. Doing it again writes nothing twice."""
    wish = replay_command.ReplayWish(
        file, source.value, users, max_, rate, batch, wait, json_path, tenant, user, salt, share
    )
    replay_command.run(Reach(context.obj, address, embedded), wish)
