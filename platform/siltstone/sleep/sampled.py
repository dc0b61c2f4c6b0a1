"""Sampled dreams: what a memory is asked in its sleep, and which of the texts it gives are looked at further."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from siltstone.errors import ConfigInvalid
from siltstone.sleep.filter import DropReason, Statement
from siltstone.sleep.words import COMMON_WORDS, words_in
from siltstone.values import UserKey


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """How text is sampled from the users' memories."""

    num_per_user: int = 2
    """Dreams sampled from each user's memory; 0 samples none."""
    temperature: float = 0.7
    """Temperature of the sampling; 0 takes the likeliest token."""
    max_tokens: int = 32
    """Tokens of one sampled dream; what does not end within them is cut."""
    combined_share: float = 0.5
    """Share of a user's cues that ask for two things the user knows at once."""
    max_s: float = 120.0
    """Seconds for all of them; then they are cut where they are, and the night is not the same when run again."""
    min_words: int = 3
    """Words of a sampled dream, at least."""
    max_repeated_share: float = 0.5
    """Share of a dream's pairs of neighbouring words that may be repeats of earlier ones."""

    def __post_init__(self) -> None:
        if self.num_per_user < 0 or min(self.max_tokens, self.min_words) < 1:
            raise ConfigInvalid("sleep.sampling", "expected num_per_user >= 0, max_tokens and min_words >= 1")
        if not 0 <= self.temperature <= 10:
            raise ConfigInvalid("sleep.sampling", f"temperature: expected 0 to 10, found {self.temperature}")
        if not (0 <= self.combined_share <= 1 and 0 <= self.max_repeated_share <= 1 and self.max_s > 0):
            raise ConfigInvalid("sleep.sampling", "expected combined_share and max_repeated_share of 0 to 1, max_s > 0")


@dataclass(frozen=True, slots=True)
class Cue:
    """What one user's memory is asked. `seed` is that of the random numbers of its answer."""

    owner: UserKey
    person: str
    text: str
    seed: int


def cues_of(
    statements: Sequence[Statement], config: SamplingConfig, seed: str, cue: Callable[[str, str], str]
) -> list[Cue]:
    """Returns what every user's memory is asked: cues of the user's own statements, and of two of them together.

    `cue` turns a statement and a seed into a question. Nothing in a cue is another user's.
    """
    by_owner: dict[UserKey, list[Statement]] = {}
    for one in statements:
        by_owner.setdefault(one.owner, []).append(one)
    cues = []
    for owner, own in sorted(by_owner.items()):
        chance = random.Random(f"{seed}/{owner}/cues")
        num_combined = round(config.num_per_user * config.combined_share) if len(own) > 1 else 0
        for number in range(config.num_per_user):
            asked = chance.sample(own, 2 if number < num_combined else 1)
            text = " ".join(cue(one.text, f"{seed}/{owner}/{number}/{at}") for at, one in enumerate(asked))
            cues.append(Cue(owner, own[0].person, text, chance.getrandbits(62)))
    return cues


def fault_of(text: str, is_personal: Callable[[str], bool], config: SamplingConfig) -> DropReason | None:
    """Returns why a sampled text is no dream, or None."""
    words = words_in(text)
    if not any(word not in COMMON_WORDS for word in words):
        return DropReason.EMPTY
    if len(words) < config.min_words:
        return DropReason.TOO_SHORT
    if _repeated_share(words) > config.max_repeated_share:
        return DropReason.REPETITIVE
    return DropReason.PERSONAL_DATA if is_personal(text) else None


def _repeated_share(words: Sequence[str]) -> float:
    pairs = Counter(pairwise(words))
    return 1 - len(pairs) / pairs.total() if pairs else 0.0
