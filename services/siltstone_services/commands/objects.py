"""Removes from the object store what no memory's record points to."""

from __future__ import annotations

import time

from siltstone.errors import ConfigInvalid
from siltstone_services.cli.options import Settings
from siltstone_services.commands.configuration import load
from siltstone_services.commands.screen import err, out


def sweep(settings: Settings) -> None:
    """Looks, waits, looks again and removes, and says how much that was."""
    config = load(settings)
    if not config.cluster.is_on or not config.objects.is_on:
        raise ConfigInvalid("objects", "url: expected a cluster with an object store, found none named")
    try:
        # Not among what every installation has: an extra brings it.
        from siltstone.adapters.object_store import open_objects
        from siltstone.adapters.redis_snapshots import RedisSnapshotStore
    except ModuleNotFoundError as error:
        raise ConfigInvalid("cluster", f"expected the extra siltstone[cluster]: {error.name} is missing") from error
    with (
        RedisSnapshotStore(config.redis, objects=open_objects(config.objects)) as store,
        err().status("looking ...") as status,
    ):
        found = store.sweep()
        for partition in found.look():
            status.update(f"looking ... partition {partition}, {found.num_objects:,} objects")
        if found.num_suspects:
            # A line of its own, which is seen in a file too.
            told = f"waiting for {found.wait_s:,.0f} s: {found.num_suspects:,} objects may be on their way ..."
            status.console.print(told, soft_wrap=True)
            time.sleep(found.wait_s)
        for partition in found.remove():
            status.update(f"removing ... partition {partition}, {found.num_removed:,} removed")
    told = f"{found.num_objects:,} objects looked at, {found.num_removed:,} removed"
    if found.num_unsure:
        told += f"; {found.num_unsure:,} left of users whose record is missing or damaged"
    out().print(told, soft_wrap=True)
