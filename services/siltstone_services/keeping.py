"""What a home keeps of its nights: beyond a bound, versions, cores and read bases go, but none that is needed."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Sequence
from typing import Final

from siltstone.adapters.basis_store import BasisStore
from siltstone.adapters.core_store import CoreStore
from siltstone.errors import Corrupt, NotFound, Unavailable
from siltstone.faults import fault_point
from siltstone.ports import SnapshotStore, VersionRegistry
from siltstone.sleep_values import CoreVersion
from siltstone.versions.keeping import abandoned, origin_of, refusal_of_abandoned, to_discard, to_retire

_log = logging.getLogger(__name__)

_DIGEST_CHARACTERS: Final = 64
_OF_A_NIGHT: Final = "sleep:"
"""How the source of a core begins that a night has made."""
_NIGHTS_NAME: Final = re.compile(r"night-[0-9a-f]{16}")

Say = Callable[[str], None]


def name_of_night(sleep_id: str) -> str:
    """Returns the short name of the core that a night has made."""
    return f"night-{sleep_id}"


class Keeper:
    """Clears up in one home, before a night and after it. The caller holds the home.

    Kept are: the cores of the newest refused and retired versions and of all that wait or serve, the core that is
    configured, the default, those that a memory was learned on, the first core of each of their lines, and every core
    that no night has made or that somebody has given a name.
    """

    def __init__(
        self,
        registry: VersionRegistry,
        store: SnapshotStore,
        cores: CoreStore,
        bases: BasisStore,
        in_use: Collection[str],
        num_kept: int,
    ) -> None:
        """Takes, beside the stores, the digests that are in use whatever the stores say."""
        self._registry, self._store, self._cores, self._bases = registry, store, cores, bases
        self._in_use, self._num_kept = frozenset(in_use), num_kept

    def clear_up(self, sleep_id: str, say: Say) -> None:
        """Ends what a killed night has left open, and discards what is beyond the bound.

        1. Refuse the candidates of other nights than this one. 2. Retire accepted versions that wait too long.
        3. Discard versions, here and in MLflow. 4. Remove the cores of nights that no version needs, then their bases.

        Each step may be the last one before a crash: the next night does the rest. What cannot be cleared up now, or
        cannot be told from what is needed, stays.
        """
        try:
            self._clear_up(sleep_id)
        except (Corrupt, NotFound, Unavailable) as error:
            _log.warning("not cleared up", extra={"reason": str(error)})
            say(f"nothing more was cleared up: {error}")

    def _clear_up(self, sleep_id: str) -> None:
        pinned = self._pinned()
        # 1.
        for version in abandoned(self._registry.list(), sleep_id):
            self._registry.set_verdict(version.number, refusal_of_abandoned(version))
        fault_point("keeping.refused")
        # 2.
        for version in to_retire(self._registry.list(), self._num_kept):
            self._registry.retire(version.number)
        # 3.
        for version in to_discard(self._registry.list(), self._registry.champion(), pinned, self._num_kept):
            self._registry.discard(version.number)
            fault_point("keeping.discarded")
        # 4.
        needed = self._needed(self._registry.list(), pinned)
        for core in self._cores.list():
            is_named = any(not _NIGHTS_NAME.fullmatch(name) for name in core.names)
            if core.source.startswith(_OF_A_NIGHT) and not is_named and core.digest not in needed:
                self._cores.remove(core.digest)
                fault_point("keeping.removed")
        self._bases.keep({core.digest for core in self._cores.list()})

    def _pinned(self) -> frozenset[str]:
        """Returns the digests of the cores that must stay: somebody's memory was learned on them, or they serve."""
        default = self._cores.default()
        learned_on = {ground[:_DIGEST_CHARACTERS] for ground in self._store.users_by_core()}
        return self._in_use | learned_on | ({default} if default else set())

    @staticmethod
    def _needed(versions: Sequence[CoreVersion], pinned: frozenset[str]) -> frozenset[str]:
        kept = pinned | {version.digest for version in versions if version.seal}
        return kept | {origin_of(versions, digest) for digest in kept}
