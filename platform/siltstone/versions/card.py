"""The card of a version: what a person reads about a core before trusting it."""

from __future__ import annotations

from siltstone.sleep_values import CheckResult, CoreVersion


def write_card(version: CoreVersion) -> str:
    """Returns the card as Markdown. It names no user: only how many took part."""
    lineage = version.lineage
    num_interactions = sum(contributor.num_interactions for contributor in lineage.contributors)
    lines = [
        f"# Core version {version.number}",
        "",
        f"- core: `{version.digest}`",
        f"- parent: `{lineage.parent or 'none'}`",
        f"- sleep: `{lineage.sleep_id or 'none'}`",
        f"- learned from: {num_interactions} interactions of {len(lineage.contributors)} users",
        f"- code: `{lineage.code_revision}`",
        f"- evidence: sha256 `{version.evidence_digest}`",
        f"- state when signed: {version.state.value}",
        "",
        "It answers from what it was trained on and from what several users' memories agreed on. It may be wrong, and",
        "must not be the only ground for a decision about a person.",
    ]
    if version.verdict is not None:
        lines += ["", f"## Verdict under policy {version.verdict.policy}", ""]
        lines += ["| check | passed | found | limit | smallest effect | items |", "|---|---|---|---|---|---|"]
        lines += [_row(result) for result in version.verdict.results]
        lines += [
            "",
            *(f"- {result.check}: {result.reason}" for result in version.verdict.results if not result.passed),
        ]
    return "\n".join(lines).rstrip() + "\n"


def _row(result: CheckResult) -> str:
    numbers = (result.value, result.limit, result.smallest_effect)
    value, limit, effect = (f"{n:.4g} {result.unit}".strip() if n is not None else "-" for n in numbers)
    return (
        f"| {result.check} | {'yes' if result.passed else 'no'} | {value} | {limit} | {effect} | {result.num_items} |"
    )
