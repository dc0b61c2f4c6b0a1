"""Interactions, feedback and receipts on the wire."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from siltstone.errors import InvalidInput
from siltstone.proto.v1 import interaction_pb2 as pb
from siltstone.proto.v1 import memory_service_pb2 as memory_pb
from siltstone.values import (
    SCHEMA_VERSION,
    Consent,
    Interaction,
    InteractionKind,
    Message,
    Receipt,
    Role,
    UserKey,
)
from siltstone.wire.numbering import Numbering, refusing_what_does_not_fit

ROLES: Final = Numbering(
    {Role.SYSTEM: pb.ROLE_SYSTEM, Role.USER: pb.ROLE_USER, Role.ASSISTANT: pb.ROLE_ASSISTANT},
)
KINDS: Final = Numbering(
    {
        InteractionKind.CONVERSATION: pb.INTERACTION_KIND_CONVERSATION,
        InteractionKind.DOCUMENT: pb.INTERACTION_KIND_DOCUMENT,
        InteractionKind.CORRECTION: pb.INTERACTION_KIND_CORRECTION,
        InteractionKind.THUMB_UP: pb.INTERACTION_KIND_THUMB_UP,
        InteractionKind.THUMB_DOWN: pb.INTERACTION_KIND_THUMB_DOWN,
    }
)
FEEDBACK_KINDS: Final = Numbering(
    {
        InteractionKind.CORRECTION: memory_pb.FEEDBACK_KIND_CORRECTION,
        InteractionKind.THUMB_UP: memory_pb.FEEDBACK_KIND_THUMB_UP,
        InteractionKind.THUMB_DOWN: memory_pb.FEEDBACK_KIND_THUMB_DOWN,
    }
)


@refusing_what_does_not_fit
def owner_to_proto(owner: UserKey) -> pb.UserKey:
    """Writes a user's key."""
    return pb.UserKey(tenant=owner.tenant, user=owner.user)


def owner_from_proto(owner: pb.UserKey) -> UserKey:
    """Reads a user's key."""
    return UserKey(owner.tenant, owner.user)


@refusing_what_does_not_fit
def messages_to_proto(messages: Iterable[Message]) -> list[pb.Message]:
    """Writes a conversation."""
    return [pb.Message(role=ROLES.number(message.role), text=message.text) for message in messages]


def messages_from_proto(field: str, messages: Sequence[pb.Message]) -> tuple[Message, ...]:
    """Reads the conversation in `field`.

    Raises: InvalidInput for an unknown role.
    """
    return tuple(
        Message(ROLES.member(f"{field}[{index}].role", message.role), message.text)
        for index, message in enumerate(messages)
    )


def consent_to_proto(consent: Consent) -> pb.Consent:
    """Writes a consent."""
    return pb.Consent(learn=consent.learn, share=consent.share)


def consent_from_proto(consent: pb.Consent) -> Consent:
    """Reads a consent; an absent one agrees to nothing."""
    return Consent(learn=consent.learn, share=consent.share)


@refusing_what_does_not_fit
def interaction_to_proto(interaction: Interaction) -> pb.Interaction:
    """Writes an interaction."""
    return pb.Interaction(
        id=interaction.id,
        owner=owner_to_proto(interaction.owner),
        kind=KINDS.number(interaction.kind),
        occurred_at_ms=interaction.occurred_at_ms,
        messages=messages_to_proto(interaction.messages),
        correction=interaction.correction,
        consent=consent_to_proto(interaction.consent),
        schema_version=interaction.schema_version,
    )


def interaction_from_proto(interaction: pb.Interaction, received_at_ms: int) -> Interaction:
    """Reads an interaction. Where it does not say when it happened, it happened at `received_at_ms`.

    Raises: InvalidInput for an unknown kind or role, and for a newer schema, whose fields cannot be known.
    """
    version = interaction.schema_version or SCHEMA_VERSION
    if version != SCHEMA_VERSION:
        raise InvalidInput("schema_version", f"1 to {SCHEMA_VERSION}", str(version))
    return Interaction(
        id=interaction.id,
        owner=owner_from_proto(interaction.owner),
        kind=KINDS.member("kind", interaction.kind),
        occurred_at_ms=interaction.occurred_at_ms or received_at_ms,
        messages=messages_from_proto("messages", interaction.messages),
        correction=interaction.correction,
        consent=consent_from_proto(interaction.consent),
        schema_version=version,
    )


@refusing_what_does_not_fit
def feedback_to_proto(feedback: Interaction, *, wait_absorbed: bool) -> memory_pb.FeedbackRequest:
    """Writes a correction or a thumb as the request that records it.

    Raises: InvalidInput for an interaction that is neither.
    """
    if feedback.kind in (InteractionKind.CONVERSATION, InteractionKind.DOCUMENT):
        raise InvalidInput("kind", "correction, thumb_up or thumb_down", feedback.kind)
    return memory_pb.FeedbackRequest(
        id=feedback.id,
        owner=owner_to_proto(feedback.owner),
        kind=FEEDBACK_KINDS.number(feedback.kind),
        exchange=messages_to_proto(feedback.messages),
        correction=feedback.correction,
        occurred_at_ms=feedback.occurred_at_ms,
        consent=consent_to_proto(feedback.consent),
        wait_absorbed=wait_absorbed,
    )


def feedback_from_proto(request: memory_pb.FeedbackRequest, received_at_ms: int) -> Interaction:
    """Reads a correction or a thumb.

    Raises: InvalidInput for an unknown kind or role.
    """
    return Interaction(
        id=request.id,
        owner=owner_from_proto(request.owner),
        kind=FEEDBACK_KINDS.member("kind", request.kind),
        occurred_at_ms=request.occurred_at_ms or received_at_ms,
        messages=messages_from_proto("exchange", request.exchange),
        correction=request.correction,
        consent=consent_from_proto(request.consent),
    )


@refusing_what_does_not_fit
def receipt_to_proto(receipt: Receipt) -> pb.Receipt:
    """Writes a receipt."""
    return pb.Receipt(
        interaction_id=receipt.interaction_id,
        partition=receipt.partition,
        position=receipt.position,
        duplicate=receipt.duplicate,
    )


def receipt_from_proto(receipt: pb.Receipt) -> Receipt:
    """Reads a receipt."""
    return Receipt(receipt.interaction_id, receipt.partition, receipt.position, receipt.duplicate)
