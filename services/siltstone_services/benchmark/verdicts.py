"""What the gate refused a candidate for."""

from __future__ import annotations

from typing import Final

from siltstone.gate.policy import load_policy
from siltstone.sleep_values import Verdict

ANCHORS: Final = frozenset({"bits_per_byte", "agreement_champion", "kl_champion", "kl_origin"})
"""Measurements on neutral text."""
SECRETS: Final = frozenset({"canary_exposure"})


def failed_measurements(verdict: Verdict) -> frozenset[str]:
    """Returns the measurements whose checks did not pass, by the policy that comes with the package."""
    rules = {rule.name: rule.measurement for rule in load_policy().rules}
    return frozenset(rules[one.check] for one in verdict.results if not one.passed)
