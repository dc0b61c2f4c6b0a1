"""What the gate asks besides what comes with the package."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GateConfig:
    """What the gate asks besides the suites that come with the package."""

    external_folder: str = ""
    """Folder of further probe suites, in the layout of the published sets."""
    external_suites: tuple[str, ...] = ()
    """Which of them are asked: anthropic_evals, harmbench, truthfulqa, xstest, or a JSONL file by its name without the
    ending. They are measured and reported; no check of the shipped policy judges them."""
