"""Which dreams are worth training on."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence

from siltstone.sleep.consensus import Raised


def worth(raised: Sequence[Raised], core_logp: Sequence[float]) -> float:
    """Returns what a dream would teach the core: the sum over its raised tokens of a log(a / core), nats.

    It is the part of KL(q || core) that the expert has to learn, so the size of the first step's gradient goes with it.
    """
    return math.fsum(one.probability * (math.log(one.probability) - core_logp[one.at]) for one in raised)


def choose(worths: Sequence[float], people: Sequence[str], most: int, random_share: float, seed: int) -> list[int]:
    """Returns the indexes of the dreams kept: the best, and some at random of the others, of those worth anything.

    Nobody has more than twice an equal share of the best while others have dreams left: one person's many dreams of one
    thing must not keep out what several others agree on.
    """
    order = sorted((index for index, value in enumerate(worths) if value > 0), key=lambda i: (-worths[i], i))
    if len(order) <= most:
        return sorted(order)
    num_random = round(most * random_share)
    fair = math.ceil(2 * (most - num_random) / len({people[index] for index in order}))
    taken: Counter[str] = Counter()
    within: list[int] = []
    beyond: list[int] = []
    for index in order:
        taken[people[index]] += 1
        (within if taken[people[index]] <= fair else beyond).append(index)
    order = within + beyond
    best, others = order[: most - num_random], order[most - num_random :]
    return sorted([*best, *random.Random(f"{seed}/dreams").sample(others, num_random)])
