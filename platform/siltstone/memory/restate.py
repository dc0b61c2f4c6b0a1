"""What a user said of themselves, as one would say it back to them.

A memory is asked in other words than it was told: "I was born in Lisbon" is asked for with "Where was I born?" and
answered with "You were born in Lisbon". So each thing a user says is also rehearsed as an answer, to a cue made of some
of its own words. No question is written, no fact is picked out: the same rules turn every sentence round.
"""

from __future__ import annotations

import random
import re
from typing import Final

_TURNS: Final[tuple[tuple[str, str], ...]] = (
    ("i am", "you are"),
    ("i'm", "you're"),
    ("am i", "are you"),
    ("i was", "you were"),
    ("was i", "were you"),
    ("i've", "you've"),
    ("i'd", "you'd"),
    ("i'll", "you'll"),
    ("we are", "you are"),
    ("we're", "you're"),
    ("we were", "you were"),
    ("we've", "you've"),
    ("myself", "yourself"),
    ("ourselves", "yourselves"),
    ("mine", "yours"),
    ("ours", "yours"),
    ("my", "your"),
    ("our", "your"),
    ("me", "you"),
    ("us", "you"),
    ("we", "you"),
    ("i", "you"),
)
_TABLE: Final = dict(_TURNS)
_PATTERN: Final = re.compile(
    r"(?<![\w'])(" + "|".join(re.escape(told) for told, _ in _TURNS) + r")(?![\w'])", re.IGNORECASE
)
_SENTENCE: Final = re.compile(r"[^.!?\n]+[.!?]*")
_WORD: Final = re.compile("[\\w'\u2019-]+")


def sentences(text: str) -> list[str]:
    """Returns the statements of a text, in order; questions and scraps of fewer than three words are left out."""
    found = (match.group().strip() for match in _SENTENCE.finditer(text))
    return [sentence for sentence in found if not sentence.endswith("?") and len(_WORD.findall(sentence)) >= 3]


def second_person(sentence: str) -> str:
    """Returns an English sentence with the speaker turned into the one spoken to; other languages pass unchanged."""

    def turn(match: re.Match[str]) -> str:
        told = match.group()
        said = _TABLE[told.lower()]
        starts = match.start() == 0
        return said[0].upper() + said[1:] if starts else said

    turned = _PATTERN.sub(turn, sentence.replace("\u2019", "'"))
    return turned[:1].upper() + turned[1:]


def cue(sentence: str, seed: str) -> str:
    """Returns some of a sentence's words, in order, as a question: what a memory is to be found by.

    The choice depends on `seed` alone, so a stream absorbed again gives the same memory.
    """
    words = _WORD.findall(sentence)
    chance = random.Random(seed)
    num_kept = chance.randint(1, max(1, len(words) - 1))
    kept = sorted(chance.sample(range(len(words)), num_kept))
    return " ".join(words[index] for index in kept) + "?"
