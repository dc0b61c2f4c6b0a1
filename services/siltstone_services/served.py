"""Which core serves: the champion of the home's registry, or the configured core while nothing was promoted over it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from siltstone.adapters.core_store import CoreStore, LoadedCore
from siltstone.adapters.system_clock import SystemClock
from siltstone.config import SiltstoneConfig
from siltstone.errors import NotFound, Unavailable
from siltstone.ports import VersionRegistry
from siltstone.sleep_values import CoreVersion, Lineage, Verdict, VersionState

if TYPE_CHECKING:
    from siltstone.adapters.sqlite_registry import SqliteRegistry

_REGISTRY: Final = Path("versions/registry.db")


class ServedCores:
    """The cores that may serve on a home. What a night made is handed out by the registry alone, verified.

    Safe for several threads: what is kept is opened once, and the registry is. It stays open until this is closed.
    """

    def __init__(self, config: SiltstoneConfig) -> None:
        self._home = config.home_path
        self._cores = CoreStore(self._home)
        self._configured = self._cores.resolve(config.core)
        self._registry: SqliteRegistry | None = None
        self._lock, self._closed = threading.Lock(), False

    def digest(self) -> str:
        """Returns the digest of the core that newcomers get.

        The champion goes before the configured core it descends from. Another core that was configured is served as it
        was asked for: its users, and what nights make of it, are its own.
        Raises: Corrupt; Unavailable.
        """
        registry = self._open()
        champion = registry.champion() if registry is not None else None
        if registry is None or champion is None:
            return self._configured
        descends = self._configured in _ancestry(champion.digest, registry.list())
        return champion.digest if descends else self._configured

    def load(self, digest: str) -> LoadedCore:
        """Returns a core that may serve: one that passed the gate, its signature verified, or the configured one.

        Raises: NotFound; WrongState for a version that has not passed; Corrupt; Unavailable.
        """
        registry = self._open()
        versions = registry.list() if registry is not None else ()
        number = next((one.number for one in reversed(versions) if one.digest == digest and one.seal), None)
        if registry is not None and number is not None:
            return CoreStore(registry.artefact(number)).load(digest)
        if digest != self._configured:
            raise NotFound("core that may serve", digest[:12])
        return self._cores.load(digest)

    def close(self) -> None:
        """Closes the registry. A second call does nothing; nothing is handed out any more."""
        with self._lock:
            self._closed = True
            if self._registry is not None:
                self._registry.close()

    def __enter__(self) -> ServedCores:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> VersionRegistry | None:
        """Returns the registry, if the home has one by now."""
        with self._lock:
            if self._closed:
                raise Unavailable("the versions of the core", "they were closed")
            if self._registry is None and (self._home / _REGISTRY).exists():
                try:
                    from siltstone.adapters.signing import FolderSigner
                    from siltstone.adapters.sqlite_registry import SqliteRegistry
                except ImportError as error:
                    raise Unavailable("the versions of the core", f"the extra 'sleep' is missing ({error})") from error
                self._registry = SqliteRegistry(self._home, FolderSigner(self._home), SystemClock())
            return self._registry


def record_origin(registry: VersionRegistry, core: Path, code_revision: str) -> None:
    """Records a core that no night made as a version of its own, and lets it be champion where there is none yet.

    It is what every later version is compared with, and what can be rolled back to. Safe to repeat after a crash.
    """
    known = next((one for one in registry.list() if one.digest == core.name), None)
    if known is None or known.state is VersionState.CANDIDATE:
        known = registry.record(core, Lineage("", "origin", {}, (), {}, {}, code_revision), b"{}")
        registry.set_verdict(known.number, Verdict(core.name, "none: no night made it", True, ()))
    if registry.champion() is None:
        registry.promote(known.number, 0)


def _ancestry(digest: str, versions: Sequence[CoreVersion]) -> list[str]:
    """Returns a core and all it descends from, the first one last."""
    parents = {one.digest: one.lineage.parent for one in versions}
    found: list[str] = []
    while digest and digest not in found:
        found.append(digest)
        digest = parents.get(digest, "")
    return found
