"""What a caller says of the trace its call belongs to, in the form of W3C Trace Context: read, and told in logs.

Source: W3C Trace Context (Recommendation), section 3.2, "Traceparent Header".
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

HEADER: Final = "traceparent"
"""The name under which it travels: of a call's metadata, and of a journal record's header."""

_FORMAT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_MAX_CHARS: Final = 256
_SAMPLED: Final = 0x01


def read_traceparent(text: str) -> str:
    """Returns a traceparent as version 00 writes it; empty where the standard says that it is to be ignored.

    Of a later version only what version 00 knows is kept, as the standard asks of who does not know that version.
    """
    found = _FORMAT.fullmatch(text) if len(text) <= _MAX_CHARS else None
    if found is None:
        return ""
    version, trace_id, parent_id, flags, more = found.groups()
    if version == "ff" or not trace_id.strip("0") or not parent_id.strip("0"):
        return ""
    if version == "00":
        return "" if more else text
    return f"00-{trace_id}-{parent_id}-{int(flags, 16) & _SAMPLED:02x}"


def traceparent_of(metadata: Iterable[tuple[str, Any]]) -> str:
    """Returns the traceparent of a call by its metadata; empty for none, for one that is not valid, and for several."""
    told = [value for name, value in metadata if name == HEADER]
    return read_traceparent(told[0]) if len(told) == 1 and isinstance(told[0], str) else ""


def trace_fields(traceparent: str) -> dict[str, str]:
    """Returns what a log line about a call or an interaction tells of its trace; nothing where there is none."""
    return {"trace_id": traceparent.split("-")[1]} if traceparent else {}
