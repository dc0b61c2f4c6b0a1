"""The cases of `siltstone bench cluster`: gateway, journal, the store by how many users it holds, and a resize."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from siltstone_services.benchmark.gateway_load import run_gateway
from siltstone_services.benchmark.ingest import run_ingest
from siltstone_services.benchmark.readings import Outcome, Say
from siltstone_services.benchmark.resizing import run_resize
from siltstone_services.benchmark.stored_redis import run_stored_redis

_CALLERS: Final = 32


def cluster_cases(quick: bool, folder: Path, brokers: str, redis: str, say: Say) -> Iterator[Outcome]:
    """Runs the cases one after the other, files in a folder, against the servers whose addresses are given."""
    yield run_gateway(_CALLERS, 320 if quick else 3_200, 2 if quick else 9, say)
    yield from run_ingest(brokers, 200, 512, 3 if quick else 15, folder, say)
    yield run_resize(brokers, redis, 8.0 if quick else 60.0, 1 if quick else 10, folder, say)
    yield run_stored_redis(redis, (100, 1_000) if quick else (1_000, 30_000, 1_000_000), 4 if quick else 60, say)
