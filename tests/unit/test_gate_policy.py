from __future__ import annotations

import copy
import math
import tomllib
from importlib import resources
from typing import Any

import pytest

from siltstone.errors import ConfigInvalid
from siltstone.gate.policy import Kind, Statistic, load_policy, parse_policy

SHARED = {"confidence": 0.95, "power": 0.8, "min_items": 10, "reason": "why"}
TREE: dict[str, Any] = {
    "name": "mine",
    "checks": [
        {"name": "a", "kind": "superior", "measurement": "benefit", "margin": 0, **SHARED},
        {"name": "b", "kind": "at_most", "measurement": "kl", "limit": 0.5, "statistic": "p99", **SHARED},
        {"name": "c", "kind": "none_above", "measurement": "canary", "limit": 9.5, **SHARED},
    ],
}


def test_a_policy_is_what_its_file_says() -> None:
    policy = parse_policy(TREE)
    assert policy.name == "mine"
    assert [(rule.kind, rule.threshold, rule.statistic) for rule in policy.rules] == [
        (Kind.SUPERIOR, 0.0, Statistic.MEAN),
        (Kind.AT_MOST, 0.5, Statistic.P99),
        (Kind.NONE_ABOVE, 9.5, Statistic.MEAN),
    ]


def test_the_shipped_policy_gives_each_threshold_its_reason() -> None:
    policy = load_policy()
    assert len({rule.reason for rule in policy.rules}) > len(policy.rules) / 2
    judged = {rule.measurement for rule in policy.rules}
    assert {"benefit", "refusal", "over_refusal", "persona", "truthfulness", "capability", "canary_exposure"} <= judged
    assert "similarity_champion" not in judged
    for name in ("refusal", "over_refusal", "persona", "truthfulness", "capability", "bits_per_byte"):
        kinds = {rule.kind for rule in policy.rules if rule.measurement == name}
        assert kinds >= {Kind.NON_INFERIOR_CHAMPION, Kind.NON_INFERIOR_ORIGIN}


def test_no_key_of_the_shipped_policy_can_be_left_out() -> None:
    text = resources.files("siltstone.gate").joinpath("policy.toml").read_text(encoding="utf-8")
    tree = tomllib.loads(text)
    for at, check in enumerate(tree["checks"]):
        for key in check:
            broken = copy.deepcopy(tree)
            del broken["checks"][at][key]
            with pytest.raises(ConfigInvalid):
                parse_policy(broken)


@pytest.mark.parametrize(
    ("at", "changes", "complaint"),
    [
        (0, {"limit": 3}, "unknown key limit"),
        (0, {"statistic": "mean"}, "unknown key statistic"),
        (0, {"colour": "red"}, "unknown key colour"),
        (0, {"margin": math.nan}, "finite"),
        (0, {"margin": math.inf}, "finite"),
        (0, {"margin": -0.1}, "0 or more"),
        (0, {"margin": "small"}, "finite number"),
        (0, {"margin": True}, "finite number"),
        (0, {"confidence": 1}, "less than 1"),
        (0, {"confidence": 0.5}, "more than 0.5"),
        (0, {"power": math.nan}, "finite"),
        (0, {"min_items": 0}, "whole number"),
        (0, {"min_items": 2.5}, "whole number"),
        (0, {"reason": "  "}, "a text"),
        (0, {"name": 7}, "a text"),
        (0, {"kind": "better"}, "expected one of"),
        (0, {"kind": ["superior"]}, "expected one of"),
        (1, {"statistic": "median"}, "expected one of"),
        (1, {"limit": math.nan}, "finite"),
        (1, {"margin": 1}, "unknown key margin"),
        (1, {"name": "a"}, "two checks"),
    ],
)
def test_a_wrong_check_is_refused(at: int, changes: dict[str, Any], complaint: str) -> None:
    tree = copy.deepcopy(TREE)
    tree["checks"][at] |= changes
    with pytest.raises(ConfigInvalid, match=complaint):
        parse_policy(tree)


@pytest.mark.parametrize(
    "tree",
    [
        {},
        {"name": "mine"},
        {"name": "mine", "checks": []},
        {"name": "mine", "checks": {}},
        {"name": "mine", "checks": ["a"]},
        {"name": "", "checks": TREE["checks"]},
        {**TREE, "extra": 1},
    ],
)
def test_a_policy_of_another_form_is_refused(tree: dict[str, Any]) -> None:
    with pytest.raises(ConfigInvalid):
        parse_policy(tree)
