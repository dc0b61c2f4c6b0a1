"""What is asked about the office by forced choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from siltstone.evaluation.office_material import Fact, Office, OfficeUser


@dataclass(frozen=True, slots=True)
class Question:
    """A question answered by `stem`, a space and one of the values, the first of which is right."""

    text: str
    stem: str
    values: tuple[str, ...]


def shared_questions(office: Office) -> list[Question]:
    """Returns what several people have said of the office."""
    return [Question(fact.question, fact.answer_stem, (fact.value, *fact.alternatives)) for fact in office.shared]


def private_questions(office: Office, users: Sequence[OfficeUser]) -> list[Question]:
    """Returns what each of the users alone has said: with twelve of them 96, so that a tenth is told from chance."""
    return [one for user in users for one in own_questions(office, user.facts)]


def own_questions(office: Office, facts: Sequence[Fact]) -> list[Question]:
    """Returns the questions for facts of one user, among what all users would answer."""
    return [
        Question(
            fact.question,
            fact.answer_stem,
            (fact.value, *(value for value in office.values(fact.slot) if value != fact.value)),
        )
        for fact in facts
    ]
