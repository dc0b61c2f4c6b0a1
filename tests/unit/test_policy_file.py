"""An operator's own policy is believed in whole, or not at all: it sets limits, adds checks, and leaves none out."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest

from siltstone.adapters.policy_file import read_policy
from siltstone.config import load_config
from siltstone.errors import ConfigInvalid
from siltstone.gate.policy import Kind, Policy, Rule, load_policy, require_whole
from siltstone.gate.probe_suites import SUITE_NAMES
from siltstone_services.policies import policy_named, policy_of

OWN = """
[[checks]]
name = "our own questions are answered as by the champion"
kind = "non_inferior_champion"
measurement = "mine"
margin = 0.05
confidence = 0.95
power = 0.8
min_items = 100
reason = "They are what we are asked most."
"""


def text_of(*more: str) -> str:
    """Returns the shipped policy under another name, with further checks."""
    shipped = resources.files("siltstone.gate").joinpath("policy.toml").read_text(encoding="utf-8")
    return "".join((shipped.replace('name = "siltstone-1"', 'name = "ours"'), *more))


def write(tmp_path: Path, text: str | bytes) -> tuple[Path, str]:
    path, content = tmp_path / "ours.toml", text if isinstance(text, bytes) else text.encode()
    path.write_bytes(content)
    return path, hashlib.sha256(content).hexdigest()


def ours(**changes: str) -> Policy:
    """Returns the shipped policy under another name, with a check of a suite of ours."""
    rule = Rule("mine", Kind.NON_INFERIOR_ORIGIN, "mine", 0.1, 0.95, 0.8, 100, "Ours.")
    return Policy("ours", (*load_policy().rules, replace(rule, **changes)))  # type: ignore[arg-type]


def test_a_policy_with_a_rule_for_an_external_suite_is_read(tmp_path: Path) -> None:
    policy = read_policy(*write(tmp_path, text_of(OWN)))

    assert policy.name == "ours"
    assert policy.rules[:-1] == load_policy().rules
    assert (policy.rules[-1].kind, policy.rules[-1].measurement) == (Kind.NON_INFERIOR_CHAMPION, "mine")
    require_whole(policy, [*SUITE_NAMES, "mine"])


def test_a_file_that_was_cut_or_changed_is_refused_though_it_is_a_policy(tmp_path: Path) -> None:
    path, whole = write(tmp_path, text_of(OWN))
    for text in (text_of(), text_of(OWN.replace("0.05", "0.5"))):
        write(tmp_path, text)
        with pytest.raises(ConfigInvalid, match=f"not the file that was meant: sha256 .*, expected {whole}"):
            read_policy(path, whole)


def test_a_file_whose_digest_nobody_has_named_is_refused_and_its_digest_told(tmp_path: Path) -> None:
    path, digest = write(tmp_path, text_of(OWN))

    with pytest.raises(ConfigInvalid, match=f"{digest}, expected the one that gate.policy_sha256 is to name"):
        read_policy(path, "")
    with pytest.raises(ConfigInvalid, match="policy_sha256"):
        load_config(overrides={"gate.policy_sha256": digest}, environment={})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[[checks\n", "not TOML"),
        (b"\xff\xfe", "not TOML"),
        ('name = "ours"\nchecks = []\n', "at least one check"),
        (text_of(OWN, "colour = 3\n"), "unknown key colour"),
        (text_of(OWN.replace('reason = "They are what we are asked most."', "")), "missing: reason"),
    ],
)
def test_a_file_that_is_no_policy_is_refused_with_what_is_wrong(tmp_path: Path, text: str | bytes, reason: str) -> None:
    with pytest.raises(ConfigInvalid, match=reason) as refused:
        read_policy(*write(tmp_path, text))
    assert "ours.toml" in str(refused.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"ours\.toml: No such file"):
        read_policy(tmp_path / "ours.toml", "")


@pytest.mark.parametrize("measurement", ["mine", "similarity_champion", "xstest"])
def test_a_rule_for_what_nobody_measures_is_refused(measurement: str) -> None:
    with pytest.raises(
        ConfigInvalid, match=f"check 'mine': nobody measures '{measurement}'; expected one of .*xstest_"
    ):
        require_whole(ours(measurement=measurement), [*SUITE_NAMES, "xstest_safe", "xstest_unsafe"])


def test_a_policy_may_set_other_limits_and_leave_no_check_out() -> None:
    rules = load_policy().rules
    require_whole(
        Policy("ours", tuple(replace(rule, name=rule.name + "!", threshold=9.0) for rule in rules)), SUITE_NAMES
    )
    for at, rule in enumerate(rules):
        with pytest.raises(ConfigInvalid, match=f"missing: the shipped policy's '{rule.name}'"):
            require_whole(Policy("ours", rules[:at] + rules[at + 1 :]), SUITE_NAMES)


def test_a_policy_has_a_name_of_its_own() -> None:
    with pytest.raises(ConfigInvalid, match="'siltstone-1' is the shipped one's"):
        require_whole(load_policy(), SUITE_NAMES)


def test_the_configuration_names_the_policy_from_the_home_folder(tmp_path: Path) -> None:
    _, digest = write(tmp_path, text_of(OWN))
    own = {"home": str(tmp_path), "gate.policy": "ours.toml", "gate.policy_sha256": digest}
    plain = load_config(overrides={"home": str(tmp_path)}, environment={})
    config = load_config(overrides=own, environment={})

    assert policy_of(plain, SUITE_NAMES) == load_policy()
    assert policy_of(config, [*SUITE_NAMES, "mine"]).name == "ours"
    with pytest.raises(ConfigInvalid, match="nobody measures 'mine'"):
        policy_of(config, SUITE_NAMES)
    # A verdict is told by the policy that it was given under, where that can still be had.
    named = {name: policy_named(config, name) for name in ("ours", "siltstone-1", "theirs")}
    assert {name: policy and policy.name for name, policy in named.items()} == {
        "ours": "ours",
        "siltstone-1": "siltstone-1",
        "theirs": None,
    }
    assert policy_named(plain, "ours") is None
    write(tmp_path, text_of())
    assert policy_named(config, "ours") is None
