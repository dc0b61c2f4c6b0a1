"""Who gets a partition, and who gives one up: shares that differ by one at most, with as few moves as that takes."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping, Sequence


def share_out(free: Sequence[int], counts: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Deals free partitions out to shards that have so many already: each goes to who has fewest."""
    heap = [(count, name) for name, count in counts.items()]
    heapq.heapify(heap)
    dealt: dict[str, list[int]] = {}
    for number in free:
        count, name = heap[0]
        heapq.heapreplace(heap, (count + 1, name))
        dealt.setdefault(name, []).append(number)
    return {name: tuple(numbers) for name, numbers in dealt.items()}


def to_release(
    owned: Mapping[str, Sequence[int]], leaving: Collection[str], num_partitions: int, num_most: int
) -> dict[str, tuple[int, ...]]:
    """Returns which partitions shards are to let go, `num_most` at most: all of who leaves, and what is too much.

    The largest shares keep the one partition that does not divide, so that nothing moves for its sake.
    """
    surplus = {name: len(owned[name]) for name in leaving}
    staying = sorted((name for name in owned if name not in surplus), key=lambda name: (-len(owned[name]), name))
    if staying:
        share, rest = divmod(num_partitions, len(staying))
        for place, name in enumerate(staying):
            surplus[name] = len(owned[name]) - share - (place < rest)
    taken = dict.fromkeys(surplus, 0)
    for _ in range(max(0, num_most)):
        # From whoever has most too many: nobody stands still for long.
        name = max(surplus, key=lambda one: (surplus[one], one), default="")
        if not name or surplus[name] <= 0:
            break
        surplus[name] -= 1
        taken[name] += 1
    return {name: tuple(owned[name][-count:]) for name, count in taken.items() if count}
