"""The registry with its mirror in MLflow: each version a run with its whole folder, the champion an alias.

MLflow keeps what people look at and what another machine fetches. It decides nothing: its aliases are last-writer-wins.
"""

from __future__ import annotations

import logging
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import Final

# Before mlflow is imported: it reads these once. Nobody is told of its use, nothing stored is run, nobody waits long.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["MLFLOW_ALLOW_MODEL_CODE_EXECUTION"] = "false"
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from siltstone.adapters.mlflow_config import MlflowConfig
from siltstone.adapters.sqlite_registry import SqliteRegistry
from siltstone.errors import Corrupt, SiltstoneError, Unavailable
from siltstone.faults import fault_point
from siltstone.sleep_values import Champion, CoreVersion, Lineage, Verdict, VersionMove

_LOG: Final = logging.getLogger(__name__)
_FOLDER: Final = "version"
_CHAMPION: Final = "champion"
_NUMBER: Final = "siltstone.number"
_SEAL: Final = "siltstone.seal"
_EPOCH: Final = "siltstone.epoch"
_NOT_A_NAME: Final = re.compile(r"[^A-Za-z0-9_.:/ -]")
_MAX_PARAMS: Final = 100
"""MLflow takes no more in one call."""


class MlflowRegistry:
    """`ports.VersionRegistry`: the embedded registry decides, MLflow is brought up to it after every change.

    A version is in MLflow before it may serve. A change of champion that has happened is never undone by MLflow being
    away: MLflow is then behind, and healed at the next change or start.
    """

    def __init__(self, home: Path, ledger: SqliteRegistry, config: MlflowConfig | None = None) -> None:
        """Brings the mirror up to the ledger, if MLflow answers."""
        self._config, self._ledger = config or MlflowConfig(), ledger
        self._home = home / "mlflow"
        self._store: _Store | None = None
        self._mirrored: set[str] = set()
        """The seals of the versions that MLflow was seen to have."""
        self._lenient(self.heal)

    def record(self, core: Path, lineage: Lineage, evidence: bytes) -> CoreVersion:
        """See `ports.VersionRegistry.record`.

        Raises: Unavailable also when MLflow does not take it: recorded here, so that a repeat only mirrors it.
        """
        version = self._ledger.record(core, lineage, evidence)
        self._mirror(version.number)
        return version

    def set_verdict(self, number: int, verdict: Verdict) -> CoreVersion:
        """See `ports.VersionRegistry.set_verdict`. When MLflow is away the verdict stands, and is mirrored later."""
        version = self._ledger.set_verdict(number, verdict)
        self._mirror_later(number)
        return version

    def retire(self, number: int) -> CoreVersion:
        """See `ports.VersionRegistry.retire`."""
        version = self._ledger.retire(number)
        self._mirror_later(number)
        return version

    def discard(self, number: int) -> CoreVersion:
        """See `ports.VersionRegistry.discard`. MLflow's copy goes too."""
        version = self._ledger.discard(number)
        self._mirror_later(number)
        return version

    def list(self) -> tuple[CoreVersion, ...]:
        """See `ports.VersionRegistry.list`."""
        return self._ledger.list()

    def show(self, number: int) -> CoreVersion:
        """See `ports.VersionRegistry.show`."""
        return self._ledger.show(number)

    def champion(self) -> Champion | None:
        """See `ports.VersionRegistry.champion`. MLflow is not asked."""
        return self._ledger.champion()

    def promote(self, number: int, expected_epoch: int) -> Champion:
        """See `ports.VersionRegistry.promote`.

        Raises: Unavailable also when MLflow does not have the version and cannot take it: nothing serves unrecorded.
        """
        if self._ledger.show(number).seal not in self._mirrored:
            self._mirror(number)
        former = self._ledger.champion()
        champion = self._ledger.promote(number, expected_epoch)
        self._mirror_later(number, *([former.number] if former else []))
        return champion

    def rollback(self, expected_epoch: int) -> Champion:
        """See `ports.VersionRegistry.rollback`. It does not wait for MLflow to come back."""
        former = self._ledger.champion()
        champion = self._ledger.rollback(expected_epoch)
        self._mirror_later(champion.number, *([former.number] if former else []))
        return champion

    def artefact(self, number: int) -> Path:
        """See `ports.VersionRegistry.artefact`. A folder that is damaged or missing here is fetched from MLflow."""
        try:
            return self._ledger.artefact(number)
        except Corrupt as damage:
            _LOG.warning("version fetched anew", extra={"version": number, "damage": str(damage)})
            try:
                self._fetch(number)
            except Unavailable:
                raise damage from None
            return self._ledger.artefact(number)

    def history(self) -> tuple[VersionMove, ...]:
        """See `ports.VersionRegistry.history`."""
        return self._ledger.history()

    def heal(self) -> None:
        """Brings MLflow up to the ledger: versions, their states, the alias. What is damaged here is left out.

        Raises: Unavailable.
        """
        with self._mirroring() as store:
            found = store.versions()
            for version in self._ledger.list():
                try:
                    self._follow(store, version, found.get(version.number))
                except Corrupt as damage:
                    _LOG.warning("version not mirrored", extra={"version": version.number, "damage": str(damage)})
            store.follow_champion(self._ledger.champion())

    def close(self) -> None:
        """Closes the ledger."""
        self._ledger.close()

    def __enter__(self) -> MlflowRegistry:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _mirroring(self) -> Iterator[_Store]:
        """Holds the mirror's lock on this machine: what is read from the ledger in it is what MLflow gets last.

        MLflow makes its tables at first use, and two processes at once would both try: so it is opened in here too.
        """
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._home / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            flock(descriptor, LOCK_EX)
            if self._store is None:
                self._store = self._open()
            yield self._store
        except (MlflowException, OSError) as error:
            raise Unavailable("MLflow", str(error)) from error
        finally:
            os.close(descriptor)

    def _open(self) -> _Store:
        """Opens MLflow. A database of ours whose tables a kill left half made is made anew: it only mirrors."""
        whole = self._home / ".whole"
        if not self._config.address and not whole.exists():
            for left in self._home.glob("mlflow.db*"):
                left.unlink()
        store = _Store(self._home.resolve(), self._config)
        whole.touch()
        return store

    def _mirror(self, *numbers: int) -> None:
        with self._mirroring() as store:
            found = store.versions()
            for number in numbers:
                self._follow(store, self._ledger.show(number), found.get(number))
            store.follow_champion(self._ledger.champion())

    def _mirror_later(self, *numbers: int) -> None:
        self._lenient(lambda: self._mirror(*numbers))

    def _lenient(self, mirror: Callable[[], None]) -> None:
        try:
            mirror()
        except SiltstoneError as error:
            _LOG.warning("MLflow is behind", extra={"reason": str(error)})

    def _follow(self, store: _Store, version: CoreVersion, mirrored: ModelVersion | None) -> None:
        if not version.seal:
            if mirrored is not None:
                store.discard(version, mirrored)
            return
        if mirrored is None:
            store.add(version, self._ledger.folder(version.number))
        elif mirrored.tags.get(_SEAL) != version.seal:
            store.replace(version, mirrored, self._ledger.folder(version.number))
        else:
            store.tag(version, mirrored)
        self._mirrored.add(version.seal)

    def _fetch(self, number: int) -> None:
        with self._mirroring() as store, tempfile.TemporaryDirectory(dir=self._home) as beside:
            mirrored = store.versions().get(number)
            if mirrored is None:
                raise Unavailable("MLflow", f"it has no version {number}")
            self._ledger.restore(number, store.fetch(mirrored, Path(beside)))


class _Store:
    """An open MLflow: one registered model, and one experiment with a run for each version."""

    def __init__(self, home: Path, config: MlflowConfig) -> None:
        self._name = config.name
        address = config.address or f"sqlite:///{home / 'mlflow.db'}"
        # A server knows best where it keeps files; a database alone would put them into the working folder.
        location = None if address.startswith(("http://", "https://")) else (home / "artifacts").as_uri()
        self._client = MlflowClient(tracking_uri=address, registry_uri=address)
        experiment = self._client.get_experiment_by_name(self._name)
        self._experiment = str(
            experiment.experiment_id
            if experiment
            else self._client.create_experiment(self._name, artifact_location=location)
        )
        if not self._client.search_registered_models(f"name = '{self._name}'"):
            self._client.create_registered_model(self._name)

    def versions(self) -> dict[int, ModelVersion]:
        """Returns MLflow's versions by our number, which a tag tells: their own numbers may have gaps."""
        found: dict[int, ModelVersion] = {}
        token: str | None = None
        while True:
            page = self._client.search_model_versions(f"name = '{self._name}'", page_token=token)
            for one in page:
                if number := one.tags.get(_NUMBER):
                    found[int(number)] = one
            if not (token := page.token):
                return found

    def add(self, version: CoreVersion, folder: Path) -> None:
        """Uploads a version's folder to a run of its own and registers it."""
        run_id = self._find_or_make_run(version)
        self._client.log_artifacts(run_id, str(folder), _FOLDER)
        self._conclude(version, run_id)
        fault_point("mirror.uploaded")
        self._client.create_model_version(self._name, f"runs:/{run_id}/{_FOLDER}", run_id, tags=_tags(version))

    def replace(self, version: CoreVersion, mirrored: ModelVersion, folder: Path) -> None:
        """Uploads what a verdict has changed: all but the core."""
        for path in sorted(folder.iterdir()):
            if path.is_file():
                self._client.log_artifact(str(mirrored.run_id), str(path), _FOLDER)
        self._conclude(version, str(mirrored.run_id))
        self.tag(version, mirrored)

    def discard(self, version: CoreVersion, mirrored: ModelVersion) -> None:
        """Removes the files of a version, once; its run, figures and tags stay."""
        if mirrored.tags.get(_SEAL):
            uri = self._client.get_run(str(mirrored.run_id)).info.artifact_uri
            get_artifact_repository(uri, tracking_uri=self._client.tracking_uri).delete_artifacts(_FOLDER)
        self.tag(version, mirrored)

    def tag(self, version: CoreVersion, mirrored: ModelVersion) -> None:
        """Brings the tags of a version up to what it is now."""
        for key, value in _tags(version).items():
            if mirrored.tags.get(key) != value:
                self._client.set_model_version_tag(self._name, mirrored.version, key, value)
                fault_point("mirror.tagged")

    def follow_champion(self, champion: Champion | None) -> None:
        """Moves the alias to the champion. The caller's lock makes it the newest one."""
        if champion is None:
            return
        wanted = self.versions().get(champion.number)
        model = self._client.get_registered_model(self._name)
        if wanted is not None and str(model.aliases.get(_CHAMPION)) != str(wanted.version):
            self._client.set_registered_model_alias(self._name, _CHAMPION, str(wanted.version))
            fault_point("mirror.alias_moved")
        if model.tags.get(_EPOCH) != str(champion.epoch):
            self._client.set_registered_model_tag(self._name, _EPOCH, str(champion.epoch))

    def fetch(self, mirrored: ModelVersion, beside: Path) -> Path:
        """Downloads a version's folder, as it is there, and returns it."""
        return Path(self._client.download_artifacts(str(mirrored.run_id), _FOLDER, str(beside)))

    def _find_or_make_run(self, version: CoreVersion) -> str:
        """Returns the run of a version: that of an upload that was broken off, or a new one."""
        for run in self._client.search_runs(
            [self._experiment], f"tags.`{_NUMBER}` = '{version.number}'", max_results=1
        ):
            return str(run.info.run_id)
        tags = {_NUMBER: str(version.number), "siltstone.code": version.lineage.code_revision}
        run = self._client.create_run(self._experiment, tags=tags, run_name=f"version {version.number}")
        seeds = {f"seed.{name}": str(seed) for name, seed in version.lineage.seeds.items()}
        values = {**version.lineage.config, **seeds}
        params = [Param(_named(name), value) for name, value in sorted(values.items())]
        for start in range(0, len(params), _MAX_PARAMS):
            self._client.log_batch(run.info.run_id, params=params[start : start + _MAX_PARAMS])
        return str(run.info.run_id)

    def _conclude(self, version: CoreVersion, run_id: str) -> None:
        """Writes the figures of the verdict, once there is one, and ends the run."""
        if version.verdict is None:
            return
        values = {one.check: one.value for one in version.verdict.results}
        finite = {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
        metrics = [Metric(_named(name), value, version.created_ms, 0) for name, value in finite.items()]
        self._client.log_batch(run_id, metrics=metrics)
        self._client.update_run(run_id, status="FINISHED")


def _tags(version: CoreVersion) -> dict[str, str]:
    return {
        _NUMBER: str(version.number),
        "siltstone.digest": version.digest,
        "siltstone.parent": version.lineage.parent,
        _SEAL: version.seal,
        "siltstone.state": version.state.value,
    }


def _named(name: str) -> str:
    """Returns a name with what MLflow does not allow in it replaced."""
    return _NOT_A_NAME.sub("_", name)
