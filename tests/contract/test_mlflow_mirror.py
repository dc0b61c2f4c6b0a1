"""MLflow shows what the registry has decided: everything about a version, and the champion as an alias."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from tiny_versions import EVIDENCE, accept, record, sqlite_registry, verdict

from siltstone.adapters.mlflow_registry import MlflowConfig, MlflowRegistry
from siltstone.errors import Corrupt, StaleEpoch, Unavailable
from siltstone.sleep_values import VersionState

_names = count()


class Mirror:
    """A registry with its mirror, and MLflow as others see it."""

    def __init__(self, home: Path, address: str) -> None:
        self.home, self.config = home, MlflowConfig(address, f"mirror-{next(_names)}")
        self.client = MlflowClient(address, address)

    @contextmanager
    def open(self):
        with sqlite_registry(self.home) as ledger:
            yield MlflowRegistry(self.home, ledger, self.config)

    def version(self, number):
        (found,) = (v for v in self.versions() if v.tags["siltstone.number"] == str(number))
        return found

    def versions(self):
        return self.client.search_model_versions(f"name = '{self.config.name}'")

    def champion(self):
        try:
            return int(self.client.get_model_version_by_alias(self.config.name, "champion").tags["siltstone.number"])
        except MlflowException:
            return None


@pytest.fixture
def mirror(tmp_path, mlflow_address):
    return Mirror(tmp_path, mlflow_address)


@contextmanager
def mlflow_away(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise MlflowException("nobody answers")

    with monkeypatch.context() as away:
        for name in ("search_model_versions", "search_registered_models"):
            away.setattr(MlflowClient, name, refuse)
        yield


def test_nothing_is_told_to_anybody_and_nothing_stored_is_run():
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert os.environ["MLFLOW_ALLOW_MODEL_CODE_EXECUTION"] == "false"


def test_a_version_is_a_run_with_its_whole_folder_its_settings_and_its_figures(mirror, tmp_path):
    with mirror.open() as registry:
        version = accept(registry, tmp_path, 1)
        folder = registry.artefact(1)
        mirrored = mirror.version(1)
        assert mirrored.tags["siltstone.digest"] == version.digest
        assert mirrored.tags["siltstone.seal"] == version.seal
        assert mirrored.tags["siltstone.state"] == "accepted"
        run = mirror.client.get_run(mirrored.run_id)
        assert run.data.params == {"distil.rate": "0.001", "seed.dream": "5"}
        assert run.data.metrics == {"retention": 0.25}
        copy = Path(mirror.client.download_artifacts(mirrored.run_id, "version", str(tmp_path)))
        contents = [
            {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
            for root in (folder, copy)
        ]
        assert contents[0] == contents[1]
        assert (copy / "evidence.json").read_bytes() == EVIDENCE


def test_the_alias_follows_the_champion_and_states_follow_too(mirror, tmp_path):
    with mirror.open() as registry:
        for seed in (1, 2):
            accept(registry, tmp_path, seed)
            registry.promote(seed, seed - 1)
            assert mirror.champion() == seed
        assert [mirror.version(n).tags["siltstone.state"] for n in (1, 2)] == ["retired", "serving"]
        with pytest.raises(StaleEpoch):
            registry.promote(1, 1)
        assert mirror.champion() == 2
        registry.rollback(2)
        assert mirror.champion() == 1


def test_an_alias_that_somebody_else_moved_changes_no_champion_and_is_put_back(mirror, tmp_path):
    with mirror.open() as registry:
        for seed in (1, 2):
            accept(registry, tmp_path, seed)
        registry.promote(1, 0)
        mirror.client.set_registered_model_alias(mirror.config.name, "champion", mirror.version(2).version)
        assert registry.champion().number == 1
    with mirror.open():
        assert mirror.champion() == 1


@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_a_folder_damaged_here_is_fetched_from_mlflow(mirror, tmp_path, damage):
    with mirror.open() as registry:
        accept(registry, tmp_path, 1)
        folder = registry.artefact(1)
        if damage == "missing":
            shutil.rmtree(folder)
        else:
            (folder / "card.md").write_text("another card")
        assert registry.artefact(1) == folder
        assert "another" not in (folder / "card.md").read_text()


def test_what_was_changed_in_mlflow_too_is_refused(mirror, tmp_path):
    with mirror.open() as registry:
        accept(registry, tmp_path, 1)
        folder = registry.artefact(1)
        (folder / "card.md").write_text("another card")
        mirror.client.log_artifact(mirror.version(1).run_id, str(folder / "card.md"), "version")
        with pytest.raises(Corrupt):
            registry.artefact(1)
        with pytest.raises(Corrupt):
            registry.promote(1, 0)


def test_while_mlflow_is_away_nothing_new_serves_but_a_rollback_works_and_is_mirrored_later(
    mirror, tmp_path, monkeypatch
):
    with mirror.open() as registry:
        for seed in (1, 2):
            accept(registry, tmp_path, seed)
            registry.promote(seed, seed - 1)
        with mlflow_away(monkeypatch):
            with pytest.raises(Unavailable):
                record(registry, tmp_path, 3)
            registry.set_verdict(3, verdict(registry.show(3)))
            with pytest.raises(Unavailable):
                registry.promote(3, 2)
            assert registry.rollback(2).number == 1
            assert registry.show(2).state is VersionState.RETIRED
        assert mirror.champion() == 2
        assert record(registry, tmp_path, 3).number == 3
        assert mirror.champion() == 1
    with mirror.open():
        assert [mirror.version(n).tags["siltstone.state"] for n in (1, 2, 3)] == ["serving", "retired", "accepted"]


def test_a_registry_that_starts_without_mlflow_serves_and_catches_up(mirror, tmp_path, monkeypatch):
    with sqlite_registry(tmp_path) as ledger:
        accept(ledger, tmp_path, 1)
    with mlflow_away(monkeypatch), mirror.open() as registry:
        assert registry.artefact(1).is_dir()
        with pytest.raises(Unavailable):
            registry.promote(1, 0)
    with mirror.open() as registry:
        assert registry.promote(1, 0).epoch == 1
        assert mirror.champion() == 1


def test_an_upload_that_was_broken_off_is_taken_up_in_the_same_run(mirror, tmp_path, monkeypatch):
    with mirror.open() as registry:

        def refuse(*_args, **_kwargs):
            raise MlflowException("the line went dead")

        with monkeypatch.context() as away:
            away.setattr(MlflowClient, "create_model_version", refuse)
            with pytest.raises(Unavailable, match="went dead"):
                record(registry, tmp_path, 1)
        record(registry, tmp_path, 1)
        experiment = mirror.client.get_experiment_by_name(mirror.config.name)
        assert len(mirror.client.search_runs([experiment.experiment_id])) == len(mirror.versions()) == 1


def test_the_files_of_a_discarded_version_go_from_mlflow_and_its_figures_stay(mirror, tmp_path):
    with mirror.open() as registry:
        version = record(registry, tmp_path, 1)
        registry.set_verdict(1, verdict(version, accepted=False))
        registry.discard(1)
    run = mirror.client.get_run(mirror.version(1).run_id)
    assert mirror.client.list_artifacts(run.info.run_id) == []
    assert run.data.metrics == {"retention": 0.25}
    with mirror.open() as registry:
        assert registry.show(1).seal == ""


def test_without_an_address_everything_is_kept_under_the_home_folder(tmp_path):
    with sqlite_registry(tmp_path) as ledger:
        registry = MlflowRegistry(tmp_path, ledger)
        accept(registry, tmp_path, 1)
        registry.promote(1, 0)
        assert (tmp_path / "mlflow" / "mlflow.db").is_file()
        assert list((tmp_path / "mlflow" / "artifacts").rglob("core.safetensors"))


def test_a_database_that_a_kill_left_half_made_is_made_anew_and_a_whole_one_stays(tmp_path):
    (tmp_path / "mlflow").mkdir()
    half = sqlite3.connect(tmp_path / "mlflow" / "mlflow.db")
    half.execute("CREATE TABLE logged_models (model_id VARCHAR(36))")
    half.close()

    def mirrored():
        with sqlite_registry(tmp_path) as ledger:
            registry = MlflowRegistry(tmp_path, ledger)
            if not ledger.list():
                record(registry, tmp_path, 1)
        found = MlflowClient(*[f"sqlite:///{(tmp_path / 'mlflow' / 'mlflow.db').resolve()}"] * 2)
        return [version.run_id for version in found.search_model_versions("name = 'siltstone-core'")]

    first = mirrored()
    assert len(first) == 1
    assert mirrored() == first
