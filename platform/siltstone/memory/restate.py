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
_FRAMES: Final = (
    "What is my {}?",
    "Tell me about my {}.",
    "What do you know about {}?",
    "{}?",
    "What did I say about {}?",
    "Which {}?",
    "Do you remember my {}?",
)
_COMMON_WORDS: Final = """
a about after all also always am an and any are as at be because been before but by can could did do does down every
for from get go had has have he her here hers him his how i i'd i'll i'm i've if in into is it it's its just like made
make many me mine more most much my myself no not now of off on once one only or other our ours out over own really
same she so some still such than that the their them then there these they this those through to too two under up us
very was we we're were what when where which while who why will with would you your
"""
_COMMON: Final = frozenset(_COMMON_WORDS.split())
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
    """Returns a question with one to three of a sentence's words: what a memory is to be found by.

    Names (words with a capital inside the sentence) and words that carry little are left out where others are left: a
    cue that holds the answer would teach copying. The choice depends on `seed` alone, so a stream absorbed again gives
    the same memory.
    """
    words = _WORD.findall(sentence)
    chance = random.Random(seed)
    telling = [index for index, word in enumerate(words) if word.lower() not in _COMMON]
    plain = [index for index in telling if index == 0 or not words[index][:1].isupper()]
    usable = plain or telling or list(range(len(words)))
    kept = sorted(chance.sample(usable, min(chance.randint(1, 3), len(usable))))
    named = " ".join(words[index] if index and words[index][:1].isupper() else words[index].lower() for index in kept)
    asked = chance.choice(_FRAMES).format(named)
    return asked[:1].upper() + asked[1:]
