"""Frames: what everybody says with something of their own in it ("my project is called ..."), and so agrees on nothing.

Enough people have said the words of a frame, and their memories hold them, so consensus alone would teach them: a
newcomer would be told of a project, and the gap in the frame is where what one person alone has said comes out.

Shapes: U memories, N tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

_FRAME_SHARE: Final = 0.4
"""A word is a frame where more than this of what it would teach lies in contested dreams."""


def is_contested(
    certain_UN: Sequence[Sequence[int | None]],
    people_U: Sequence[str],
    is_telling: Callable[[int], bool],
    k_min: int,
) -> bool:
    """Returns whether at some token of a dream people are certain of different things, each of their own.

    That is where at least `k_min` people are certain of a token that tells something, of at least `k_min` different
    ones, and no more than half of them of the same one. `certain_UN` holds, for every memory, the token it is certain
    of, or None; `is_telling` says of a token whether it begins a word that says something.
    """
    for certain_U in zip(*certain_UN, strict=True):
        behind: dict[int, set[str]] = {}
        for person, token in zip(people_U, certain_U, strict=True):
            if token is not None and is_telling(token):
                behind.setdefault(token, set()).add(person)
        people = frozenset().union(*behind.values())
        if min(len(people), len(behind)) >= k_min and 2 * max(map(len, behind.values())) <= len(people):
            return True
    return False


def frame_words(worths: Iterable[tuple[str, float, bool]]) -> frozenset[str]:
    """Returns the words that are frames: more than two fifths of what they would teach lies where people differ.

    `worths` are, for every token that agreement alone would raise, its word, what it would teach in nats, and whether
    its dream is contested.
    """
    whole: dict[str, float] = {}
    contested: dict[str, float] = {}
    for word, nats, is_in_contested in worths:
        whole[word] = whole.get(word, 0.0) + nats
        contested[word] = contested.get(word, 0.0) + nats * is_in_contested
    return frozenset(word for word, nats in whole.items() if contested[word] > _FRAME_SHARE * nats)
