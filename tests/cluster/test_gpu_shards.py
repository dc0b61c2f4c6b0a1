"""Shards on GPUs, as far as Ray's own book goes: on a machine that is said to have some."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray
from ray.util.placement_group import placement_group_table
from tiny_home import tiny_config

from siltstone.errors import Unavailable
from siltstone_services.cluster.ray_shards import RayShards

pytestmark = pytest.mark.slow

NUM_GPUS = 3


@pytest.fixture(scope="module")
def machine() -> object:
    """Ray believes what it is told: no GPU is used, since no shard opens its core here."""
    ray.init(num_cpus=4, num_gpus=NUM_GPUS, include_dashboard=False, logging_level="ERROR", namespace="gpus")
    yield
    ray.shutdown()


async def gpus_of(shards: RayShards, name: str) -> list[int]:
    asked = shards.link(name).actor.__ray_call__.remote(lambda _: ray.get_gpu_ids())
    return list(await asked)


@pytest.mark.usefixtures("machine")
async def test_every_shard_has_a_gpu_of_its_own_also_one_that_comes_later(tmp_path: Path) -> None:
    settings = {"cluster.gpus_per_shard": 1.0, "cluster.cpus_per_shard": 0.5, "cluster.start_budget_s": 60.0}
    shards = RayShards(tiny_config(tmp_path, settings))
    try:
        await shards.begin("shard-2")
        names = ("shard-0", "shard-1", "shard-2")
        assert tuple(shards.names) == names
        found = [await gpus_of(shards, name) for name in names]
        assert sorted(found) == [[number] for number in range(NUM_GPUS)]
        for place in shards._places.values():
            bundles = placement_group_table(place.group)["bundles"]
            assert bundles[place.bundle] == {"CPU": 0.5, "GPU": 1.0}
        assert ray.available_resources().get("GPU", 0.0) == 0.0
    finally:
        for name in tuple(shards.names):
            ray.kill(shards.link(name).actor, no_restart=True)


@pytest.mark.usefixtures("machine")
async def test_more_gpus_than_there_are_is_told_with_what_was_wanted(tmp_path: Path) -> None:
    settings = {"cluster.gpus_per_shard": 2.0, "cluster.cpus_per_shard": 0.5, "cluster.start_budget_s": 2.0}
    with pytest.raises(Unavailable, match=r"no room for 2 shards of \{'CPU': 0\.5, 'GPU': 2\.0\}"):
        RayShards(tiny_config(tmp_path, settings))
