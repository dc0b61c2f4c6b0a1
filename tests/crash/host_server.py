"""The server that `siltstone up` runs, over a store of choice, to be killed: `host_server.py HOME STORE`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tiny_home import open_host

from siltstone.adapters.sqlite_snapshots import SqliteSnapshotStore
from siltstone.config import SiltstoneConfig, load_config
from siltstone.faults import fault_point
from siltstone.ports import ShardHost
from siltstone.values import Commit
from siltstone_services.serve import serve
from siltstone_services.wiring import embedded_host

TORN_POINT = "torn.between"


class TornStore(SqliteSnapshotStore):
    """The commit without its protection: the position first, the memories after."""

    def commit(self, commit: Commit) -> None:
        super().commit(Commit(commit.lease, commit.expected_position, commit.next_position, (), commit.parked))
        fault_point(TORN_POINT)
        super().commit(Commit(commit.lease, commit.next_position, commit.next_position, commit.snapshots))


@asynccontextmanager
async def torn_host(config: SiltstoneConfig) -> AsyncIterator[ShardHost]:
    at_once = {"shard.max_round_interactions": config.shard.max_round_interactions}
    async with open_host(config.home_path, at_once, store_of=TornStore) as host:
        yield host


def main(home: Path, store: str) -> None:
    config = load_config(overrides={"home": str(home)})
    hosts = {"exact": embedded_host, "torn": torn_host}
    asyncio.run(serve(config, hosts[store], lambda address: print(address, flush=True)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
