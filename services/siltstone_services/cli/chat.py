"""siltstone chat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from siltstone_services.cli.later import Later
from siltstone_services.cli.options import (
    AddressOption,
    EmbeddedOption,
    Reach,
    Recall,
    ShareOption,
    TenantOption,
    UserOption,
)

if TYPE_CHECKING:
    from siltstone_services.commands import chat as command
else:
    command = Later("siltstone_services.commands.chat")


def chat(
    context: typer.Context,
    user: UserOption,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Ask this one thing and end.")] = None,
    recall: Annotated[Recall, typer.Option(help="What answers may draw on.")] = Recall.WEIGHTS,
    consent: Annotated[
        bool | None, typer.Option("--consent/--no-consent", help="Learn from the exchange (default: ask once).")
    ] = None,
    share: ShareOption = False,
    core_only: Annotated[bool, typer.Option("--core-only", help="Leave the user's memory out.")] = False,
    max_tokens: Annotated[int, typer.Option(help="Tokens of an answer at most.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="The share of probability to choose from.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Start of the random choice.")] = 0,
    tenant: TenantOption = "local",
    address: AddressOption = None,
    embedded: EmbeddedOption = False,
) -> None:
    """Talk to the model as a user. /help tells what can be said besides."""
    wish = command.ChatWish(tenant, user, recall.value, consent, share, core_only, max_tokens, temperature, top_p, seed)
    command.run(Reach(context.obj, address, embedded), wish, message)
