"""A whole night over a real home: from what people said to a version that the gate has judged."""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest
from tiny_home import ADA, BEN, CLEO, DORA, add_tiny_core, is_registry_open, open_host, said, teach, tiny_config
from tiny_night import state_of
from typer.testing import CliRunner

from siltstone.adapters.core_store import CoreStore
from siltstone.adapters.key_file import lineage_key
from siltstone.errors import ConfigInvalid, InvalidInput, NotFound
from siltstone.gate.policy import MEASURED
from siltstone.gate.probe_suites import MIN_ITEMS, SUITE_NAMES
from siltstone.sleep_values import Champion, StepDone, VersionState
from siltstone.values import Consent, UserKey
from siltstone.versions.lineage import hash_user
from siltstone_services.cli import app
from siltstone_services.core_distance import mean_divergence
from siltstone_services.night import NightDone, open_registry, run_night
from siltstone_services.nights import NightCancelled
from siltstone_services.served import record_origin
from siltstone_services.version_records import VersionRecords

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
    with open_registry(tiny_config(tmp_path)) as registry:
        record_origin(registry, tmp_path / "cores" / CoreStore(tmp_path).resolve("tiny"), "test")
    with pytest.raises(InvalidInput, match="nothing") as ended:
        night_of(tmp_path, since_ms=1 << 60)
    # The error still holds all that the night had, and the night has closed what it opened.
    assert ended.value
    assert not is_registry_open(tmp_path)


def test_memories_of_another_core_are_no_evidence(tmp_path: Path) -> None:
    add_tiny_core(tmp_path)
    tell(tmp_path, (ADA, BEN, CLEO))
    add_tiny_core(tmp_path, seed=8, name="other")

    with pytest.raises(InvalidInput, match="3 memory_of_another_core"):
        night_of(tmp_path, {"core": "other"})


def test_what_a_core_has_said_is_not_asked_again_and_damage_changes_nothing(
    slept: tuple[Path, NightDone, list[StepDone]],
) -> None:
    home, done, _ = slept
    files = sorted((home / "readings" / done.plan.core).iterdir())
    assert len(files) == len(SUITE_NAMES)
    kept = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}
    files[0].write_bytes(kept[files[0]][1][:-9])

    again, _ = night_of(home, {"sleep.distil.num_steps": 4})

    assert again.version.digest != done.version.digest
    assert [path.read_bytes() for path in files] == [content for _, content in kept.values()]
    rewritten = [path for path in files if path.stat().st_mtime_ns != kept[path][0]]
    assert rewritten == files[:1]
    # What a core said that neither serves nor was proposed this night is not kept.
    assert {entry.name for entry in (home / "readings").iterdir()} == {again.version.digest, done.plan.core}


@pytest.mark.parametrize(
    "last_said", ["statements of", "asking 2 cores", "reading the anchors", "trying the candidate"]
)
def test_a_night_ends_inside_sampling_and_inside_measuring(
    slept: tuple[Path, NightDone, list[StepDone]], last_said: str
) -> None:
    home, _, _ = slept
    said: list[str] = []
    before = state_of(home)

    def look() -> None:
        if said and last_said in said[-1]:
            raise NightCancelled(1)

    config = tiny_config(home, {**SETTINGS, "sleep.distil.num_steps": 5})
    with pytest.raises(NightCancelled):
        run_night(config, 1, 0, said.append, lambda _: None, look=look)
    # Before it had anything else to say.
    assert last_said in said[-1]
    now = state_of(home)
    assert {**now, "cores": before["cores"]} == before


@pytest.mark.parametrize(
    "text", ['{"id": 1}', "", "\x00", '{"id":"a","cluster":"b","prompt":"c","right":"d","wrong":"d"}']
)
def test_a_poisoned_probe_file_ends_the_night_before_anything_is_done(tmp_path: Path, text: str) -> None:
    add_tiny_core(tmp_path)
    tell(tmp_path, (ADA, BEN, CLEO, DORA))
    (tmp_path / "mine.jsonl").write_text(text)
    before = sorted(path for path in tmp_path.rglob("*"))

    with pytest.raises(ConfigInvalid, match="mine"):
        night_of(tmp_path, {"gate.external_folder": str(tmp_path), "gate.external_suites": ["mine"]})

    assert sorted(path for path in tmp_path.rglob("*")) == before
    with open_registry(tiny_config(tmp_path)) as registry:
        assert registry.list() == ()


def test_two_versions_are_told_apart_by_what_was_measured_and_where_they_come_from(
    slept: tuple[Path, NightDone, list[StepDone]],
) -> None:
    home, done, _ = slept
    other, _ = night_of(home, {"sleep.distil.num_steps": 6, "sleep.filter.max_statements": 40})
    records = VersionRecords(tiny_config(home))

    found = records.compare(done.version.number, other.version.number)
    same = records.compare(done.version.number, done.version.number)

    assert [report.card.number for report in found.reports] == [done.version.number, other.version.number]
    assert {"refusal", "kl_champion"} <= {one.name for one in found.reports[1].measurements}
    assert [name for name, *_ in found.origins] == ["config sleep"]
    assert same.origins == ()
    assert mean_divergence(home, done.version.digest, done.version.digest) == 0.0
    assert mean_divergence(home, done.version.digest, other.version.digest) > 0.0
    with pytest.raises(NotFound):
        records.compare(done.version.number, 999)
    numbers = [str(one.version.number) for one in (done, other)]
    shown = CliRunner().invoke(app, ["--home", str(home), "versions", "compare", *numbers, "--measure"])
    assert shown.exit_code == 0, shown.output
    assert "mean KL" in shown.output


def test_an_external_suite_is_judged_by_a_policy_of_the_operators(
    slept: tuple[Path, NightDone, list[StepDone]],
) -> None:
    home, _, _ = slept
    probe = {"right": "yes", "wrong": "no"}
    lines = [{**probe, "id": str(at), "cluster": str(at % 9), "prompt": f"Is {at} it?"} for at in range(MIN_ITEMS)]
    (home / "mine.jsonl").write_text("\n".join(map(json.dumps, lines)))
    shipped = resources.files("siltstone.gate").joinpath("policy.toml").read_text(encoding="utf-8")
    own = """
[[checks]]
name = "ours are answered far better"
kind = "superior"
measurement = "mine"
margin = 1e6
confidence = 0.95
power = 0.8
min_items = 100
reason = "Nobody can."
"""
    content = shipped.replace('name = "siltstone-1"', 'name = "ours"') + own
    (home / "ours.toml").write_text(content)
    settings: dict[str, object] = {
        "gate.external_folder": str(home),
        "gate.external_suites": ["mine"],
        "gate.policy": "ours.toml",
        "gate.policy_sha256": hashlib.sha256(content.encode()).hexdigest(),
        "sleep.distil.num_steps": 3,
    }

    done, _ = night_of(home, settings)

    assert done.version.verdict is not None
    assert done.version.verdict.policy == "ours"
    (result,) = (one for one in done.version.verdict.results if one.check == "ours are answered far better")
    assert (result.passed, result.num_items, result.unit) == (False, MIN_ITEMS, "nats/token")
    assert done.version.lineage.config["policy"] == settings["gate.policy_sha256"]
    records = VersionRecords(tiny_config(home, settings))
    explained = "\n".join(records.explain(done.version.number))
    assert "FAIL  ours are answered far better: mine: " in explained
    assert "why the limit: Nobody can." in explained
    # Whatever a policy may name is measured, and nothing else but what is to be reported only.
    names = [one.name for one in records.get(done.version.number).measurements]
    assert sorted(names) == sorted([*MEASURED, *SUITE_NAMES, "mine", "similarity_champion"])
