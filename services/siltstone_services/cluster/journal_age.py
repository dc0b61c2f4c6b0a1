"""Whether a journal still has what the store has not taken in: looked at before anybody serves."""

from __future__ import annotations

import logging

from siltstone.errors import Corrupt, records_not_kept
from siltstone.ports import Clock, Journal, SnapshotStore

_LOG = logging.getLogger(__name__)


def look_at_ages(journal: Journal, store: SnapshotStore, clock: Clock) -> dict[int, Corrupt]:
    """Tells of every partition that cannot be read on from the store's position, and of what has waited for long.

    1. A position before the oldest record that is kept, or behind the next one, is damage: its partition will stand
    still at its first read, so that is told now. The others go on.
    2. Of the rest, whose records have waited for so long that they may not be kept any more before they are absorbed.

    Returns: what is wrong, by partition.
    Raises: Unavailable.
    """
    # 1.
    starts, ends = journal.start_positions(), journal.end_positions()
    damaged, waiting = dict[int, Corrupt](), dict[int, int]()
    for partition, start in sorted(starts.items()):
        position = -1
        try:
            position = store.position(partition)
            if not start <= position <= ends[partition]:
                raise records_not_kept(partition, position)
        except Corrupt as error:
            damaged[partition] = error
            # One whose record in the store is damaged has no position.
            told = {"position": position, "first_kept": start} if position >= 0 else {}
            _LOG.error("partition damaged", extra={"partition": partition, **told, "error": str(error)})
            continue
        if position < ends[partition]:
            waiting[partition] = position
    # 2.
    if overdue := journal.overdue(waiting, clock.now_ms()):
        _LOG.error("records wait for long", extra={"partitions": overdue})
    return damaged
