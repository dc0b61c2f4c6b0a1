"""Nights over a tiny home that take a second: real code throughout, but for an exam that asks few things."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tiny_home import ADA, BEN, CLEO, DORA, add_tiny_core, open_host, said, teach, tiny_config

from siltstone.adapters.core_store import CoreStore, LoadedCore
from siltstone.errors import NotFound, WrongState
from siltstone.gate.anchors import Passage
from siltstone.gate.measure import Cores, Material, measure_candidate
from siltstone.gate.policy import parse_policy
from siltstone.model.core import Core
from siltstone.sleep_values import Evidence, VersionState
from siltstone.values import Consent, UserKey
from siltstone_services.judging import Exam
from siltstone_services.night import NightDone, open_registry, run_night

PEOPLE = (ADA, BEN, CLEO, DORA)
FACT = "The printer upstairs is called Gertrude."
SETTINGS: dict[str, Any] = {
    "sleep.distil.num_steps": 3,
    "sleep.held_out_share": 0.0,
    "sleep.consensus.evidence_nats": 0.05,
    "memory.fast.rate": 1.0,
}
_PASSAGES = tuple(Passage(f"p{at}", text) for at, text in enumerate(["The tide covers the pool.", "A swift sleeps."]))


def measure(
    home: Path, candidate: str, champion: LoadedCore, origin: LoadedCore, material: Material, *_: object
) -> Evidence:
    """Measures a candidate on two sentences, in this process."""
    loaded = CoreStore(home).load(candidate)
    cores = Cores(*(Core(one.config, one.tensors) for one in (loaded, champion, origin)))
    asked = replace(material, suites=(), passages=_PASSAGES)
    return Evidence(loaded.digest, champion.digest, origin.digest, measure_candidate(cores, champion.tokenizer, asked))


def exam(accepts: bool = True) -> Exam:
    """Returns an exam that every candidate passes, or none."""
    check = {
        "name": "the same next token",
        "kind": "at_least",
        "measurement": "agreement_champion",
        "statistic": "mean",
        "limit": -1.0 if accepts else 2.0,
        "confidence": 0.95,
        "power": 0.8,
        "min_items": 1,
        "reason": "For a test of what is done with the verdict.",
    }
    return Exam(measure, parse_policy({"name": "light", "checks": [check]}))


def tell(
    home: Path, people: Sequence[UserKey] = PEOPLE, share: bool = True, settings: Mapping[str, Any] | None = None
) -> None:
    """Lets each of some people say the same fact, twice."""

    async def run() -> None:
        async with open_host(home, {**SETTINGS, **(settings or {})}) as host:
            for owner in people:
                told = [
                    said(owner, f"{owner}-{at}".replace("/", "."), text)
                    for at, text in enumerate([FACT, f"Indeed. {FACT}"])
                ]
                await teach(host, *(replace(one, consent=Consent(learn=True, share=share)) for one in told))

    asyncio.run(run())


def make_home(home: Path) -> Path:
    """Makes a home in which four people have said the same."""
    add_tiny_core(home)
    tell(home)
    return home


def sleep(
    home: Path, seed: int = 1, accepts: bool = True, settings: Mapping[str, Any] | None = None, since_ms: int = 0
) -> NightDone:
    """Runs one night."""
    config = tiny_config(home, {**SETTINGS, **(settings or {})})
    return run_night(config, seed, since_ms, lambda _: None, lambda _: None, exam=exam(accepts))


def state_of(home: Path) -> dict[str, Any]:
    """Returns what serves in a home and what versions there are, after a look at every byte of both.

    Raises: AssertionError for what is half published: a core that does not load, a version that serves without having
    passed, or one that is handed out and is not what was signed.
    """
    cores = CoreStore(home)
    for core in cores.list():
        assert not core.damage, core.damage
        cores.load(core.digest)
    with open_registry(tiny_config(home)) as registry:
        versions, champion = registry.list(), registry.champion()
        for version in versions:
            try:
                artefact = registry.artefact(version.number)
            except (NotFound, WrongState):
                assert version.state in (VersionState.CANDIDATE, VersionState.REFUSED) or not version.seal
            else:
                assert version.verdict is not None
                assert version.verdict.accepted
                CoreStore(artefact).load(version.digest)
    return {
        "default": cores.default(),
        "champion": champion,
        "versions": [(one.number, one.digest, one.state, one.lineage.sleep_id) for one in versions],
        "cores": sorted(core.digest for core in cores.list()),
    }


def sizes(home: Path) -> dict[str, int]:
    """Returns the bytes under each of a home's folders, links counted once."""
    found: dict[str, int] = {}
    seen: set[int] = set()
    for path in home.rglob("*"):
        if path.is_file() and (inode := path.stat().st_ino) not in seen:
            seen.add(inode)
            part = path.relative_to(home).parts[0]
            found[part] = found.get(part, 0) + path.stat().st_size
    return found
