"""Consensus targets: what enough people have said and enough memories hold; the core itself everywhere else.

Shapes: U memories, N tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from siltstone.errors import ConfigInvalid, InvalidInput

_LEAST: Final = 1e-12
_MOST: Final = 0.98
"""Most that a target may be: a model that is made certain of one token forgets all others."""


@dataclass(frozen=True, slots=True)
class ConsensusConfig:
    """When a memory is evidence for a token, and how many it takes."""

    k_min: int = 3
    """People who must have said a word, and whose memories must hold it where it is dreamt."""
    max_readers: int = 6
    """People whose memories read a dream, at most: first those who have said its rarest words. With how many users
    there are, what a dream costs does not grow."""
    evidence_nats: float = 1.0
    """How much likelier a memory must find a token than the core does."""
    independence: float = 1.0
    """How far what people hold counts as each one's own evidence: at 1 what they raise the odds by adds up."""

    def __post_init__(self) -> None:
        if self.k_min < 2:
            raise ConfigInvalid("sleep.consensus", f"k_min: expected at least 2, found {self.k_min}")
        if self.max_readers < self.k_min:
            raise ConfigInvalid("sleep.consensus", f"max_readers: expected at least k_min, found {self.max_readers}")
        if not 0 <= self.independence <= 1:
            raise ConfigInvalid("sleep.consensus", f"independence: expected 0 to 1, found {self.independence}")
        if not 0 < self.evidence_nats < math.inf:
            raise ConfigInvalid("sleep.consensus", f"evidence_nats: expected above 0, found {self.evidence_nats}")


@dataclass(frozen=True, slots=True)
class Raised:
    """A token of a dream that the core is to find likelier: to this probability, on this many people's evidence."""

    at: int
    probability: float
    support: int


def consensus(
    core_logp_N: Sequence[float],
    memory_logp_UN: Sequence[Sequence[float]],
    people_U: Sequence[str],
    supporters_N: Sequence[frozenset[str]],
    config: ConsensusConfig,
) -> list[Raised]:
    """Returns the tokens of a dream whose target is not the core's own distribution.

        e_u(n) = 1[ u has said the word of token n, and log T_u(y_n) - log core(y_n) >= evidence ]
        mean = average of T_u(y_n) over e_u = 1
        pool: logit = logit core(y_n) + independence * sum of (logit T_u(y_n) - logit core(y_n)) over e_u = 1
        a(n) = max(mean, pool)    where those with e_u = 1 are at least k_min people, and a > core(y_n)
        q(y_n) = a(n);  q(z) = core(z) (1 - a(n)) / (1 - core(y_n)) for every other z
    Nothing else of the core's distribution changes, and nothing at all where fewer than `k_min` people are behind it:
    two accounts of one person are one person.
    Source: reference algorithms, section 10.4. Differs: evidence is asked of the journal and of the weights, and
    agreement is that on the token itself (decisions/0008). Pooling: the rule of Bayes for experts whose evidence is
    their own (Morris, "Combining expert judgments: a Bayesian approach", 1977): each has learned it from what they
    themselves have said, so several people who each half know a thing know more of it together than any of them.
    Shapes: `memory_logp_UN` and `people_U` of the memories that were asked; `supporters_N` from `words.supporters`.
    """
    if len(memory_logp_UN) != len(people_U) or any(len(row) != len(core_logp_N) for row in memory_logp_UN):
        raise InvalidInput("memory_logp_UN", f"{len(people_U)} rows of {len(core_logp_N)}", "others")
    raised = []
    for at, (core_logp, allowed) in enumerate(zip(core_logp_N, supporters_N, strict=True)):
        if len(allowed) < config.k_min:
            continue
        held: dict[str, float] = {}
        for person, row in zip(people_U, memory_logp_UN, strict=True):
            if person in allowed and row[at] - core_logp >= config.evidence_nats:
                held[person] = max(held.get(person, 0.0), math.exp(row[at]))
        if len(held) >= config.k_min:
            probability = pooled(math.exp(core_logp), list(held.values()), config.independence)
            if probability > math.exp(core_logp):
                raised.append(Raised(at, probability, len(held)))
    return raised


def pooled(core: float, held: Sequence[float], independence: float) -> float:
    """Returns what people who agree on a token hold of it together; below one, so that it can be learned."""
    mean = math.fsum(held) / len(held)
    raised_nats = math.fsum(_logit(one) - _logit(core) for one in held)
    pool = 1 / (1 + math.exp(-(_logit(core) + independence * raised_nats)))
    return min(max(mean, pool), _MOST)


def _logit(probability: float) -> float:
    bounded = min(max(probability, _LEAST), _MOST)
    return math.log(bounded) - math.log1p(-bounded)
