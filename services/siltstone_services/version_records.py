"""The versions of a home folder as an operator sees and moves them. Imports the sleep's extra, and no model."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from siltstone.adapters.mlflow_registry import MlflowRegistry
from siltstone.adapters.signing import FolderSigner
from siltstone.adapters.sqlite_registry import SqliteRegistry
from siltstone.adapters.system_clock import SystemClock
from siltstone.adapters.version_folders import VersionFolders
from siltstone.config import SiltstoneConfig
from siltstone.errors import Corrupt, InvalidInput, NotFound, Unavailable
from siltstone.gate.verdict import explain
from siltstone.ports import VersionRegistry
from siltstone.sleep_values import (
    Champion,
    CoreVersion,
    Lineage,
    MeasurementSummary,
    VersionCard,
    VersionComparison,
    VersionReport,
)
from siltstone_services.policies import policy_named

PAGE_SIZE: Final = 100
MAX_PAGE_SIZE: Final = 1000


@dataclass(frozen=True, slots=True)
class VersionPage:
    """Some versions, and where to go on."""

    versions: tuple[VersionCard, ...]
    next_page_token: str
    champion: Champion | None


@contextmanager
def open_registry(config: SiltstoneConfig) -> Iterator[VersionRegistry]:
    """Gives the version registry of a home folder, mirrored to MLflow."""
    home = config.home_path
    with (
        _open_ledger(config) as ledger,
        MlflowRegistry(home, ledger, config.mlflow) as registry,
    ):
        yield registry


class VersionRecords:
    """Opens the registry for every call: another process may move it at any time. MLflow is asked for moves only."""

    def __init__(self, config: SiltstoneConfig) -> None:
        self._config = config

    def list(self, page_size: int, page_token: str) -> VersionPage:
        """Returns a page of the versions.

        Raises: InvalidInput; Corrupt; Unavailable.
        """
        if not 0 <= page_size <= MAX_PAGE_SIZE:
            raise InvalidInput("page_size", f"0 to {MAX_PAGE_SIZE}", str(page_size))
        if page_token and not (page_token.isascii() and page_token.isdecimal() and len(page_token) < 19):
            raise InvalidInput("page_token", "the one of the page before", repr(page_token[:40]))
        with _open_ledger(self._config) as ledger:
            versions, champion = ledger.list(), ledger.champion()
        rest = [one for one in versions if one.number > int(page_token or 0)]
        page = rest[: page_size or PAGE_SIZE]
        token = str(page[-1].number) if len(page) < len(rest) else ""
        return VersionPage(tuple(card_of(one) for one in page), token, champion)

    def get(self, number: int) -> VersionReport:
        """Returns a version with its evidence in short and its verdict.

        Raises: NotFound; Corrupt; Unavailable.
        """
        version = self._show(number)
        return VersionReport(card_of(version), version.verdict, self._measurements(version))

    def explain(self, number: int) -> tuple[str, ...]:
        """Returns the verdict in lines for a person; nothing when the gate has not judged it.

        Raises: NotFound; Corrupt; Unavailable.
        """
        verdict = self._show(number).verdict
        return () if verdict is None else tuple(explain(verdict, policy_named(self._config, verdict.policy)))

    def compare(self, number: int, other: int) -> VersionComparison:
        """Returns two versions side by side.

        Raises: NotFound; Corrupt; Unavailable.
        """
        lineages = [_origins(self._show(one).lineage) for one in (number, other)]
        names = dict.fromkeys(name for one in lineages for name in one)
        told = ((name, *(one.get(name, "") for one in lineages)) for name in names)
        return VersionComparison(
            (self.get(number), self.get(other)), tuple((name, one, two) for name, one, two in told if one != two)
        )

    def champion(self) -> Champion:
        """Returns which version serves.

        Raises: NotFound before the first promotion; Corrupt; Unavailable.
        """
        with _open_ledger(self._config) as ledger:
            champion = ledger.champion()
        if champion is None:
            raise NotFound("champion", "none has been promoted")
        return champion

    def promote(self, number: int, expected_epoch: int) -> Champion:
        """Makes a version the champion; see `ports.VersionRegistry.promote`."""
        with open_registry(self._config) as registry:
            return registry.promote(number, expected_epoch)

    def roll_back(self, expected_epoch: int) -> Champion:
        """Makes the champion before champion again; see `ports.VersionRegistry.rollback`."""
        with open_registry(self._config) as registry:
            return registry.rollback(expected_epoch)

    def _show(self, number: int) -> CoreVersion:
        with _open_ledger(self._config) as ledger:
            return ledger.show(number)

    def _measurements(self, version: CoreVersion) -> tuple[MeasurementSummary, ...]:
        if not version.seal:
            return ()
        home = self._config.home_path
        what = f"the evidence of version {version.number}"
        try:
            raw = (VersionFolders(home, FolderSigner(home)).path(version) / "evidence.json").read_bytes()
        except FileNotFoundError as error:
            raise Corrupt(what, f"sha256 {version.evidence_digest}", "no file") from error
        except OSError as error:
            raise Unavailable(what, error.strerror or str(error)) from error
        # The whole folder is verified before it serves; here its digest vouches for what is told.
        if (found := hashlib.sha256(raw).hexdigest()) != version.evidence_digest:
            raise Corrupt(what, f"sha256 {version.evidence_digest}", found)
        told = json.loads(raw)
        return tuple(_summary(one) for one in told.get("measurements", ()))


def card_of(version: CoreVersion) -> VersionCard:
    """Returns what may be told of a version."""
    lineage = version.lineage
    return VersionCard(
        number=version.number,
        digest=version.digest,
        state=version.state,
        parent=lineage.parent,
        sleep_id=lineage.sleep_id,
        num_people=len(lineage.contributors),
        num_interactions=sum(one.num_interactions for one in lineage.contributors),
        seeds=lineage.seeds,
        code_revision=lineage.code_revision,
        created_at_ms=version.created_ms,
        evidence_digest=version.evidence_digest,
        first_served_epoch=version.first_served_epoch,
        seal=version.seal,
    )


def _origins(lineage: Lineage) -> dict[str, str]:
    """Returns where a version comes from, in words. People are told apart by their hashes, which say nothing else."""
    people = hashlib.sha256(repr([one.user_hash for one in lineage.contributors]).encode()).hexdigest()
    num_interactions = sum(one.num_interactions for one in lineage.contributors)
    return {
        "parent": lineage.parent,
        "night": lineage.sleep_id,
        "people": f"{len(lineage.contributors)} (set {people[:8]})",
        "interactions": str(num_interactions),
        "journal": ", ".join(f"{partition}: {end}" for partition, end in sorted(lineage.positions.items())),
        **{f"seed {name}": str(seed) for name, seed in sorted(lineage.seeds.items())},
        **{f"config {name}": value for name, value in sorted(lineage.config.items())},
        "code": lineage.code_revision,
    }


def _open_ledger(config: SiltstoneConfig) -> SqliteRegistry:
    home = config.home_path
    return SqliteRegistry(home, FolderSigner(home), SystemClock())


def _summary(measurement: dict[str, Any]) -> MeasurementSummary:
    return MeasurementSummary(
        name=measurement["name"],
        unit=measurement["unit"],
        num_items=len(measurement["candidate"]),
        candidate=_mean(measurement["candidate"]),
        champion=_mean(measurement["champion"]),
        origin=_mean(measurement["origin"]),
        higher_is_better=measurement["higher_is_better"],
    )


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
