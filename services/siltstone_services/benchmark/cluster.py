"""The cases of `siltstone bench cluster`: gateway, journal, absorbing, a resize, the store by how many it holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from siltstone_services.benchmark.absorption import run_absorb_share, run_overload
from siltstone_services.benchmark.gateway_load import run_gateway
from siltstone_services.benchmark.ingest import run_ingest
from siltstone_services.benchmark.readings import Outcome, Say
from siltstone_services.benchmark.resizing import run_resize
from siltstone_services.benchmark.stored_redis import run_stored_redis
from siltstone_services.benchmark.wake import SMALL_MEMORY
from siltstone_services.benchmark.world import COMMON, SMOLLM2, Shape, World

_CALLERS: Final = 32


def cluster_cases(quick: bool, folder: Path, brokers: str, redis: str, say: Say) -> Iterator[Outcome]:
    """Runs the cases one after the other, files in a folder, against the servers whose addresses are given."""
    yield run_gateway(_CALLERS, 320 if quick else 3_200, 2 if quick else 9, say)
    yield from run_ingest(brokers, 200, 512, 3 if quick else 15, folder, say)
    places = [("", ""), *([(brokers, redis)] if brokers and redis else [])]
    small = World(Shape("small", COMMON.core, SMALL_MEMORY))
    for place in places:
        yield run_overload(3.0 if quick else 20.0, *place, folder, say)
        yield run_absorb_share(small, 16, 3 if quick else 9, *place, folder, say)
    if not quick:
        default = World(SMOLLM2)
        for place in places:
            yield run_absorb_share(default, 8, 5, *place, folder, say)
        del default
    if len(places) == 1:
        yield Outcome("overload, absorb: Kafka and Redis", absence="they were not both given")
    yield run_resize(brokers, redis, 8.0 if quick else 60.0, 1 if quick else 10, folder, say)
    yield run_stored_redis(redis, (100, 1_000) if quick else (1_000, 30_000, 1_000_000), 4 if quick else 60, say)
