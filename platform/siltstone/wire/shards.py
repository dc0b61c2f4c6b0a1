"""What an operator may see of shards, on the wire."""

from __future__ import annotations

from siltstone.proto.v1 import inference_service_pb2 as pb
from siltstone.values import PartitionView, ShardView


def shard_to_proto(shard: ShardView) -> pb.Shard:
    """Writes what may be seen of a shard."""
    return pb.Shard(
        name=shard.name,
        state=shard.state,
        partitions=map(_place_to_proto, shard.partitions),
        num_users_resident=shard.num_users_resident,
        resident_bytes=shard.resident_bytes,
        absorbed_per_s=shard.absorbed_per_s,
        answered_tokens_per_s=shard.answered_tokens_per_s,
        num_parked=shard.num_parked,
    )


def shard_from_proto(shard: pb.Shard) -> ShardView:
    """Reads what may be seen of a shard."""
    return ShardView(
        shard.name,
        shard.state,
        tuple(map(_place_from_proto, shard.partitions)),
        shard.num_users_resident,
        shard.resident_bytes,
        shard.absorbed_per_s if shard.HasField("absorbed_per_s") else None,
        shard.answered_tokens_per_s if shard.HasField("answered_tokens_per_s") else None,
        shard.num_parked,
    )


def _place_to_proto(place: PartitionView) -> pb.PartitionPlace:
    return pb.PartitionPlace(
        partition=place.partition,
        epoch=place.epoch,
        position=place.position,
        lag_interactions=place.lag_interactions,
        is_damaged=place.is_damaged,
    )


def _place_from_proto(place: pb.PartitionPlace) -> PartitionView:
    return PartitionView(place.partition, place.epoch, place.position, place.lag_interactions, place.is_damaged)
