"""The registry with its mirror in MLflow: each version a run with its whole folder, the champion an alias.

MLflow keeps what people look at and what another machine fetches. It decides nothing: its aliases are last-writer-wins.
"""

from __future__ import annotations

import logging
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
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

from siltstone.adapters.sqlite_registry import SqliteRegistry
from siltstone.errors import Corrupt, SiltstoneError, Unavailable
from siltstone.faults import fault_point
from siltstone.sleep_values import Champion, CoreVersion, Lineage, Verdict, VersionMove

_LOG: Final = logging.getLogger(__name__)
_FOLDER: Final = "version"
_CHAMPION: Final = "champion"
_NOT_A_NAME: Final = re.compile(r"[^A-Za-z0-9_.:/ -]")
_MAX_PARAMS: Final = 100
"""MLflow takes no more in one call."""


@dataclass(frozen=True, slots=True)
class MlflowConfig:
    """Where MLflow keeps the mirror."""

    address: str = ""
    """A server (`http://...`) or a database; empty for a SQLite file under the home folder."""
    name: str = "siltstone-core"
    """The registered model's and the experiment's name."""


class MlflowRegistry:
    """`ports.VersionRegistry`: the embedded registry decides, MLflow is brought up to it after every change.

    A version is in MLflow before it may serve. A change of champion that has happened is never undone by MLflow being
    away: it is written down as behind, and healed at the next change or start.
    """

    def __init__(self, home: Path, ledger: SqliteRegistry, config: MlflowConfig | None = None) -> None:
        """Opens the mirror, or makes it, and brings it up to the ledger.

        Raises: Unavailable when MLflow does not answer.
        """
        self._config, self._ledger = config or MlflowConfig(), ledger
        self._home = home / "mlflow"
        self._mirrored: set[str] = set()
        """The seals of the versions that MLflow was seen to have."""
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        # MLflow makes its tables at first use, and two processes at once would both try.
        with self._mirroring():
            address = self._config.address or f"sqlite:///{self._home.resolve() / 'mlflow.db'}"
            self._client = MlflowClient(tracking_uri=address, registry_uri=address)
            self._experiment = self._find_or_make_experiment()
            self._find_or_make_model()
        self.heal()

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
        with self._mirroring():
            found = self._read_mirror()
            for version in self._ledger.list():
                try:
                    self._mirror_version(version, found.get(version.number))
                except Corrupt as damage:
                    _LOG.warning("version not mirrored", extra={"version": version.number, "damage": str(damage)})
            self._mirror_champion()

    def close(self) -> None:
        """Closes the ledger."""
        self._ledger.close()

    def __enter__(self) -> MlflowRegistry:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _mirroring(self) -> Iterator[None]:
        """Holds the mirror's lock on this machine: what is read from the ledger in it is what MLflow gets last."""
        descriptor = os.open(self._home / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            flock(descriptor, LOCK_EX)
            yield
        except (MlflowException, OSError) as error:
            raise Unavailable("MLflow", str(error)) from error
        finally:
            os.close(descriptor)

    def _mirror(self, *numbers: int) -> None:
        with self._mirroring():
            found = self._read_mirror()
            for number in numbers:
                self._mirror_version(self._ledger.show(number), found.get(number))
            self._mirror_champion()

    def _mirror_later(self, *numbers: int) -> None:
        try:
            self._mirror(*numbers)
        except SiltstoneError as error:
            _LOG.warning("MLflow is behind", extra={"versions": numbers, "reason": str(error)})

    def _mirror_version(self, version: CoreVersion, mirrored: ModelVersion | None) -> None:
        tags = {
            "siltstone.number": str(version.number),
            "siltstone.digest": version.digest,
            "siltstone.parent": version.lineage.parent,
            "siltstone.seal": version.seal,
            "siltstone.state": version.state.value,
        }
        if mirrored is None or mirrored.tags.get("siltstone.seal") != version.seal:
            run_id = str(mirrored.run_id) if mirrored else self._find_or_make_run(version)
            self._upload(version, run_id, with_core=mirrored is None)
            fault_point("mirror.uploaded")
            if mirrored is None:
                source = f"runs:/{run_id}/{_FOLDER}"
                self._client.create_model_version(self._config.name, source, run_id, tags=tags)
        if mirrored is not None:
            for key, value in tags.items():
                if mirrored.tags.get(key) != value:
                    self._client.set_model_version_tag(self._config.name, mirrored.version, key, value)
                    fault_point("mirror.tagged")
        self._mirrored.add(version.seal)

    def _mirror_champion(self) -> None:
        """Moves the alias to where the ledger's champion is now. The lock makes it the newest one."""
        champion = self._ledger.champion()
        if champion is None:
            return
        wanted = self._read_mirror().get(champion.number)
        model = self._client.get_registered_model(self._config.name)
        if wanted is not None and str(model.aliases.get(_CHAMPION)) != str(wanted.version):
            self._client.set_registered_model_alias(self._config.name, _CHAMPION, str(wanted.version))
            fault_point("mirror.alias_moved")
        if model.tags.get("siltstone.epoch") != str(champion.epoch):
            self._client.set_registered_model_tag(self._config.name, "siltstone.epoch", str(champion.epoch))

    def _read_mirror(self) -> dict[int, ModelVersion]:
        """Returns MLflow's versions by our number, which a tag tells: their own numbers may have gaps."""
        found: dict[int, ModelVersion] = {}
        token: str | None = None
        while True:
            page = self._client.search_model_versions(f"name = '{self._config.name}'", page_token=token)
            for one in page:
                if number := one.tags.get("siltstone.number"):
                    found[int(number)] = one
            if not (token := page.token):
                return found

    def _find_or_make_experiment(self) -> str:
        experiment = self._client.get_experiment_by_name(self._config.name)
        if experiment is not None:
            return str(experiment.experiment_id)
        # A server knows best where it keeps files; a database alone would put them into the working folder.
        is_server = self._config.address.startswith(("http://", "https://"))
        location = None if is_server else (self._home.resolve() / "artifacts").as_uri()
        return str(self._client.create_experiment(self._config.name, artifact_location=location))

    def _find_or_make_model(self) -> None:
        if not self._client.search_registered_models(f"name = '{self._config.name}'"):
            self._client.create_registered_model(self._config.name)

    def _find_or_make_run(self, version: CoreVersion) -> str:
        """Returns the run of a version: that of an upload that was broken off, or a new one."""
        wanted = f"tags.`siltstone.number` = '{version.number}'"
        for run in self._client.search_runs([self._experiment], wanted, max_results=1):
            return str(run.info.run_id)
        tags = {"siltstone.number": str(version.number), "siltstone.code": version.lineage.code_revision}
        run_id = str(self._client.create_run(self._experiment, tags=tags).info.run_id)
        seeds = {f"seed.{name}": str(seed) for name, seed in version.lineage.seeds.items()}
        params = _params({**version.lineage.config, **seeds})
        for start in range(0, len(params), _MAX_PARAMS):
            self._client.log_batch(run_id, params=params[start : start + _MAX_PARAMS])
        return run_id

    def _upload(self, version: CoreVersion, run_id: str, *, with_core: bool) -> None:
        folder = self._ledger.folder(version.number)
        if with_core:
            self._client.log_artifacts(run_id, str(folder), _FOLDER)
        else:
            for path in sorted(folder.iterdir()):
                if path.is_file():
                    self._client.log_artifact(run_id, str(path), _FOLDER)
        if version.verdict is not None:
            values = {one.check: one.value for one in version.verdict.results}
            finite = {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
            metrics = [Metric(_named(name), value, version.created_ms, 0) for name, value in finite.items()]
            self._client.log_batch(run_id, metrics=metrics)
            self._client.set_terminated(run_id)

    def _fetch(self, number: int) -> None:
        with tempfile.TemporaryDirectory(dir=self._home) as beside, self._mirroring():
            mirrored = self._read_mirror().get(number)
            if mirrored is None:
                raise Unavailable("MLflow", f"it has no version {number}")
            fetched = self._client.download_artifacts(str(mirrored.run_id), _FOLDER, beside)
            self._ledger.restore(number, Path(fetched))


def _params(values: Mapping[str, str]) -> list[Param]:
    return [Param(_named(name), value) for name, value in sorted(values.items())]


def _named(name: str) -> str:
    """Returns a name with what MLflow does not allow in it replaced."""
    return _NOT_A_NAME.sub("_", name)
