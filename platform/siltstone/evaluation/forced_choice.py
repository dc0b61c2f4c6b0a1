"""Judges what a model holds of a user: forced choice among values, and whether a free answer names the right one."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from siltstone.errors import InvalidInput

Z_95: Final = 1.959963984540054
"""Standard normal quantile of a two-sided 95 % interval."""

_WORD = re.compile(r"\d+(?:[.,]\d+)+|[\w+#]+")
_UNDECOMPOSED = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "\u0131": "i"})


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How many of the questions asked were answered right, with its 95 % Wilson interval."""

    num_right: int
    num_asked: int
    share: float
    low: float
    high: float


def choose(lp_user: Sequence[float], lp_core: Sequence[float]) -> int | None:
    """Returns the index of the value whose log-probability the user's memory raised most over the bare core.

    Taking the core away removes what makes a value likely for everybody: its length, its frequency. Two values raised
    equally much are a tie, and a tie is no choice (None): a memory that changed nothing gets no credit.

    Raises: InvalidInput when there is nothing to choose between, or a number is not finite.
    """
    if len(lp_user) != len(lp_core) or len(lp_user) < 2:
        raise InvalidInput("lp_user, lp_core", "equally many values, at least 2", f"{len(lp_user)}, {len(lp_core)}")
    if not all(map(math.isfinite, (*lp_user, *lp_core))):
        raise InvalidInput("lp_user, lp_core", "finite log-probabilities", "one that is not")
    raised = [user - core for user, core in zip(lp_user, lp_core, strict=True)]
    best = max(range(len(raised)), key=raised.__getitem__)
    return best if raised.count(raised[best]) == 1 else None


def accuracy(choices: Sequence[int | None], right: Sequence[int]) -> Accuracy:
    """Returns how many choices are the right ones; no choice is a wrong one."""
    if len(choices) != len(right):
        raise InvalidInput("choices", f"{len(right)}, one for each question", str(len(choices)))
    return accuracy_of(sum(choice == answer for choice, answer in zip(choices, right, strict=True)), len(right))


def accuracy_of(num_right: int, num_asked: int) -> Accuracy:
    """Returns the accuracy for counts."""
    low, high = wilson_interval(num_right, num_asked)
    return Accuracy(num_right, num_asked, num_right / num_asked, low, high)


def wilson_interval(num_right: int, num_asked: int, z: float = Z_95) -> tuple[float, float]:
    """Returns the interval that holds the true share, by Wilson's score.

    It is sound for few questions and for shares near 0 or 1.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
        p = num_right / n;  (p + z^2 / 2n +- z * sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)
    """
    if not 0 <= num_right <= num_asked or num_asked == 0:
        raise InvalidInput("num_right", "0 to num_asked, and num_asked above 0", f"{num_right} of {num_asked}")
    share = num_right / num_asked
    middle = share + z * z / (2 * num_asked)
    reach = z * math.sqrt(share * (1 - share) / num_asked + z * z / (4 * num_asked * num_asked))
    scale = 1 + z * z / num_asked
    # At the ends the formula gives exactly 0 and 1, but for rounding.
    low = 0.0 if num_right == 0 else (middle - reach) / scale
    high = 1.0 if num_right == num_asked else (middle + reach) / scale
    return low, high


def normalise_answer(text: str) -> str:
    """Returns the words of `text` with one space between them: no case, no accents, no punctuation.

    A number keeps its inner point or comma ("3.5" is not "3 5"), and "C++" and "C#" keep their signs.
    """
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(letter for letter in decomposed if not unicodedata.combining(letter)).translate(_UNDECOMPOSED)
    return " ".join(_WORD.findall(plain))


def names_value(answer_text: str, value: str, alternatives: Sequence[str]) -> bool:
    """Says whether a free answer names `value` and none of `alternatives`, as whole words.

    Where one value is part of another ("York", "New York City") the longest one that stands in the answer is the one
    that was named. An alternative that reads like `value` is the same value.

    Raises: InvalidInput when `value` has no words.
    """
    wanted = tuple(normalise_answer(value).split())
    if not wanted:
        raise InvalidInput("value", "at least one word", repr(value[:40]))
    others = {tuple(normalise_answer(alternative).split()) for alternative in alternatives} - {wanted, ()}
    longest_first = sorted({wanted, *others}, key=lambda words: (-len(words), words))
    words = tuple(normalise_answer(answer_text).split())
    named = set()
    at = 0
    while at < len(words):
        found = next((phrase for phrase in longest_first if words[at : at + len(phrase)] == phrase), None)
        if found is not None:
            named.add(found)
        at += len(found) if found is not None else 1
    return named == {wanted}
