"""Nights over what no night can be made of: one clear line and its exit code, and nothing has changed."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest
from tiny_home import ADA, add_tiny_core, open_host, said, teach, tiny_config, write_config
from tiny_night import FACT, SETTINGS, exam, make_home, sleep, state_of, tell
from typer.testing import CliRunner, Result

from siltstone.adapters.core_store import CoreStore
from siltstone.adapters.sqlite_file import SqliteFile
from siltstone.errors import ConfigInvalid, Corrupt, InvalidInput
from siltstone.sleep.filter import DropReason
from siltstone.sleep_values import VersionState
from siltstone.values import Consent, UserKey
from siltstone_services.cli import app
from siltstone_services.judging import Exam
from siltstone_services.night import open_registry, run_night


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return make_home(tmp_path)


def run(home: Path, *words: str) -> Result:
    write_config(home, SETTINGS)
    return CliRunner().invoke(app, ["--home", str(home), "sleep", "run", *words])


def assert_refused(result: Result, code: int, told: str) -> None:
    assert result.exit_code == code, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("siltstone: ")]
    assert len(lines) == 1
    assert told in lines[0]
    assert "Traceback" not in result.output


def test_an_empty_window_is_told_and_changes_nothing(home: Path) -> None:
    before = state_of(home)

    assert_refused(run(home, "--since", str(1 << 60)), 3, "the window: expected something that 3 people said")

    assert state_of(home) == before


def test_a_home_where_everything_is_filtered_is_told_so(tmp_path: Path) -> None:
    add_tiny_core(tmp_path)
    tell(tmp_path, share=False)

    assert_refused(run(tmp_path), 3, "the window: expected something that 3 people said")


def test_one_user_alone_and_nobody_at_all_are_told_so(tmp_path: Path) -> None:
    add_tiny_core(tmp_path)
    assert_refused(run(tmp_path), 3, "3 people said")
    tell(tmp_path, (ADA,))
    assert_refused(run(tmp_path), 3, "3 people said")


def test_a_home_without_a_core_is_told_so(tmp_path: Path) -> None:
    assert_refused(run(tmp_path), 4, "no such core: tiny")


def test_identities_that_cannot_be_believed_end_the_night_before_it_begins(home: Path) -> None:
    write_config(home, {**SETTINGS, "sleep.identities": "people.toml"})
    result = CliRunner().invoke(app, ["--home", str(home), "sleep", "run"])
    assert_refused(result, 2, "people.toml: No such file")
    (home / "people.toml").write_text('[people]\nada = ["office/ada"]\nben = ["office/ada"]\n')
    with pytest.raises(ConfigInvalid, match="office/ada is listed under ada already"):
        sleep(home, settings={"sleep.identities": "people.toml"})


def test_a_policy_that_cannot_be_used_ends_the_night_before_it_begins(home: Path) -> None:
    shipped = resources.files("siltstone.gate").joinpath("policy.toml").read_text(encoding="utf-8")
    renamed = shipped.replace('name = "siltstone-1"', 'name = "ours"')
    before = state_of(home)
    for content, told in (
        (renamed.replace('measurement = "speed"', 'measurement = "sped"'), "nobody measures 'sped'"),
        (renamed[: renamed.rindex("[[checks]]")], "missing: the shipped policy's 'no slower than the champion'"),
        (shipped, "expected a name of its own"),
    ):
        (home / "ours.toml").write_text(content)
        digest = hashlib.sha256(content.encode()).hexdigest()
        write_config(home, {**SETTINGS, "gate.policy": "ours.toml", "gate.policy_sha256": digest})
        assert_refused(CliRunner().invoke(app, ["--home", str(home), "sleep", "run"]), 2, told)
    write_config(home, {**SETTINGS, "gate.policy": "ours.toml"})
    assert_refused(CliRunner().invoke(app, ["--home", str(home), "sleep", "run"]), 2, "not the file that was meant")
    assert state_of(home) == before


def test_accounts_of_one_person_are_one_and_without_the_file_they_are_as_many_as_they_are(home: Path) -> None:
    people = home / "people.toml"
    people.write_text('[people]\nada = ["office/ada", "office/ben"]\ncleo = ["office/cleo", "office/dora"]\n')
    with pytest.raises(InvalidInput, match="3 people said"):
        sleep(home, settings={"sleep.identities": "people.toml"})
    people.write_text('[people]\nada = ["office/ada", "office/ben"]\n')

    three = sleep(home, settings={"sleep.identities": "people.toml"}).version.lineage
    four = sleep(home, seed=2).version.lineage

    assert (three.num_people, len(three.contributors)) == (3, 4)
    assert (four.num_people, len(four.contributors)) == (4, 4)
    assert three.config["identities"] != four.config["identities"] == ""


def test_people_of_several_tenants_support_one_another(tmp_path: Path) -> None:
    add_tiny_core(tmp_path)
    tell(tmp_path, [UserKey(tenant, "ada") for tenant in ("office", "shop", "depot")])

    assert sleep(tmp_path).version.lineage.num_people == 3


def test_memories_of_another_core_or_damaged_ones_are_counted_and_the_night_goes_on(home: Path) -> None:
    add_tiny_core(home, seed=8, name="other")
    late, broken = UserKey("office", "eve"), UserKey("office", "finn")

    async def learn_on_another() -> None:
        async with open_host(home, {**SETTINGS, "core": "other"}) as host:
            await teach(host, replace(said(late, "eve-1", FACT), consent=Consent(learn=True, share=True)))

    asyncio.run(learn_on_another())
    tell(home, (broken,))
    with SqliteFile(home / "siltstone.db", tiny_config(home).store) as file, file.writing(0) as connection:
        connection.execute(
            "UPDATE snapshot_blob SET blob = zeroblob(length(blob)) WHERE owner_row ="
            " (SELECT owner_row FROM snapshot WHERE user = 'finn')"
        )

    night = sleep(home).night

    assert night.dropped[DropReason.MEMORY_OF_ANOTHER_CORE] == 1
    assert night.dropped[DropReason.MEMORY_DAMAGED] == 1
    assert night.dreams


def test_a_core_that_a_memory_was_learned_on_is_not_cleared_away(home: Path) -> None:
    pinned, free = (sleep(home, seed, settings={"sleep.keep_versions": 9}).version.digest for seed in (1, 2))

    async def learn_on_it() -> None:
        async with open_host(home, {**SETTINGS, "core": pinned}) as host:
            await teach(host, said(UserKey("office", "eve"), "eve-1", "My boat is called Nan."))

    asyncio.run(learn_on_it())
    for seed in (3, 4, 5):
        sleep(home, seed, accepts=False, settings={"sleep.keep_versions": 0})

    kept = {core.digest for core in CoreStore(home).list()}
    assert pinned in kept
    assert free in kept  # the newest that waits
    assert len(kept) == 3
    with open_registry(tiny_config(home)) as registry:
        assert [version.seal != "" for version in registry.list()] == [True, True, True, False, False, False]


def test_a_core_of_another_shape_under_the_parents_name_is_told_and_never_mixed(home: Path) -> None:
    first = sleep(home).version
    parent = CoreStore(home).resolve("tiny")
    # The folder of another core in the place of the parent's.
    other = add_tiny_core(home, seed=9, name="other")
    folder = home / "cores"
    for path in (folder / parent).iterdir():
        path.write_bytes((folder / other / path.name).read_bytes())

    with pytest.raises(Corrupt, match="is damaged"):
        sleep(home, seed=2)
    assert_refused(run(home), 6, "is damaged")
    with open_registry(tiny_config(home)) as registry:
        assert registry.list()[-1].number == first.number


@pytest.mark.parametrize("harm", ["flipped", "unsigned", "older"])
def test_a_candidate_that_is_not_what_was_signed_never_serves(home: Path, harm: str) -> None:
    done = [sleep(home, seed, settings={"sleep.keep_versions": 9}).version for seed in (1, 2)]
    with open_registry(tiny_config(home)) as registry:
        first = registry.champion()
        assert first is not None
        champion = registry.promote(done[0].number, first.epoch)
    folders = [next((home / "versions").glob(f"{one.number:06d}-*")) for one in done]
    copies = [next((home / "mlflow").rglob(f"{one.digest}/core.safetensors")).parents[2] for one in done]
    for folder, older in ((folders[1], folders[0]), (copies[1], copies[0])):
        if harm == "unsigned":
            (folder / "version.sig").unlink()
        elif harm == "flipped":
            path = folder / "cores" / done[1].digest / "core.safetensors"
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            path.write_bytes(content)
        else:
            _replace(folder, older)

    with open_registry(tiny_config(home)) as registry:
        with pytest.raises(Corrupt):
            registry.artefact(done[1].number)
        with pytest.raises(Corrupt):
            registry.promote(done[1].number, champion.epoch)
        assert registry.champion() == champion
        registry.artefact(champion.number)


def test_a_candidate_changed_between_its_evidence_and_its_verdict_is_not_judged(home: Path) -> None:
    light = exam()

    def measure_and_change(folder: Path, candidate: str, *others: object) -> object:
        evidence = light.measure(folder, candidate, *others)  # type: ignore[arg-type]
        path = folder / "cores" / candidate / "core.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        return evidence

    with pytest.raises(Corrupt):
        run_night(
            tiny_config(home, SETTINGS),
            1,
            0,
            lambda _: None,
            lambda _: None,
            exam=Exam(measure_and_change, light.policy),  # type: ignore[arg-type]
        )
    with open_registry(tiny_config(home)) as registry:
        assert [version.state for version in registry.list()] == [VersionState.SERVING]

    assert sleep(home).version.state is VersionState.ACCEPTED


def _replace(folder: Path, other: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(other, folder)
