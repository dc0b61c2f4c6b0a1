"""Which policy candidates of a home are held against: the shipped one, or the operator's own. No model is imported."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from siltstone.adapters.policy_file import read_policy
from siltstone.config import SiltstoneConfig
from siltstone.errors import ConfigInvalid
from siltstone.gate.policy import Policy, load_policy, require_whole


def policy_of(config: SiltstoneConfig, suites: Iterable[str]) -> Policy:
    """Returns the policy that the configuration names, or the shipped one; `suites` are asked.

    Raises: ConfigInvalid when it cannot be read, leaves out a check of the shipped one, or has one of what nobody
    measures.
    """
    if not config.gate.policy:
        return load_policy()
    own = _own_policy(config)
    require_whole(own, suites)
    return own


def policy_named(config: SiltstoneConfig, name: str) -> Policy | None:
    """Returns the policy of a name that a verdict was given under, or None when it cannot be had any more."""
    shipped = load_policy()
    if name == shipped.name:
        return shipped
    try:
        own = _own_policy(config) if config.gate.policy else None
    except ConfigInvalid:
        # The verdict stands, and says by itself what was found: only why its limits were set is told no more.
        return None
    return own if own is not None and own.name == name else None


def _own_policy(config: SiltstoneConfig) -> Policy:
    return read_policy(config.home_path / Path(config.gate.policy).expanduser(), config.gate.policy_sha256)
