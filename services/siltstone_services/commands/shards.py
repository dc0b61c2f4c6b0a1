"""Shows the shards of a server, and changes how many there are."""

from __future__ import annotations

from collections.abc import Sequence

from siltstone.values import PartitionView, ShardView
from siltstone_services.cli.options import Format, Reach
from siltstone_services.commands.connection import ask
from siltstone_services.commands.screen import counted, err, out, print_json, size_text, table


def show(reach: Reach, has_partitions: bool, form: Format) -> None:
    """Prints a line for every shard; with `has_partitions` also one for every partition. JSON has all of it."""
    shards: tuple[ShardView, ...] = ask(reach, lambda client: client.shards())
    if form is Format.JSON:
        print_json(shards)
        return
    _print(shards)
    if has_partitions:
        out().print(_partitions(shards))


def resize(reach: Reach, num_shards: int, form: Format) -> None:
    """Prints the shards once there are so many."""
    err().print(f"asking for {counted(num_shards, 'shard')} ...")
    (print_json if form is Format.JSON else _print)(ask(reach, lambda client: client.cluster.resize(num_shards)))


def _print(shards: Sequence[ShardView]) -> None:
    rates = ("#absorbed/s", "#tokens/s")
    told = table("shard", "state", "#partitions", "#epochs", "#lag", "#users", "#held", *rates, "#parked")
    for shard in shards:
        places = shard.partitions
        told.add_row(
            shard.name,
            shard.state + (" (damage)" if any(place.is_damaged for place in places) else ""),
            f"{len(places):,}",
            _epochs(places),
            f"{sum(place.lag_interactions for place in places):,}",
            f"{shard.num_users_resident:,}",
            size_text(shard.resident_bytes),
            _rate(shard.absorbed_per_s),
            _rate(shard.answered_tokens_per_s),
            f"{shard.num_parked:,}",
        )
    console = out()
    console.print(told)
    num_owned = sum(len(shard.partitions) for shard in shards)
    console.print(f"{counted(len(shards), 'shard')}, {counted(num_owned, 'partition')} owned")


def _partitions(shards: Sequence[ShardView]) -> object:
    told = table("#partition", "shard", "#epoch", "#position", "#lag", "")
    rows = [(place, shard.name) for shard in shards for place in shard.partitions]
    for place, name in sorted(rows, key=lambda row: row[0].partition):
        numbers = (f"{place.epoch:,}", f"{place.position:,}", f"{place.lag_interactions:,}")
        told.add_row(str(place.partition), name, *numbers, "damaged" if place.is_damaged else "")
    return told


def _epochs(places: Sequence[PartitionView]) -> str:
    epochs = [place.epoch for place in places]
    if not epochs:
        return "-"
    return str(min(epochs)) if min(epochs) == max(epochs) else f"{min(epochs)} to {max(epochs)}"


def _rate(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:,.1f}"
