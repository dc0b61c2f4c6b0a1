"""Enum members as the numbers of the interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Generic, ParamSpec, TypeVar

from siltstone.errors import InvalidInput

Member = TypeVar("Member", bound=str)
Number = TypeVar("Number", bound=int)
P = ParamSpec("P")
R = TypeVar("R")


class Numbering(Generic[Member, Number]):
    """A table of the members of an enum and their numbers. A number that is not in it is refused, never guessed at."""

    def __init__(self, numbers: Mapping[Member, Number]) -> None:
        self._numbers = dict(numbers)
        self._members: dict[int, Member] = {number: member for member, number in numbers.items()}

    def number(self, member: Member) -> Number:
        """Returns the number of a member."""
        return self._numbers[member]

    def member(self, field: str, number: int) -> Member:
        """Returns the member with a number. Raises: InvalidInput, naming `field`, when there is none."""
        try:
            return self._members[number]
        except KeyError:
            known = ", ".join(f"{known} ({member})" for known, member in sorted(self._members.items()))
            raise InvalidInput(field, f"one of {known}", str(number)) from None


def refusing_what_does_not_fit(function: Callable[P, R]) -> Callable[P, R]:
    """Makes a translator raise InvalidInput where protobuf cannot hold a value."""

    @wraps(function)
    def translate(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except (ValueError, OverflowError) as error:
            name = function.__name__.removesuffix("_to_proto").replace("_", " ")
            raise InvalidInput(name, "text as UTF-8 and numbers in range", _reason(error)) from error

    return translate


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeEncodeError):
        return f"a character that is not valid unicode, at {error.start}"
    return "a number out of range"
