"""Requests for answers, answers, scores and the status on the wire."""

from __future__ import annotations

from typing import Final

from siltstone.errors import InvalidInput
from siltstone.proto.v1 import inference_service_pb2 as pb
from siltstone.values import (
    AnswerEnd,
    AnswerPart,
    FinishReason,
    GenerateRequest,
    RecallMode,
    Sampling,
    ShardStatus,
)
from siltstone.wire.interactions import (
    consent_from_proto,
    consent_to_proto,
    messages_from_proto,
    messages_to_proto,
    owner_from_proto,
    owner_to_proto,
    receipt_from_proto,
    receipt_to_proto,
)
from siltstone.wire.numbering import Numbering, refusing_what_does_not_fit

_RECALL_NUMBERS: Final[dict[RecallMode, pb.RecallMode]] = {
    "weights": pb.RECALL_MODE_WEIGHTS,
    "text": pb.RECALL_MODE_TEXT,
    "both": pb.RECALL_MODE_BOTH,
}
_WHOLE_NUMBERS: Final = {"max_tokens": f"1 to {2**31 - 1}", "seed": f"0 to {2**64 - 1}"}
RECALL_MODES: Final = Numbering(_RECALL_NUMBERS)
FINISH_REASONS: Final = Numbering(
    {FinishReason.STOP: pb.FINISH_REASON_STOP, FinishReason.MAX_TOKENS: pb.FINISH_REASON_MAX_TOKENS}
)


def sampling_to_proto(sampling: Sampling) -> pb.Sampling:
    """Writes how tokens are chosen.

    Raises: InvalidInput, naming the field, for a number that protobuf cannot hold.
    """
    written = pb.Sampling(temperature=sampling.temperature, top_p=sampling.top_p)
    for name, expected in _WHOLE_NUMBERS.items():
        try:
            setattr(written, name, getattr(sampling, name))
        except (ValueError, OverflowError) as error:
            raise InvalidInput(f"sampling.{name}", expected, str(getattr(sampling, name))) from error
    return written


def sampling_from_proto(sampling: pb.Sampling) -> Sampling:
    """Reads how tokens are chosen; an absent field takes its default."""
    given = {field.name: value for field, value in sampling.ListFields()}
    return Sampling(**given)


@refusing_what_does_not_fit
def generate_request_to_proto(request: GenerateRequest) -> pb.GenerateRequest:
    """Writes a request for an answer."""
    return pb.GenerateRequest(
        owner=owner_to_proto(request.owner),
        messages=messages_to_proto(request.messages),
        sampling=sampling_to_proto(request.sampling),
        recall=RECALL_MODES.number(request.recall),
        core_only=request.core_only,
        interaction_id=request.interaction_id,
        consent=consent_to_proto(request.consent),
    )


def generate_request_from_proto(request: pb.GenerateRequest) -> GenerateRequest:
    """Reads a request for an answer.

    Raises: InvalidInput for an unknown role or recall mode.
    """
    return GenerateRequest(
        owner=owner_from_proto(request.owner),
        messages=messages_from_proto("messages", request.messages),
        sampling=sampling_from_proto(request.sampling),
        recall=RECALL_MODES.member("recall", request.recall or pb.RECALL_MODE_WEIGHTS),
        core_only=request.core_only,
        interaction_id=request.interaction_id,
        consent=consent_from_proto(request.consent),
    )


@refusing_what_does_not_fit
def answer_to_proto(item: AnswerPart | AnswerEnd) -> pb.GenerateResponse:
    """Writes a piece of an answer, or its end."""
    if isinstance(item, AnswerPart):
        return pb.GenerateResponse(part=pb.AnswerPart(text=item.text))
    end = pb.AnswerEnd(
        reason=FINISH_REASONS.number(item.reason),
        core=item.core,
        snapshot_sequence=item.snapshot_sequence,
        num_prompt_tokens=item.num_prompt_tokens,
        num_answer_tokens=item.num_answer_tokens,
        recalled=item.recalled,
        recorded=None if item.recorded is None else receipt_to_proto(item.recorded),
    )
    return pb.GenerateResponse(end=end)


def answer_from_proto(response: pb.GenerateResponse) -> AnswerPart | AnswerEnd:
    """Reads a piece of an answer, or its end.

    Raises: InvalidInput when it is neither.
    """
    match response.WhichOneof("item"):
        case "part":
            return AnswerPart(response.part.text)
        case "end":
            end = response.end
            return AnswerEnd(
                reason=FINISH_REASONS.member("end.reason", end.reason),
                core=end.core,
                snapshot_sequence=end.snapshot_sequence,
                num_prompt_tokens=end.num_prompt_tokens,
                num_answer_tokens=end.num_answer_tokens,
                recalled=tuple(end.recalled),
                recorded=receipt_from_proto(end.recorded) if end.HasField("recorded") else None,
            )
        case _:
            raise InvalidInput("item", "a part or the end of an answer", "neither")


@refusing_what_does_not_fit
def status_to_proto(status: ShardStatus) -> pb.ShardStatus:
    """Writes a shard's status."""
    return pb.ShardStatus(
        core=status.core,
        num_users_stored=status.num_users_stored,
        num_users_resident=status.num_users_resident,
        resident_bytes=status.resident_bytes,
        lag_interactions=status.lag_interactions,
        num_answers_running=status.num_answers_running,
        num_absorbed=status.num_absorbed,
        num_parked=status.num_parked,
        absorbed_tokens=status.absorbed_tokens,
        answered_tokens=status.answered_tokens,
        busy_s=status.busy_s,
        num_versions=status.num_versions,
        num_rebased=status.num_rebased,
        num_pinned=status.num_pinned,
    )


def status_from_proto(status: pb.ShardStatus) -> ShardStatus:
    """Reads a shard's status."""
    return ShardStatus(
        core=status.core,
        num_users_stored=status.num_users_stored,
        num_users_resident=status.num_users_resident,
        resident_bytes=status.resident_bytes,
        lag_interactions=status.lag_interactions,
        num_answers_running=status.num_answers_running,
        num_absorbed=status.num_absorbed,
        num_parked=status.num_parked,
        absorbed_tokens=status.absorbed_tokens,
        answered_tokens=status.answered_tokens,
        busy_s=status.busy_s,
        num_versions=status.num_versions,
        num_rebased=status.num_rebased,
        num_pinned=status.num_pinned,
    )
