"""How a shard's process opens its node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

from siltstone.adapters.bm25_recall import Bm25Recall
from siltstone.adapters.system_clock import SystemClock
from siltstone.config import SiltstoneConfig
from siltstone.config.reading import read_config
from siltstone_services.cluster.backends import Backends, open_backends
from siltstone_services.gently import gently
from siltstone_services.node import ShardNode
from siltstone_services.served import ServedCores


@asynccontextmanager
async def open_node(
    settings: Mapping[str, Any],
    opened: Callable[[SiltstoneConfig], AbstractContextManager[Backends]] = open_backends,
) -> AsyncIterator[ShardNode]:
    """Gives a node over the cluster's journal and store, and the cores of the home folder. It owns nothing yet.

    `settings` is a `SiltstoneConfig` as plain values.
    Raises: as `embedded_host`, and ConfigInvalid and Unavailable of the servers.
    """
    config = read_config(SiltstoneConfig, settings)
    if not config.engine.num_threads:
        # A shard has its share of a machine, not all of it.
        threads = max(1, int(config.cluster.cpus_per_shard))
        config = replace(config, engine=replace(config.engine, num_threads=threads))
    async with AsyncExitStack() as stack:
        served = stack.enter_context(ServedCores(config))
        core = await gently(lambda: served.load(served.digest()))
        backends = await asyncio.to_thread(stack.enter_context, opened(config))
        recall = Bm25Recall(config.text_recall)
        node = ShardNode(core, backends.journal, backends.store, recall, SystemClock(), config, served, gently)
        yield await stack.enter_async_context(node)
