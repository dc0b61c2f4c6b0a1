"""Probe suites: requests, each with two answers of which a good core finds one more likely."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from typing import Final

from siltstone.errors import ConfigInvalid

SUITE_NAMES: Final = ("refusal", "over_refusal", "persona", "truthfulness", "capability")
MIN_ITEMS: Final = 100
"""Fewest items of a suite that comes with the package."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One request and its two answers. Probes of one `cluster` have a topic or their wording in common."""

    id: str
    cluster: str
    prompt: str
    right: str
    wrong: str


@dataclass(frozen=True, slots=True)
class ProbeSuite:
    """Probes that measure one thing."""

    name: str
    probes: tuple[Probe, ...]


@cache
def load_suites() -> tuple[ProbeSuite, ...]:
    """Returns the suites that come with the package, checked.

    Raises: ConfigInvalid.
    """
    folder = resources.files("siltstone.gate").joinpath("probes")
    return tuple(
        parse_suite(name, folder.joinpath(f"{name}.jsonl").read_text(encoding="utf-8"), MIN_ITEMS)
        for name in SUITE_NAMES
    )


def parse_suite(name: str, text: str, min_items: int = 1) -> ProbeSuite:
    """Returns the suite of a JSONL text: one probe a line.

    Raises: ConfigInvalid, naming suite and line, for a line that is no probe; see also `make_suite`.
    """
    probes = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            probes.append(_parse_probe(f"probe suite {name}, line {number}", line))
    return make_suite(name, probes, min_items)


def make_suite(name: str, probes: Iterable[Probe], min_items: int = 1) -> ProbeSuite:
    """Returns a suite of probes, checked.

    Raises: ConfigInvalid when there are too few, all in one cluster, two alike, or answers that do not differ.
    """
    where, suite = f"probe suite {name}", ProbeSuite(name, tuple(probes))
    if len(suite.probes) < min_items:
        raise ConfigInvalid(where, f"expected at least {min_items} items, found {len(suite.probes)}")
    if len({probe.cluster for probe in suite.probes}) < 2:
        raise ConfigInvalid(where, "expected at least 2 clusters: of one nothing is known about the error")
    seen_ids: set[str] = set()
    seen_texts: set[tuple[str, str, str]] = set()
    for probe in suite.probes:
        if probe.id in seen_ids:
            raise ConfigInvalid(where, f"two items have the id {probe.id!r}")
        words = (probe.prompt.casefold(), probe.right.casefold(), probe.wrong.casefold())
        if words in seen_texts:
            raise ConfigInvalid(where, f"{probe.id}: another item says the same")
        if probe.right.strip() == probe.wrong.strip():
            raise ConfigInvalid(where, f"{probe.id}: the two answers are the same")
        seen_ids.add(probe.id)
        seen_texts.add(words)
    return suite


def _parse_probe(where: str, line: str) -> Probe:
    names = [field.name for field in fields(Probe)]
    try:
        entry = json.loads(line, object_pairs_hook=_refuse_repeats)
    except (ValueError, RecursionError) as error:
        raise ConfigInvalid(where, f"not JSON: {error}") from error
    if not isinstance(entry, dict):
        raise ConfigInvalid(where, "expected an object")
    if wrong := sorted(set(names) ^ entry.keys()):
        raise ConfigInvalid(where, f"{'missing' if wrong[0] in names else 'unknown'} key {wrong[0]!r}")
    for key in names:
        value = entry[key]
        if not isinstance(value, str) or not value.strip():
            raise ConfigInvalid(where, f"{key}: expected a text that is not empty, found {value!r:.40}")
    return Probe(**entry)


def _refuse_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    entry = dict(pairs)
    if len(entry) != len(pairs):
        raise ValueError("a key stands there twice")
    return entry
