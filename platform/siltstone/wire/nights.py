"""Nights on the wire."""

from __future__ import annotations

from typing import Final

from siltstone.proto.v1 import sleep_service_pb2 as pb
from siltstone.sleep_values import Night, NightStage
from siltstone.wire.numbering import Numbering, refusing_what_does_not_fit

STAGES: Final = Numbering(
    {
        NightStage.PLAN: pb.NIGHT_STAGE_PLAN,
        NightStage.DREAM: pb.NIGHT_STAGE_DREAM,
        NightStage.DISTIL: pb.NIGHT_STAGE_DISTIL,
        NightStage.MEASURE: pb.NIGHT_STAGE_MEASURE,
        NightStage.RECORD: pb.NIGHT_STAGE_RECORD,
        NightStage.JUDGE: pb.NIGHT_STAGE_JUDGE,
        NightStage.DONE: pb.NIGHT_STAGE_DONE,
        NightStage.FAILED: pb.NIGHT_STAGE_FAILED,
        NightStage.CANCELLED: pb.NIGHT_STAGE_CANCELLED,
    }
)


@refusing_what_does_not_fit
def run_request_to_proto(seed: int, since_ms: int) -> pb.RunNightRequest:
    """Writes what is asked of a night."""
    return pb.RunNightRequest(seed=seed, since_ms=since_ms)


@refusing_what_does_not_fit
def task_request_to_proto(content: bytes, seed: int) -> pb.RunTaskRequest:
    """Writes what is asked of a night over a task."""
    return pb.RunTaskRequest(content=content, seed=seed)


@refusing_what_does_not_fit
def night_to_proto(night: Night) -> pb.Night:
    """Writes a night."""
    return pb.Night(
        number=night.number,
        stage=STAGES.number(night.stage),
        step=night.step,
        num_steps=night.num_steps,
        said=night.said,
        seed=night.seed,
        since_ms=night.since_ms,
        started_at_ms=night.started_at_ms,
        updated_at_ms=night.updated_at_ms,
        pid=night.pid,
        is_cancelling=night.is_cancelling,
        version=night.version,
        verdict=night.verdict,
        error=night.error,
        task=night.task,
    )


def night_from_proto(night: pb.Night) -> Night:
    """Reads a night.

    Raises: InvalidInput for an unknown stage.
    """
    return Night(
        number=night.number,
        stage=STAGES.member("night.stage", night.stage),
        seed=night.seed,
        since_ms=night.since_ms,
        pid=night.pid,
        started_at_ms=night.started_at_ms,
        updated_at_ms=night.updated_at_ms,
        step=night.step,
        num_steps=night.num_steps,
        said=night.said,
        is_cancelling=night.is_cancelling,
        version=night.version,
        verdict=night.verdict,
        error=night.error,
        task=night.task,
    )
