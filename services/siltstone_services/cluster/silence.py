"""Which partitions stand still although records wait in them and nobody has told why."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class _Standing:
    position: int
    since_s: float
    is_told: bool = False


class Silence:
    """Watches that what waits is absorbed: a reader that hangs, or forgets a partition, fails no call and logs nothing.

    Uses no clock of its own.
    """

    def __init__(self, silent_after_s: float) -> None:
        self._silent_after_s = silent_after_s
        self._standing: dict[int, _Standing] = {}

    def excuse(self, partitions: Iterable[int], now_s: float) -> None:
        """Begins to count anew for partitions whose shard has told what keeps it from going on."""
        for partition in partitions:
            if (standing := self._standing.get(partition)) is not None:
                standing.since_s = now_s

    def look(self, waiting: Mapping[int, tuple[int, int]], owners: Mapping[int, str], now_s: float) -> None:
        """Tells of partitions that have stood still for too long, once each, and of those that go on again.

        `waiting` has the position and the end of every partition that ought to go on; `owners` says whose they are.
        """
        for partition in self._standing.keys() - waiting.keys():
            self._end(partition)
        for partition, (position, end) in waiting.items():
            standing = self._standing.get(partition)
            if standing is not None and standing.position != position:
                self._end(partition)
                standing = None
            if standing is None:
                self._standing[partition] = _Standing(position, now_s)
            elif not standing.is_told and now_s - standing.since_s > self._silent_after_s:
                standing.is_told = True
                told = {"partition": partition, "shard": owners.get(partition, ""), "position": position}
                _LOG.error("partition silent", extra={**told, "lag_interactions": end - position})

    def _end(self, partition: int) -> None:
        if self._standing.pop(partition).is_told:
            _LOG.info("partition goes on", extra={"partition": partition})
