"""Evidence as JSON, to be kept with a version and read again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

from siltstone.sleep_values import Evidence


def to_json(evidence: Evidence, told: Mapping[str, object]) -> bytes:
    """Writes evidence, with what else is told of the night; equal evidence gives equal bytes."""
    return json.dumps(
        {**dataclasses.asdict(evidence), "night": dict(told)}, sort_keys=True, separators=(",", ":"), allow_nan=True
    ).encode()
