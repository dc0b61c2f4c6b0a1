"""A process that counts to six in a user's memory, one commit each, from wherever the store is."""

from __future__ import annotations

import sys

from siltstone.adapters.object_config import ObjectConfig
from siltstone.adapters.object_store import open_objects
from siltstone.adapters.redis_config import RedisConfig
from siltstone.adapters.redis_snapshots import RedisSnapshotStore
from siltstone.journal.partition import partition_of
from siltstone.values import Commit, Snapshot, TakenIn, UserKey

END = 6


def main(address: str, objects_url: str = "") -> None:
    users = (UserKey("office", f"user{number}") for number in range(100))
    owner = next(user for user in users if partition_of(user, 2) == 0)
    objects = ObjectConfig(objects_url, min_bytes=1, keep_replaced_s=0)
    with RedisSnapshotStore(RedisConfig(address, num_partitions=2), objects=open_objects(objects)) as store:
        lease = store.acquire(0, "counter")
        for position in range(store.position(0), END):
            before = store.load(owner)
            counted = 1 + (0 if before is None else int(before.blob))
            snapshot = Snapshot.seal(owner, "core-1", counted, str(counted).encode())
            taken_in = (TakenIn(position, owner, f"i{position}"),)
            store.commit(Commit(lease, position, position + 1, (snapshot,), taken_in=taken_in))


if __name__ == "__main__":
    main(*sys.argv[1:])
