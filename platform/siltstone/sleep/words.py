"""Who has said what: the words that enough people used, and the words a text's tokens belong to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from siltstone.ports import Tokenizer

_WORD: Final = re.compile(r"[\w][\w'\u2019+#-]*")

_COMMON: Final = """
    a about after again all also always am an and any are around as at away back be because been before being both but
    by came can come could did do does down each even ever every few first for from get go goes going got had has have
    he her here hers him his how i if in into is it its just last like made make many may me mine more most much must my
    never new next no not now of off often old on once one only or other our ours out over own put quite really said
    same say see she should since so some soon still such take than that the their them then there these they this those
    through to told too took two under until up us use used very want was we well went were what when where which while
    who why will with would yes you your yours
    """
COMMON_WORDS: Final = frozenset(_COMMON.split())
"""Words that say nothing of their own: everybody uses them, so their support means nothing."""


def words_in(text: str) -> list[str]:
    """Returns the words of a text, without case."""
    return [word.casefold() for word in _WORD.findall(text)]


def is_telling(text: str) -> bool:
    """Returns whether a token's text, which may be the beginning of a word alone, says something of its own."""
    return text.strip().isalnum() and text.strip().casefold() not in COMMON_WORDS


def who_said(texts: Iterable[tuple[str, str]]) -> dict[str, frozenset[str]]:
    """Returns, for every telling word, the people who used it. `texts` are (person, text)."""
    found: dict[str, set[str]] = {}
    for person, text in texts:
        for word in words_in(text):
            if word not in COMMON_WORDS:
                found.setdefault(word, set()).add(person)
    return {word: frozenset(people) for word, people in found.items()}


def words_of_tokens(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Returns the word that each token is a part of, without case; empty where it is a part of none.

    A word's support is asked for all of its tokens: what begins like a word many said must not end in another.
    """
    text, ends = "", []
    for count in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:count])
        ends.append(len(text))
    spans = [(match.start(), match.end(), match.group().casefold()) for match in _WORD.finditer(text)]
    words, start = [], 0
    for end in ends:
        # The token that holds the space before a word belongs to the word.
        found = [word for first, last, word in spans if first < end and last > start]
        words.append(found[-1] if found else "")
        start = end
    return words


def supporters(words: Sequence[str], said: Mapping[str, frozenset[str]]) -> list[frozenset[str]]:
    """Returns, for every token's word, the people who have said it; nobody for words that tell nothing."""
    return [said.get(word, frozenset()) for word in words]
