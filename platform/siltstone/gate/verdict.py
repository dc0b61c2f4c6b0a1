"""What the gate says: every rule of the policy held against the evidence."""

from __future__ import annotations

from siltstone.gate.checks import run_check
from siltstone.gate.policy import Policy
from siltstone.sleep_values import CheckResult, Evidence, Verdict


def judge(evidence: Evidence, policy: Policy) -> Verdict:
    """Returns the verdict on a candidate: accepted only when every check of the policy has passed.

    All must pass, so no correction for their number is due: a core that is bad in one respect gets through with at most
    that one check's error. Source: intersection-union tests, Berger, Technometrics 24, 1982.
    """
    results = tuple(run_check(rule, evidence) for rule in policy.rules)
    accepted = bool(results) and all(result.passed for result in results)
    return Verdict(evidence.candidate, policy.name, accepted, results)


def explain(verdict: Verdict, policy: Policy | None = None) -> list[str]:
    """Returns the verdict in lines for a person, failures first; with the policy, why each failed limit is set."""
    failed = [result for result in verdict.results if not result.passed]
    passed = [result for result in verdict.results if result.passed]
    num_all = len(verdict.results)
    said = f"accepted: all {num_all} checks passed"
    if not verdict.accepted:
        said = f"refused: {len(failed)} of {num_all} checks did not pass"
    lines = [f"candidate {verdict.candidate[:12]} {said} (policy {verdict.policy})"]
    reasons = {rule.name: rule.reason for rule in policy.rules} if policy is not None else {}
    for result in (*failed, *passed):
        lines.append(f"  {'pass' if result.passed else 'FAIL'}  {result.check}: {result.reason}{_seen(result)}")
        if not result.passed and result.check in reasons:
            lines.append(f"        why the limit: {reasons[result.check]}")
    return lines


def _seen(result: CheckResult) -> str:
    if result.smallest_effect is None:
        return ""
    unit = "of the cases" if result.unit.startswith("of ") else result.unit
    return f" [{result.num_items} items; the smallest change it can see: {result.smallest_effect:.4g} {unit}]"
