"""A cluster's server that sends a part of a stream to itself: `ray_server.py HOME FIRST:END SEED before|after|torn`."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from effects import send, stream_of
from halting_actor import ACTORS
from tiny_home import tiny_config

from siltstone_services.cluster.ray_shards import RayShards
from siltstone_services.wiring import cluster_host

NUM_SENT, NUM_USERS = 300, 20


async def main(home: Path, first: int, end: int, seed: int) -> None:
    settings = json.loads((home / "settings.json").read_text())
    async with cluster_host(tiny_config(home, settings)) as host:
        print("begun", flush=True)
        # Whoever is not sure sends all of it again: what is known is not taken in twice.
        await send(host, stream_of(NUM_SENT, NUM_USERS, seed)[first:end])
    print("through", flush=True)


if __name__ == "__main__":
    RayShards.actor_class = ACTORS[sys.argv[4]]
    first, end = map(int, sys.argv[2].split(":"))
    asyncio.run(main(Path(sys.argv[1]), first, end, int(sys.argv[3])))
