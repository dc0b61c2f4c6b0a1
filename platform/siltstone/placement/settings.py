"""How a cluster is laid out, and how long it waits for its shards. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from siltstone.errors import ConfigInvalid

_MORE_THAN_0: Final = (
    "heartbeat_every_s",
    "stalled_after_s",
    "assign_budget_s",
    "release_budget_s",
    "leave_budget_s",
    "start_budget_s",
    "follow_budget_s",
    "silent_after_s",
)


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """How many shards there are, where Ray places them, and how long the coordinator waits for them."""

    is_on: bool = False
    """Whether the server is a cluster: shards on Ray, the journal on Kafka, memories in Redis. Otherwise everything is
    in one process, over the home folder."""
    num_shards: int = 2
    """Shards that are started; `siltstone cluster resize` changes how many there are while the server runs. Each is an
    actor of Ray with a whole core of its own."""
    cpus_per_shard: float = 1.0
    """Processor cores that Ray sets aside for a shard."""
    gpus_per_shard: float = 0.0
    """GPUs that Ray sets aside for a shard; with more than 0, set engine.device to "cuda"."""
    memory_bytes_per_shard: int = 0
    """Bytes of memory that Ray sets aside for a shard; 0 leaves it to chance."""
    strategy: Literal["PACK", "SPREAD", "STRICT_SPREAD"] = "SPREAD"
    """How Ray places the shards: on few machines, on many, or never two on one."""
    ray_address: str = "local"
    """Address of the Ray cluster; "local" starts one on this machine, "auto" joins the one this machine belongs to."""
    ray_namespace: str = "siltstone"
    """Ray's name for what belongs together: two servers on one Ray cluster need two."""
    max_restarts: int = -1
    """Times Ray starts a shard anew that has died; -1 for always."""
    heartbeat_every_s: float = 0.5
    """Seconds between two questions to a shard how it is. It answers between two steps of its work, not beside it."""
    stalled_after_s: float = 10.0
    """Seconds without an answer after which a shard's partitions are given to others: longer than any single step of
    its work may take."""
    assign_budget_s: float = 30.0
    """Seconds a shard may take to begin with partitions that it was given."""
    release_budget_s: float = 10.0
    """Seconds a shard may take to let partitions go, the round under way committed; then they are taken from it."""
    leave_budget_s: float = 60.0
    """Seconds that answers which run on a shard that leaves may still take, once its partitions are others'; then its
    process ends, and the next owner goes on with them."""
    start_budget_s: float = 600.0
    """Seconds that Ray may take to place a shard, and a shard to load its core."""
    max_moves: int = 32
    """Partitions on their way from one shard to another at a time: what is asked of them waits meanwhile."""
    follow_budget_s: float = 30.0
    """Seconds a request looks for the owner of its user, if the caller allows so many; then it is told as
    unavailable."""
    silent_after_s: float = 60.0
    """Seconds after which a partition is told of in which records wait and none is absorbed, though nothing is said to
    be wrong with it: longer than a round takes, and than redis.retry_budget_s."""
    max_batch_calls: int = 256
    """Calls that travel to a shard together, at most."""

    def __post_init__(self) -> None:
        for name in ("num_shards", "max_moves", "max_batch_calls"):
            if getattr(self, name) < 1:
                raise ConfigInvalid("cluster", f"{name}: expected at least 1, found {getattr(self, name)}")
        for name in ("cpus_per_shard", "gpus_per_shard", "memory_bytes_per_shard"):
            if getattr(self, name) < 0:
                raise ConfigInvalid("cluster", f"{name}: expected 0 or more, found {getattr(self, name)}")
        for name in _MORE_THAN_0:
            if not getattr(self, name) > 0:
                raise ConfigInvalid("cluster", f"{name}: expected more than 0, found {getattr(self, name)}")
        if self.max_restarts < -1:
            raise ConfigInvalid("cluster", f"max_restarts: expected -1 or more, found {self.max_restarts}")
        if not self.cpus_per_shard and not self.gpus_per_shard:
            raise ConfigInvalid("cluster", "cpus_per_shard, gpus_per_shard: expected one of them to be more than 0")
        if self.stalled_after_s < 2 * self.heartbeat_every_s:
            expected = f"expected at least twice heartbeat_every_s, found {self.stalled_after_s}"
            raise ConfigInvalid("cluster", f"stalled_after_s: {expected}")
        if not self.ray_address or not self.ray_namespace:
            raise ConfigInvalid("cluster", "ray_address, ray_namespace: expected something, found nothing")
