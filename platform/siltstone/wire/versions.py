"""Versions of the core, their verdicts and the champion on the wire."""

from __future__ import annotations

from typing import Final

from siltstone.proto.v1 import version_service_pb2 as pb
from siltstone.sleep_values import (
    Champion,
    CheckResult,
    MeasurementSummary,
    Verdict,
    VersionCard,
    VersionComparison,
    VersionReport,
    VersionState,
)
from siltstone.wire.numbering import Numbering, refusing_what_does_not_fit

STATES: Final = Numbering(
    {
        VersionState.CANDIDATE: pb.VERSION_STATE_CANDIDATE,
        VersionState.ACCEPTED: pb.VERSION_STATE_ACCEPTED,
        VersionState.SERVING: pb.VERSION_STATE_SERVING,
        VersionState.RETIRED: pb.VERSION_STATE_RETIRED,
        VersionState.REFUSED: pb.VERSION_STATE_REFUSED,
    }
)


@refusing_what_does_not_fit
def version_to_proto(card: VersionCard) -> pb.VersionCard:
    """Writes a version's card."""
    return pb.VersionCard(
        number=card.number,
        digest=card.digest,
        state=STATES.number(card.state),
        parent=card.parent,
        sleep_id=card.sleep_id,
        num_people=card.num_people,
        num_interactions=card.num_interactions,
        seeds=card.seeds,
        code_revision=card.code_revision,
        created_at_ms=card.created_at_ms,
        evidence_digest=card.evidence_digest,
        first_served_epoch=card.first_served_epoch,
        seal=card.seal,
    )


def version_from_proto(card: pb.VersionCard) -> VersionCard:
    """Reads a version's card.

    Raises: InvalidInput for an unknown state.
    """
    return VersionCard(
        number=card.number,
        digest=card.digest,
        state=STATES.member("version.state", card.state),
        parent=card.parent,
        sleep_id=card.sleep_id,
        num_people=card.num_people,
        num_interactions=card.num_interactions,
        seeds=dict(card.seeds),
        code_revision=card.code_revision,
        created_at_ms=card.created_at_ms,
        evidence_digest=card.evidence_digest,
        first_served_epoch=card.first_served_epoch,
        seal=card.seal,
    )


def report_to_proto(report: VersionReport) -> pb.GetVersionResponse:
    """Writes a version with its evidence in short and its verdict."""
    return pb.GetVersionResponse(
        version=version_to_proto(report.card),
        verdict=None if report.verdict is None else _verdict_to_proto(report.verdict),
        measurements=map(_measurement_to_proto, report.measurements),
    )


def report_from_proto(response: pb.GetVersionResponse | pb.VersionReport) -> VersionReport:
    """Reads a version with its evidence in short and its verdict.

    Raises: InvalidInput for an unknown state.
    """
    return VersionReport(
        version_from_proto(response.version),
        _verdict_from_proto(response.verdict) if response.HasField("verdict") else None,
        tuple(map(_measurement_from_proto, response.measurements)),
    )


@refusing_what_does_not_fit
def comparison_to_proto(comparison: VersionComparison) -> pb.CompareVersionsResponse:
    """Writes two versions side by side."""
    one, other = (
        pb.VersionReport(
            version=version_to_proto(report.card),
            verdict=None if report.verdict is None else _verdict_to_proto(report.verdict),
            measurements=map(_measurement_to_proto, report.measurements),
        )
        for report in comparison.reports
    )
    origins = [pb.OriginDifference(name=name, value=own, other=others) for name, own, others in comparison.origins]
    return pb.CompareVersionsResponse(version=one, other=other, origins=origins)


def comparison_from_proto(response: pb.CompareVersionsResponse) -> VersionComparison:
    """Reads two versions side by side.

    Raises: InvalidInput for an unknown state.
    """
    return VersionComparison(
        (report_from_proto(response.version), report_from_proto(response.other)),
        tuple((one.name, one.value, one.other) for one in response.origins),
    )


@refusing_what_does_not_fit
def champion_to_proto(champion: Champion) -> pb.Champion:
    """Writes which version serves."""
    return pb.Champion(number=champion.number, digest=champion.digest, epoch=champion.epoch)


def champion_from_proto(champion: pb.Champion) -> Champion:
    """Reads which version serves."""
    return Champion(champion.number, champion.digest, champion.epoch)


def _measurement_to_proto(summary: MeasurementSummary) -> pb.MeasurementSummary:
    return pb.MeasurementSummary(
        name=summary.name,
        unit=summary.unit,
        num_items=summary.num_items,
        candidate=summary.candidate,
        champion=summary.champion,
        origin=summary.origin,
        higher_is_better=summary.higher_is_better,
    )


def _measurement_from_proto(summary: pb.MeasurementSummary) -> MeasurementSummary:
    return MeasurementSummary(
        name=summary.name,
        unit=summary.unit,
        num_items=summary.num_items,
        candidate=summary.candidate if summary.HasField("candidate") else None,
        champion=summary.champion if summary.HasField("champion") else None,
        origin=summary.origin if summary.HasField("origin") else None,
        higher_is_better=summary.higher_is_better,
    )


def _verdict_to_proto(verdict: Verdict) -> pb.Verdict:
    return pb.Verdict(
        candidate=verdict.candidate,
        policy=verdict.policy,
        accepted=verdict.accepted,
        results=[
            pb.CheckResult(
                check=one.check,
                passed=one.passed,
                reason=one.reason,
                value=one.value,
                limit=one.limit,
                smallest_effect=one.smallest_effect,
                unit=one.unit,
                num_items=one.num_items,
            )
            for one in verdict.results
        ],
    )


def _verdict_from_proto(verdict: pb.Verdict) -> Verdict:
    results = tuple(
        CheckResult(
            check=one.check,
            passed=one.passed,
            reason=one.reason,
            value=one.value if one.HasField("value") else None,
            limit=one.limit if one.HasField("limit") else None,
            smallest_effect=one.smallest_effect if one.HasField("smallest_effect") else None,
            unit=one.unit,
            num_items=one.num_items,
        )
        for one in verdict.results
    )
    return Verdict(verdict.candidate, verdict.policy, verdict.accepted, results)
