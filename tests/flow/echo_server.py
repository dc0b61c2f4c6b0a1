"""A server process over an echo host, as `siltstone up` runs one. Arguments: home folder, seconds a word takes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from echo_host import EchoHost

from siltstone.config import SiltstoneConfig, load_config
from siltstone.ports import ShardHost
from siltstone_services.home import exclusive
from siltstone_services.serve import serve


def main() -> None:
    home, pause_s = sys.argv[1], float(sys.argv[2])

    @asynccontextmanager
    async def open_host(config: SiltstoneConfig) -> AsyncIterator[ShardHost]:
        with exclusive(config.home_path):
            yield EchoHost(pause_s=pause_s)

    overrides = {"home": home, "gateway.port": 0, "gateway.drain_budget_s": 20.0}
    asyncio.run(serve(load_config(None, overrides, {}), open_host, lambda address: print(address, flush=True)))
    print("stopped", flush=True)


if __name__ == "__main__":
    main()
