"""A task that the operator names: a text, and questions whose right answers it tells."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from siltstone.errors import InvalidInput

_TASK_KEYS: Final = frozenset({"name", "context", "questions"})
_QUESTION_KEYS: Final = frozenset({"question", "stem", "answer", "wrong", "held_out"})
_MAX_QUESTIONS: Final = 500


@dataclass(frozen=True, slots=True)
class Question:
    """A question with the beginning of its answer, how it rightly ends, and how it wrongly could."""

    question: str
    stem: str
    answer: str
    wrong: tuple[str, ...]

    @property
    def endings(self) -> tuple[str, ...]:
        """All endings, the right one first."""
        return (self.answer, *self.wrong)


@dataclass(frozen=True, slots=True)
class Task:
    """What the core is to learn: rewarded by the questions held in, judged by those held out."""

    name: str
    context: str
    held_in: tuple[Question, ...]
    held_out: tuple[Question, ...]
    digest: str
    """The sha256 of the file."""


def read_task(content: bytes) -> Task:
    """Returns the task of a TOML file.

    name = "..."                    what it is called
    context = "..."                 the text
    [[questions]]                   at least one held in, and one held out
    question = "..."
    stem = "..."                    how its answer begins; may be left out
    answer = "..."                  how it rightly goes on
    wrong = ["...", "..."]          how it could wrongly go on
    held_out = true                 not looked at before the end; false when left out

    Raises: InvalidInput, naming the place.
    """
    try:
        found = tomllib.loads(content.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInput("the task", "a TOML file in UTF-8", str(error)) from error
    _know(found, _TASK_KEYS, "the task")
    name, context = _text(found, "name", "the task"), _text(found, "context", "the task")
    listed = found.get("questions")
    if not isinstance(listed, list) or not 2 <= len(listed) <= _MAX_QUESTIONS:
        count = str(len(listed)) if isinstance(listed, list) else "none"
        raise InvalidInput("questions", f"2 to {_MAX_QUESTIONS} of them", count)
    sides: dict[bool, list[Question]] = {False: [], True: []}
    for number, entry in enumerate(listed, 1):
        question, is_held_out = _question(entry, f"question {number}")
        sides[is_held_out].append(question)
    asked = [question.question for side in sides.values() for question in side]
    if len(set(asked)) < len(asked):
        raise InvalidInput("questions", "each asked once", "one asked twice")
    for is_held_out, side in sides.items():
        if not side:
            raise InvalidInput("questions", f"at least one with held_out = {str(is_held_out).lower()}", "none")
    return Task(name, context, tuple(sides[False]), tuple(sides[True]), hashlib.sha256(content).hexdigest())


def _question(entry: object, where: str) -> tuple[Question, bool]:
    if not isinstance(entry, dict):
        raise InvalidInput(where, "a table", type(entry).__name__)
    _know(entry, _QUESTION_KEYS, where)
    wrong, is_held_out = entry.get("wrong"), entry.get("held_out", False)
    if not isinstance(wrong, list) or not wrong or not all(isinstance(one, str) and one.strip() for one in wrong):
        raise InvalidInput(f"{where}: wrong", "one answer or more, none empty", repr(wrong)[:80])
    if not isinstance(is_held_out, bool):
        raise InvalidInput(f"{where}: held_out", "true or false", repr(is_held_out)[:80])
    stem = _text(entry, "stem", where) if "stem" in entry else ""
    answer = _text(entry, "answer", where)
    endings = [answer, *(one.strip() for one in wrong)]
    if len({one.casefold() for one in endings}) < len(endings):
        raise InvalidInput(f"{where}: wrong", "answers that differ from the right one and each other", repr(wrong)[:80])
    return Question(_text(entry, "question", where), stem, answer, tuple(endings[1:])), is_held_out


def _know(found: Mapping[str, object], known: frozenset[str], where: str) -> None:
    if unknown := sorted(found.keys() - known):
        raise InvalidInput(where, f"keys of {', '.join(sorted(known))}", ", ".join(unknown))


def _text(found: Mapping[str, object], key: str, where: str) -> str:
    value = found.get(key)
    if not isinstance(value, str) or not value.strip():
        raise InvalidInput(f"{where}: {key}", "some text", repr(value)[:80])
    if not all(letter.isprintable() or letter.isspace() for letter in value):
        # Names and texts are shown on a screen.
        raise InvalidInput(f"{where}: {key}", "text without control characters", repr(value)[:80])
    return value.strip()
