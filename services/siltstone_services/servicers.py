"""The methods of the interface, over a shard host."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from typing import Any, cast

from siltstone.config import GatewayConfig
from siltstone.errors import InvalidInput
from siltstone.journal.admit import AdmissionLimits
from siltstone.ports import Clock, ShardHost
from siltstone.proto.v1 import inference_service_pb2 as inference_pb
from siltstone.proto.v1 import memory_service_pb2 as memory_pb
from siltstone.proto.v1.inference_service_pb2_grpc import InferenceServiceServicer
from siltstone.proto.v1.memory_service_pb2_grpc import MemoryServiceServicer
from siltstone.traceparent import trace_fields, traceparent_of
from siltstone.values import AnswerEnd, AnswerPart, Interaction, Parked, Receipt
from siltstone.wire.answers import answer_to_proto, generate_request_from_proto, status_to_proto
from siltstone.wire.interactions import (
    feedback_from_proto,
    interaction_from_proto,
    messages_from_proto,
    owner_from_proto,
    receipt_to_proto,
)
from siltstone.wire.memories import card_to_proto, erasure_to_proto, export_to_proto, parked_to_proto
from siltstone.wire.shards import shard_to_proto
from siltstone_services.admission import (
    check_generate,
    check_interaction,
    check_owner,
    check_score,
    renamed,
    within,
)

_LOG = logging.getLogger(__name__)


class MemoryServicer(MemoryServiceServicer):
    """Takes in what users' memories are made from, and tells about them."""

    def __init__(self, host: ShardHost, config: GatewayConfig, limits: AdmissionLimits, clock: Clock) -> None:
        self._host, self._config, self._limits, self._clock = host, config, limits, clock

    async def Record(self, request: memory_pb.RecordRequest, context: Any) -> memory_pb.RecordResponse:  # noqa: N802
        """Nothing is written unless everything is admitted."""
        num_interactions = len(request.interactions)
        if not 1 <= num_interactions <= self._config.max_interactions:
            raise InvalidInput("interactions", f"1 to {self._config.max_interactions}", str(num_interactions))
        now_ms = self._clock.now_ms()
        interactions = []
        for index, sent in enumerate(request.interactions):
            with _about(f"interactions[{index}]"):
                interaction = interaction_from_proto(sent, now_ms)
                check_interaction(interaction, self._limits)
                interactions.append(interaction)
        receipts, parked = await self._write(interactions, request.wait_absorbed, context)
        return memory_pb.RecordResponse(receipts=map(receipt_to_proto, receipts), parked=map(parked_to_proto, parked))

    async def Feedback(self, request: memory_pb.FeedbackRequest, context: Any) -> memory_pb.FeedbackResponse:  # noqa: N802
        """A correction or a thumb is an interaction like any other."""
        try:
            feedback = feedback_from_proto(request, self._clock.now_ms())
            check_interaction(feedback, self._limits)
        except InvalidInput as error:
            raise renamed(error, "messages", "exchange") from error
        (receipt,), parked = await self._write([feedback], request.wait_absorbed, context)
        return memory_pb.FeedbackResponse(
            receipt=receipt_to_proto(receipt), parked=parked_to_proto(parked[0]) if parked else None
        )

    async def GetMemory(self, request: memory_pb.GetMemoryRequest, context: Any) -> memory_pb.GetMemoryResponse:  # noqa: N802
        """See the interface."""
        owner = owner_from_proto(request.owner)
        check_owner(owner)
        return memory_pb.GetMemoryResponse(memory=card_to_proto(await self._host.memory(owner)))

    async def ExportUser(self, request: memory_pb.ExportUserRequest, context: Any) -> None:  # noqa: N802
        """See the interface."""
        owner = owner_from_proto(request.owner)
        check_owner(owner)
        for piece in export_to_proto(await self._host.export(owner), self._config.export_chunk_bytes):
            await context.write(piece)

    async def ForgetUser(self, request: memory_pb.ForgetUserRequest, context: Any) -> memory_pb.ForgetUserResponse:  # noqa: N802
        """See the interface."""
        owner = owner_from_proto(request.owner)
        check_owner(owner)
        return erasure_to_proto(await self._host.forget(owner))

    async def _write(
        self, interactions: list[Interaction], wait_absorbed: bool, context: Any
    ) -> tuple[list[Receipt], list[Parked]]:
        trace = traceparent_of(context.invocation_metadata())
        if trace:
            interactions = [replace(interaction, trace=trace) for interaction in interactions]
        receipts = await self._host.record(interactions)
        _log_recorded(receipts, trace)
        parked = await self._host.wait_absorbed(receipts) if wait_absorbed else []
        # The caller has the payload: it was sent with this call, or with an earlier one.
        return receipts, [replace(one, payload=b"") for one in parked]


class InferenceServicer(InferenceServiceServicer):
    """Answers from the core under a user's memory."""

    def __init__(self, host: ShardHost, config: GatewayConfig, limits: AdmissionLimits) -> None:
        self._host, self._config, self._limits = host, config, limits

    async def Generate(self, request: inference_pb.GenerateRequest, context: Any) -> None:  # noqa: N802
        """Gives the answer up when the caller does, or when its time has passed: both cancel this."""
        trace = traceparent_of(context.invocation_metadata())
        asked = replace(generate_request_from_proto(request), trace=trace)
        check_generate(asked, self._limits, self._config)
        items = cast(AsyncGenerator[AnswerPart | AnswerEnd, None], self._host.generate(asked))
        async with aclosing(items):
            async for item in items:
                if isinstance(item, AnswerEnd) and item.recorded is not None:
                    _log_recorded([item.recorded], trace)
                await context.write(answer_to_proto(item))

    async def Score(self, request: inference_pb.ScoreRequest, context: Any) -> inference_pb.ScoreResponse:  # noqa: N802
        """See the interface."""
        owner, prompt = owner_from_proto(request.owner), messages_from_proto("prompt", request.prompt)
        answers = list(request.answers)
        check_score(owner, prompt, answers, self._limits, self._config)
        card = await self._host.memory(owner)
        scores = await self._host.score(owner, prompt, answers)
        return inference_pb.ScoreResponse(
            scores=[inference_pb.AnswerScore(user_log_prob=user, core_log_prob=core) for user, core in scores],
            core=card.core,
            snapshot_sequence=card.sequence,
        )

    async def GetStatus(self, request: inference_pb.GetStatusRequest, context: Any) -> inference_pb.GetStatusResponse:  # noqa: N802
        """See the interface."""
        return inference_pb.GetStatusResponse(status=status_to_proto(await self._host.status()))

    async def ListShards(  # noqa: N802
        self, request: inference_pb.ListShardsRequest, context: Any
    ) -> inference_pb.ListShardsResponse:
        """See the interface."""
        return inference_pb.ListShardsResponse(shards=map(shard_to_proto, await self._host.shards()))


def _log_recorded(receipts: Sequence[Receipt], trace: str) -> None:
    """Tells where in the journal it is what came with a trace, for who follows one: else no line is written."""
    if trace and _LOG.isEnabledFor(logging.DEBUG):
        for receipt in receipts:
            told = {"interaction_id": receipt.interaction_id, **trace_fields(trace)}
            place = {"partition": receipt.partition, "position": receipt.position, "is_repeat": receipt.duplicate}
            _LOG.debug("interaction recorded", extra={**told, **place})


@contextmanager
def _about(field: str) -> Iterator[None]:
    try:
        yield
    except InvalidInput as error:
        raise within(error, field) from error
