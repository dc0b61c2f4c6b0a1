"""What the gate asks besides what comes with the package."""

from __future__ import annotations

from dataclasses import dataclass

from siltstone.errors import ConfigInvalid


@dataclass(frozen=True, slots=True)
class GateConfig:
    """What the gate asks besides the suites that come with the package."""

    external_folder: str = ""
    """Folder of further probe suites, in the layout of the published sets."""
    external_suites: tuple[str, ...] = ()
    """Which of them are asked: anthropic_evals, harmbench, truthfulqa, xstest, or a JSONL file by its name without the
    ending. They are measured and reported; a check of `policy` may judge them, none of the shipped policy does."""
    policy: str = ""
    """File of the policy that candidates must pass, from the home folder; empty for the shipped one."""
    policy_sha256: str = ""
    """The sha256 of that file, in hex: one that was cut short or changed ends the night before it begins."""

    def __post_init__(self) -> None:
        if self.policy_sha256 and not self.policy:
            raise ConfigInvalid("gate", "policy_sha256: expected none without a policy")
