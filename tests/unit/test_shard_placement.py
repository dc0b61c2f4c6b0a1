"""What Ray is asked for when a shard is placed: the room in a group, and what the actor takes of it."""

from __future__ import annotations

from typing import Any

import pytest

from siltstone.placement.settings import ClusterConfig
from siltstone_services.cluster.ray_shards import actor_options, bundle_of

GIB = 1 << 30


@pytest.mark.parametrize(
    ("cluster", "bundle"),
    [
        (ClusterConfig(gpus_per_shard=1.0), {"CPU": 1.0, "GPU": 1.0}),
        (ClusterConfig(gpus_per_shard=0.5, cpus_per_shard=2.0), {"CPU": 2.0, "GPU": 0.5}),
        (ClusterConfig(gpus_per_shard=1.0, cpus_per_shard=0.0), {"GPU": 1.0}),
        (
            ClusterConfig(gpus_per_shard=2.0, memory_bytes_per_shard=8 * GIB),
            {"CPU": 1.0, "GPU": 2.0, "memory": 8 * GIB},
        ),
        (ClusterConfig(), {"CPU": 1.0}),
    ],
    ids=["a GPU", "half of one", "nothing but a GPU", "memory too", "no GPU"],
)
def test_a_shards_room_is_what_is_configured_and_the_actor_takes_all_of_it(
    cluster: ClusterConfig, bundle: dict[str, Any]
) -> None:
    assert bundle_of(cluster) == bundle
    options = actor_options(cluster)
    taken = {"CPU": options["num_cpus"], "GPU": options["num_gpus"], "memory": options.get("memory", 0)}
    assert {name: amount for name, amount in taken.items() if amount} == bundle


def test_an_actor_without_a_gpu_says_that_it_wants_none() -> None:
    # Left out, Ray would choose: what it takes for that is its own affair.
    assert actor_options(ClusterConfig())["num_gpus"] == 0.0
    assert "memory" not in actor_options(ClusterConfig())


def test_a_shard_is_started_anew_as_often_as_is_configured() -> None:
    assert actor_options(ClusterConfig())["max_restarts"] == -1
    assert actor_options(ClusterConfig(max_restarts=3))["max_restarts"] == 3
