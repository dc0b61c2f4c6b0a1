"""Probe suites: requests, each with two answers of which a good core finds one more likely."""

from __future__ import annotations

import hashlib
import json
import tomllib
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from typing import Final

from siltstone.errors import ConfigInvalid

SUITE_NAMES: Final = ("refusal", "over_refusal", "persona", "truthfulness", "capability")
MIN_ITEMS: Final = 100
"""Fewest items of a suite that comes with the package, or is asked besides."""
_MAX_CHARS: Final = 4000
"""Longest text of a probe: more is no question, and would not fit a small core's context."""


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
    """Probes that measure one thing. Each is asked with `num_pairs` of the pairs of answers that the suite has."""

    name: str
    probes: tuple[Probe, ...]
    num_pairs: int = 1

    def answer_pairs(self) -> tuple[tuple[tuple[str, str], ...], ...]:
        """Returns of each probe the pairs, right and wrong, that it is asked with, its own among them or not.

        Of M pairs, request w of cluster c is asked with K: c + w K to c + w K + K - 1, modulo M. So a cluster meets as
        many as it can, and over the clusters each pair has its turn equally often. With one pair a request it is its
        own.
        """
        if self.num_pairs == 1:
            return tuple(((probe.right, probe.wrong),) for probe in self.probes)
        pairs = list(dict.fromkeys((probe.right, probe.wrong) for probe in self.probes))
        clusters = list(dict.fromkeys(probe.cluster for probe in self.probes))
        met = dict.fromkeys(clusters, 0)
        asked = []
        for probe in self.probes:
            start = clusters.index(probe.cluster) + met[probe.cluster] * self.num_pairs
            met[probe.cluster] += 1
            asked.append(tuple(pairs[(start + at) % len(pairs)] for at in range(self.num_pairs)))
        return tuple(asked)


@cache
def load_suites() -> tuple[ProbeSuite, ...]:
    """Returns the suites that come with the package, checked.

    Raises: ConfigInvalid.
    """
    folder = resources.files("siltstone.gate").joinpath("probes")
    told = tomllib.loads(folder.joinpath("suites.toml").read_text(encoding="utf-8"))["suites"]
    entries = {str(entry["name"]): entry for entry in told}
    return tuple(
        _shipped(
            name, folder.joinpath(f"{name}.jsonl").read_bytes(), entries[name]["sha256"], entries[name]["num_pairs"]
        )
        for name in SUITE_NAMES
    )


def check_digest(name: str, content: bytes, sha256: str) -> None:
    """Refuses a suite's file that is not the one its digest was taken of.

    Raises: ConfigInvalid.
    """
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise ConfigInvalid(f"probe suite {name}", f"not the file that was shipped: sha256 {found}, expected {sha256}")


def parse_suite(name: str, text: str, min_items: int = 1, num_pairs: int = 1) -> ProbeSuite:
    """Returns the suite of a JSONL text: one probe a line.

    Raises: ConfigInvalid, naming suite and line, for a line that is no probe; see also `make_suite`.
    """
    probes = []
    # Not splitlines: it would also split at separators that JSON allows inside a text.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            probes.append(_parse_probe(f"probe suite {name}, line {number}", line))
    return make_suite(name, probes, min_items, num_pairs)


def make_suite(name: str, probes: Iterable[Probe], min_items: int = 1, num_pairs: int = 1) -> ProbeSuite:
    """Returns a suite of probes, checked.

    Raises: ConfigInvalid when there are too few, all in one cluster, two alike, answers that do not differ, fewer pairs
    of answers than each is to be asked with, or a text that is too long or holds control characters.
    """
    where, suite = f"probe suite {name}", ProbeSuite(name, tuple(probes), num_pairs)
    if len(suite.probes) < min_items:
        raise ConfigInvalid(where, f"expected at least {min_items} items, found {len(suite.probes)}")
    if len({probe.cluster for probe in suite.probes}) < 2:
        raise ConfigInvalid(where, "expected at least 2 clusters: of one nothing is known about the error")
    if (num_found := len({(probe.right, probe.wrong) for probe in suite.probes})) < num_pairs:
        raise ConfigInvalid(where, f"expected at least {num_pairs} pairs of answers, found {num_found}")
    seen_ids: set[str] = set()
    seen_texts: set[tuple[str, str, str]] = set()
    for probe in suite.probes:
        if probe.id in seen_ids:
            raise ConfigInvalid(where, f"two items have the id {probe.id!r}")
        words = (probe.prompt.casefold(), probe.right.casefold(), probe.wrong.casefold())
        if words in seen_texts:
            raise ConfigInvalid(where, f"{probe.id}: another item says the same")
        for text in (probe.id, probe.cluster, probe.prompt, probe.right, probe.wrong):
            if trouble := _trouble(text):
                raise ConfigInvalid(where, f"{probe.id!r:.80}: {trouble}")
        if probe.right.strip() == probe.wrong.strip():
            raise ConfigInvalid(where, f"{probe.id}: the two answers are the same")
        seen_ids.add(probe.id)
        seen_texts.add(words)
    return suite


def _shipped(name: str, content: bytes, sha256: str, num_pairs: int) -> ProbeSuite:
    check_digest(name, content, sha256)
    return parse_suite(name, content.decode("utf-8"), MIN_ITEMS, num_pairs)


def _trouble(text: str) -> str:
    """Says what makes a text unfit to be asked; nothing when it is fit."""
    if len(text) > _MAX_CHARS:
        return f"a text of {len(text)} characters, more than {_MAX_CHARS}"
    # Lone surrogates cannot be encoded; other control characters say to a core what no person sees.
    bad = next((one for one in text if unicodedata.category(one) in ("Cc", "Cs") and one not in "\n\t"), "")
    return f"a control character, U+{ord(bad):04X}" if bad else ""


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
