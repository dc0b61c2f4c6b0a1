"""A whole night over a real home: from what people said to a version that the gate has judged."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_home import ADA, BEN, CLEO, DORA, add_tiny_core, open_host, said, teach, tiny_config

from siltstone.adapters.core_store import CoreStore
from siltstone.adapters.key_file import lineage_key
from siltstone.errors import InvalidInput, SnapshotMismatch
from siltstone.sleep_values import Champion, StepDone, VersionState
from siltstone.values import Consent, UserKey
from siltstone.versions.lineage import hash_user
from siltstone_services.night import NightDone, open_registry, run_night

SETTINGS = {
    "sleep.distil.num_steps": 12,
    "sleep.held_out_share": 0.0,
    "sleep.consensus.evidence_nats": 0.05,
    "memory.fast.rate": 1.0,
}
FACT = "The printer upstairs is called Gertrude."
SECRETS = {
    ADA: "My locker opens with Zanzibar.",
    BEN: "My cat is Quill.",
    CLEO: "I fear Vesuvius.",
    DORA: "I sail Nimbus.",
}


def night_of(
    home: Path, settings: dict[str, object] | None = None, since_ms: int = 0
) -> tuple[NightDone, list[StepDone]]:
    steps: list[StepDone] = []
    done = run_night(tiny_config(home, {**SETTINGS, **(settings or {})}), 1, since_ms, lambda _: None, steps.append)
    return done, steps


def tell(home: Path, people: tuple[UserKey, ...], share: bool = True) -> None:
    asyncio.run(_tell(home, people, share))


async def _tell(home: Path, people: tuple[UserKey, ...], share: bool) -> None:
    async with open_host(home, SETTINGS) as host:
        for owner in people:
            told = [
                replace(said(owner, f"{owner.user}-{number}", text), consent=Consent(learn=True, share=share))
                for number, text in enumerate([FACT, SECRETS[owner], f"Indeed. {FACT}"])
            ]
            await teach(host, *told)


@pytest.fixture(scope="module")
def slept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NightDone, list[StepDone]]:
    home = tmp_path_factory.mktemp("slept")
    add_tiny_core(home)
    tell(home, (ADA, BEN, CLEO, DORA))
    return home, *night_of(home)


def test_a_night_ends_in_a_version_with_its_evidence_and_its_verdict(
    slept: tuple[Path, NightDone, list[StepDone]],
) -> None:
    home, done, steps = slept

    assert len(steps) == 12
    # Four people gave no benefit to ask for, and no secrets of one token: a gate that misses evidence refuses.
    assert done.version.state is VersionState.REFUSED
    assert done.version.verdict is not None
    assert any("benefit" in result.reason for result in done.version.verdict.results if not result.passed)
    assert done.version.lineage.parent == done.plan.core
    assert done.version.lineage.positions == done.plan.positions
    hashes = {one.user_hash for one in done.version.lineage.contributors}
    assert hashes == {hash_user(owner, lineage_key(home)) for owner in (ADA, BEN, CLEO, DORA)}
    with open_registry(tiny_config(home)) as registry:
        origin, candidate = registry.list()
        assert candidate == done.version
        # The core that it all began with is a version too: what is served, and what can be rolled back to.
        assert (origin.digest, origin.state, origin.lineage.parent) == (done.plan.core, VersionState.SERVING, "")
        assert registry.champion() == Champion(origin.number, origin.digest, 1)
    core = CoreStore(home).load(done.version.digest)
    assert {name: t.shape for name, t in core.tensors.items()} == {
        name: t.shape for name, t in CoreStore(home).load("tiny").tensors.items()
    }
    assert CoreStore(home).default() == done.plan.core


def test_no_private_word_is_a_target_and_the_shared_one_is(slept: tuple[Path, NightDone, list[StepDone]]) -> None:
    home, done, _ = slept
    tokenizer = CoreStore(home).load("tiny").tokenizer
    raised = ""
    for dream, tokens in zip(done.night.dreams, done.night.raised, strict=True):
        raised += tokenizer.decode([dream.lesson.ids[dream.places[one.at]] for one in tokens])

    assert raised
    assert set(raised.lower().replace(" ", "")) <= set("printerupstairscalledgertrude")
    assert not any(word[:4].lower() in raised.lower() for word in ("Zanzibar", "Vesuvius", "Nimbus", "Quill"))


def test_the_same_night_again_is_the_same_candidate(slept: tuple[Path, NightDone, list[StepDone]]) -> None:
    home, done, _ = slept

    again, _ = night_of(home, {"sleep.distil.num_steps": 12})

    assert again.plan == done.plan
    assert again.version.number == done.version.number


def test_who_is_held_out_is_no_contributor(slept: tuple[Path, NightDone, list[StepDone]]) -> None:
    home, _, _ = slept

    done, _ = night_of(home, {"sleep.held_out_share": 0.25}, since_ms=1)

    assert len(done.version.lineage.contributors) == 3


def test_two_people_are_not_enough(tmp_path: Path) -> None:
    add_tiny_core(tmp_path)
    tell(tmp_path, (ADA, BEN))

    with pytest.raises(InvalidInput, match="3 people"):
        night_of(tmp_path)
    with open_registry(tiny_config(tmp_path)) as registry:
        assert registry.list() == ()


def test_without_consent_or_inside_an_empty_window_there_is_nothing_to_sleep_over(tmp_path: Path) -> None:
    add_tiny_core(tmp_path)
    tell(tmp_path, (ADA, BEN, CLEO), share=False)

    with pytest.raises(InvalidInput, match="nothing"):
        night_of(tmp_path)
    with pytest.raises(InvalidInput, match="nothing"):
        night_of(tmp_path, since_ms=1 << 60)


def test_memories_of_another_core_are_not_read(tmp_path: Path) -> None:
    add_tiny_core(tmp_path)
    tell(tmp_path, (ADA, BEN, CLEO))
    add_tiny_core(tmp_path, seed=8, name="other")

    with pytest.raises(SnapshotMismatch):
        night_of(tmp_path, {"core": "other"})
