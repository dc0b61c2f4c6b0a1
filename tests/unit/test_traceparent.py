"""What is taken for a traceparent, and what is ignored, as W3C Trace Context says."""

from __future__ import annotations

import pytest

from siltstone.traceparent import read_traceparent, trace_fields, traceparent_of

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
VALID = f"00-{TRACE}-{PARENT}-01"

MALFORMED = {
    "nothing": "",
    "words": "not a trace",
    "upper case": VALID.upper(),
    "a short trace id": f"00-{TRACE[:-1]}-{PARENT}-01",
    "a long parent id": f"00-{TRACE}-{PARENT}0-01",
    "no flags": f"00-{TRACE}-{PARENT}",
    "one digit of flags": f"00-{TRACE}-{PARENT}-1",
    "not hexadecimal": f"00-{'g' * 32}-{PARENT}-01",
    "a trace id of zeros": f"00-{'0' * 32}-{PARENT}-01",
    "a parent id of zeros": f"00-{TRACE}-{'0' * 16}-01",
    "the forbidden version": f"ff-{TRACE}-{PARENT}-01",
    "more than version 00 has": f"{VALID}-more",
    "a later version that runs on": f"01-{TRACE}-{PARENT}-01more",
    "spaces around it": f" {VALID} ",
    "a line end": f"{VALID}\n",
    "digits of another script": f"00-{TRACE[:-1]}\u0663-{PARENT}-01",
    "no end": f"01-{TRACE}-{PARENT}-01-{'x' * 1_000}",
}


@pytest.mark.parametrize("flags", ["00", "01", "03", "ff"])
def test_a_valid_one_is_kept_as_it_is(flags: str) -> None:
    assert read_traceparent(f"00-{TRACE}-{PARENT}-{flags}") == f"00-{TRACE}-{PARENT}-{flags}"


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED.keys())
def test_anything_else_is_ignored(text: str) -> None:
    assert read_traceparent(text) == ""


def test_of_a_later_version_what_this_one_knows_is_kept() -> None:
    assert read_traceparent(f"01-{TRACE}-{PARENT}-ff") == VALID
    assert read_traceparent(f"cc-{TRACE}-{PARENT}-00-what-comes-then") == f"00-{TRACE}-{PARENT}-00"


def test_a_call_has_one_traceparent_or_none() -> None:
    assert traceparent_of([("user-agent", "x"), ("traceparent", VALID)]) == VALID
    assert traceparent_of([("tracestate", VALID)]) == ""
    assert traceparent_of([("traceparent", VALID), ("traceparent", VALID)]) == ""
    assert traceparent_of([("traceparent", VALID.encode())]) == ""


def test_a_line_tells_the_trace_id_alone() -> None:
    assert trace_fields(VALID) == {"trace_id": TRACE}
    assert trace_fields("") == {}
