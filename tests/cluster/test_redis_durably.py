"""What is erased is on a disk before that is said, also of a cluster; and a store without a ceiling is told of."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
import servers

from siltstone.adapters.redis_config import RedisConfig
from siltstone.adapters.redis_snapshots import RedisSnapshotStore
from siltstone.adapters.unsealed import Unsealed
from siltstone.errors import Unavailable
from siltstone.journal.partition import partition_of
from siltstone.values import Commit, Snapshot, UserKey

NUM_PARTITIONS = 16
OWNERS = [UserKey("office", f"user{number}") for number in range(12)]


def config_of(port: int, *, is_cluster: bool = False, must_append: bool = True) -> RedisConfig:
    return RedisConfig(
        f"redis://127.0.0.1:{port}",
        is_cluster=is_cluster,
        must_append=must_append,
        num_partitions=NUM_PARTITIONS,
        answer_timeout_s=2.0,
    )


def store_of(config: RedisConfig) -> RedisSnapshotStore:
    return RedisSnapshotStore(config, Unsealed())


@dataclass
class Node:
    """One server, as a test looks at it."""

    client: redis.Redis

    @property
    def num_waits(self) -> int:
        told = self.client.info("commandstats").get("cmdstat_waitaof", {})
        return int(told.get("calls", 0))

    def flushes(self, when: str) -> None:
        self.client.config_set("appendfsync", when)

    def holds(self, owner: UserKey) -> bool:
        """Says whether the slot of a user's partition is this server's."""
        slot = self.client.execute_command("CLUSTER", "KEYSLOT", f"{{siltstone:{partition_of(owner, NUM_PARTITIONS)}}}")
        mine = self.client.execute_command("CLUSTER", "MYID")
        shards = self.client.execute_command("CLUSTER", "SLOTS")
        return any(first <= slot <= last and node[2] == mine for first, last, node, *_ in map(tuple, shards))


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[tuple[Sequence[servers.Server], Sequence[Node]]]:
    with servers.valkey_cluster(tmp_path / "cluster") as started:
        yield started, [Node(redis.Redis(port=one.port)) for one in started]


def owner_on(node: Node) -> UserKey:
    return next(owner for owner in OWNERS if node.holds(owner))


def teach(store: RedisSnapshotStore, owner: UserKey) -> None:
    partition = partition_of(owner, NUM_PARTITIONS)
    lease, at = store.acquire(partition, "shard"), store.position(partition)
    store.commit(Commit(lease, at, at + 1, (Snapshot.seal(owner, "core-1", 1, b"memory"),)))


def forget(store: RedisSnapshotStore, owner: UserKey) -> bool:
    return store.erase(owner, store.acquire(partition_of(owner, NUM_PARTITIONS), "shard"))


def test_of_a_cluster_the_node_that_has_the_user_is_waited_for_and_no_other(
    nodes: tuple[Sequence[servers.Server], Sequence[Node]],
) -> None:
    started, looked_at = nodes
    with store_of(config_of(started[0].port, is_cluster=True)) as store:
        for node in looked_at:
            owner, before = owner_on(node), [one.num_waits for one in looked_at]
            teach(store, owner)
            # The others flush nothing: whoever asked one of them would wait in vain.
            for other in looked_at:
                other.flushes("always" if other is node else "no")
            assert forget(store, owner)
            assert store.load(owner) is None
            waits = [one.num_waits - count for one, count in zip(looked_at, before, strict=True)]
            assert waits == [int(one is node) for one in looked_at]


def test_of_a_cluster_what_is_not_flushed_is_not_said_to_be_erased(
    nodes: tuple[Sequence[servers.Server], Sequence[Node]],
) -> None:
    started, looked_at = nodes
    owner = owner_on(looked_at[1])
    with store_of(config_of(started[0].port, is_cluster=True)) as store:
        teach(store, owner)
        looked_at[1].flushes("no")
        with pytest.raises(Unavailable, match="not off its disk yet"):
            forget(store, owner)
        looked_at[1].flushes("always")
        # Said again, it is done: that it was erased the first time shows in the answer only.
        forget(store, owner)
    # Without the demand nobody waits, and nobody is told either.
    with store_of(config_of(started[0].port, is_cluster=True, must_append=False)) as store:
        teach(store, owner)
        looked_at[1].flushes("no")
        assert forget(store, owner)


@pytest.mark.parametrize(("options", "is_told"), [((), True), (("--maxmemory", "100mb"), False)])
def test_a_server_without_a_memory_ceiling_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, options: Sequence[str], is_told: bool
) -> None:
    caplog.set_level(logging.WARNING)
    with servers.valkey(tmp_path, *options) as server, store_of(config_of(server.port)):
        pass
    told = [vars(record) for record in caplog.records if record.message == "the store has no memory ceiling"]
    assert [(one["namespace"], one["num_servers"]) for one in told] == [("siltstone", 1)] * is_told


def test_the_servers_of_a_cluster_without_a_ceiling_are_counted(
    nodes: tuple[Sequence[servers.Server], Sequence[Node]], caplog: pytest.LogCaptureFixture
) -> None:
    started, looked_at = nodes
    looked_at[0].client.config_set("maxmemory", "100mb")
    with store_of(config_of(started[0].port, is_cluster=True)):
        pass
    told = [vars(record) for record in caplog.records if record.message == "the store has no memory ceiling"]
    assert [one["num_servers"] for one in told] == [2]
