"""How much of a trained expert a core is given: as much as neutral text allows that the expert was not trained on.

Training goes further than it should: the last steps move text that nobody taught more than what was. Made smaller, an
expert loses little of what it teaches, since that stands out by nats, and much of what it upsets, since that grows with
its square.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Final

import torch

from siltstone.crew import Crew
from siltstone.errors import InvalidInput
from siltstone.sleep.distil import Item, Student, reading_order

_NARROWER: Final = 0.9
_LEAST: Final = 0.05
"""Below this share an expert is nothing: whatever moved text so far is no matter of its size."""


def split_anchors(items: Sequence[Item], every: int) -> tuple[list[Item], list[Item]]:
    """Returns what is trained on, and the anchors that are kept back: of prose and of exchanges each the `every`-th."""
    trained: list[Item] = []
    kept_back: list[Item] = []
    counts = {True: 0, False: 0}
    for item in items:
        kind = item.lesson.after_prefix
        is_neutral = not item.owner and not item.secrets
        counts[kind] += is_neutral
        (kept_back if is_neutral and counts[kind] % every == 0 else trained).append(item)
    return trained, kept_back


def fit(student: Student, items: Sequence[Item], most_nats: float, crew: Crew) -> float:
    """Makes a student's expert smaller until KL(core || student), on average over the items' tokens, is in bounds.

        KL(share x expert) ~ share^2 KL(expert): the first guess; then less and less, by a tenth, until it holds
    Returns the share of it that is left, 1 where it was small enough, 0 where none is.
    Shapes: items as in `distil`, none with raised tokens. Units: nats a token.
    Raises: InvalidInput when a bound is not above zero, or nothing is there to measure.
    """
    if not most_nats > 0:
        raise InvalidInput("most_nats", "above 0", f"{most_nats}")
    if not any(item.places for item in items):
        raise InvalidInput("items", "something to measure", "nothing")
    student.prepare(items, crew)
    share, found = 1.0, mean_kl(student, items, crew)
    while found > most_nats:
        narrower = min(_NARROWER, math.sqrt(most_nats / found))
        share *= narrower
        if share < _LEAST:
            break
        with torch.no_grad():
            for write in student.expert.parameters():
                write.mul_(narrower)
        found = mean_kl(student, items, crew)
    if found <= most_nats:
        return share
    # No share of it does, or it is no number.
    with torch.no_grad():
        for write in student.expert.parameters():
            write.zero_()
    return 0.0


def mean_kl(student: Student, items: Sequence[Item], crew: Crew) -> float:
    """Returns how far a prepared student is from its core on the items, nats a token."""
    parts = reading_order(items)
    with torch.no_grad():
        found = crew.run([partial(_kl, student, part) for part in parts])
    nums = [sum(len(items[index].places) for index in part) for part in parts]
    return math.fsum(nats * num for nats, num in zip(found, nums, strict=True)) / sum(nums)


def _kl(student: Student, part: Sequence[int]) -> float:
    with torch.no_grad():
        return float(student(part))
