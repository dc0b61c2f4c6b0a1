"""Shows, explains and moves versions of the core."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from siltstone.errors import InvalidInput, NotFound
from siltstone.evaluation.figures import format_value
from siltstone.sleep_values import Champion, CheckResult, MeasurementSummary, VersionReport
from siltstone_services.cli.later import Later
from siltstone_services.cli.options import Format, Reach
from siltstone_services.commands.configuration import load
from siltstone_services.commands.operator import Desk, ask_desk
from siltstone_services.commands.screen import out, print_json, table

if TYPE_CHECKING:
    from siltstone_services import core_distance
else:
    # Torch takes seconds to import.
    core_distance = Later("siltstone_services.core_distance")


def show_all(reach: Reach, form: Format) -> None:
    """Prints the versions."""
    versions, champion = ask_desk(reach, lambda desk: desk.versions.list())
    if form is Format.JSON:
        print_json({"champion": champion, "versions": versions})
        return
    if not versions:
        out().print("no versions yet; `siltstone sleep run` makes one", soft_wrap=True)
        return
    shown = table("", "#number", "digest", "state", "#people", "parent", "made")
    for one in versions:
        shown.add_row(
            "*" if champion is not None and champion.number == one.number else "",
            str(one.number),
            one.digest[:12],
            one.state.value,
            str(one.num_people),
            one.parent[:12],
            datetime.fromtimestamp(one.created_at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M"),
        )
    out().print(shown)
    if champion is not None:
        out().print(f"* serves; the champion's epoch is {champion.epoch}", soft_wrap=True)


def show(reach: Reach, number: int, form: Format) -> None:
    """Prints one version."""
    report = ask_desk(reach, lambda desk: desk.versions.get(number))
    if form is Format.JSON:
        print_json(report)
        return
    card = report.card
    facts = table("", "")
    facts.show_header = False
    for name, value in (
        ("version", f"{card.number}, {card.state.value}"),
        ("core", card.digest),
        ("parent", card.parent),
        ("night", card.sleep_id),
        ("people", str(card.num_people)),
        ("interactions", str(card.num_interactions)),
        ("seeds", ", ".join(f"{name} {seed}" for name, seed in sorted(card.seeds.items()))),
        ("code", card.code_revision),
        ("evidence", card.evidence_digest),
    ):
        facts.add_row(name, value)
    out().print(facts)
    if report.measurements:
        _print_measurements(report.measurements)
    explain(reach, number, form)


def explain(reach: Reach, number: int, form: Format) -> None:
    """Prints the verdict on a version."""
    if form is Format.JSON:
        print_json(ask_desk(reach, lambda desk: desk.versions.get(number)).verdict)
        return
    lines = ask_desk(reach, lambda desk: desk.versions.explain(number))
    out().print("\n".join(lines) or "the gate has not judged it", soft_wrap=True, markup=False)


def print_verdict(reach: Reach, number: int) -> None:
    """Prints the verdict on a version, and where the version stands."""
    explain(reach, number, Format.TEXT)
    report = ask_desk(reach, lambda desk: desk.versions.get(number))
    out().print(f"version {number}: {report.card.state.value}", soft_wrap=True)


def promote(reach: Reach, number: int, expected_epoch: int | None) -> None:
    """Makes a version the champion."""

    async def move(desk: Desk) -> Champion:
        _, champion = await desk.versions.list()
        seen = champion.epoch if champion else 0
        return await desk.versions.promote(number, seen if expected_epoch is None else expected_epoch)

    _tell(ask_desk(reach, move))


def rollback(reach: Reach, expected_epoch: int | None) -> None:
    """Makes the former champion champion again."""

    async def move(desk: Desk) -> Champion:
        _, champion = await desk.versions.list()
        if champion is None:
            raise NotFound("champion", "none has been promoted")
        return await desk.versions.roll_back(champion.epoch if expected_epoch is None else expected_epoch)

    _tell(ask_desk(reach, move))


def compare(reach: Reach, number: int, other: int, is_measured: bool, form: Format) -> None:
    """Prints two versions side by side. Their cores are read here and not by the server: it has users to answer."""
    if is_measured and reach.address is not None:
        raise InvalidInput("--measure", "a home on this machine, which holds the cores", f"a server at {reach.address}")
    found = ask_desk(reach, lambda desk: desk.versions.compare(number, other))
    nats = None
    if is_measured:
        one, two = (report.card.digest for report in found.reports)
        nats = core_distance.mean_divergence(load(reach.settings).home_path, one, two)
    if form is Format.JSON:
        print_json({"reports": found.reports, "origins": found.origins, "mean_kl_nats": nats})
        return
    _print_compared(found.reports)
    shown = table("comes from", f"version {number}", f"version {other}")
    for origin in found.origins:
        shown.add_row(*origin)
    out().print(shown)
    if nats is not None:
        out().print(f"mean KL of version {number} from version {other} on the anchors: {nats:.3g} nats", soft_wrap=True)


def _print_compared(reports: tuple[VersionReport, VersionReport]) -> None:
    numbers = [report.card.number for report in reports]
    shown = table("measured", *(f"#version {number}" for number in numbers), "#difference", "unit")
    means = [{one.name: one for one in report.measurements} for report in reports]
    for name in dict.fromkeys(name for found in means for name in found):
        own = [found[name].candidate if name in found else None for found in means]
        told = ["" if mean is None else format_value(mean) for mean in own]
        gap = "" if None in own else format_value((own[1] or 0.0) - (own[0] or 0.0))
        shown.add_row(name, *told, gap, next(found[name].unit for found in means if name in found))
    out().print(shown)
    checks = table("check", *(f"version {number}" for number in numbers))
    verdicts = [{one.check: one for one in report.verdict.results} if report.verdict else {} for report in reports]
    for name in dict.fromkeys(name for results in verdicts for name in results):
        checks.add_row(name, *(_told_of(results.get(name)) for results in verdicts))
    checks.add_row("state", *(report.card.state.value for report in reports))
    out().print(checks)


def _told_of(result: CheckResult | None) -> str:
    if result is None:
        return "not made"
    said = "pass" if result.passed else "FAIL"
    return said if result.value is None else f"{said}, {format_value(result.value)}"


def _print_measurements(measurements: Sequence[MeasurementSummary]) -> None:
    shown = table("measured", "#items", "#candidate", "#champion", "#first core", "unit", "better is")
    for one in measurements:
        means = ("" if mean is None else format_value(mean) for mean in (one.candidate, one.champion, one.origin))
        better = "more" if one.higher_is_better else "less"
        shown.add_row(one.name, f"{one.num_items:,}", *means, one.unit, better)
    out().print(shown)


def _tell(champion: Champion) -> None:
    out().print(f"champion: version {champion.number} ({champion.digest[:12]}), epoch {champion.epoch}", soft_wrap=True)
    out().print("a running server takes it up by itself, and carries each user over at their return", soft_wrap=True)
