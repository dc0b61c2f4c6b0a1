"""What a course of the demo saw: counts, times and scores, before any of it is judged."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from siltstone.evaluation.forced_choice import Accuracy, accuracy, accuracy_of
from siltstone.evaluation.office_material import Fact, OfficeUser
from siltstone.sleep_values import CoreVersion
from siltstone.values import Erasure

Column = Literal["core", "text", "weights", "both"]
"""What an answer may draw on; "core" is the bare core, which has no memory of anybody."""
COLUMNS: Final[tuple[Column, ...]] = ("core", "text", "weights", "both")

Asked = tuple[str, str]
"""A question of the course: the user's id and the key of the fact it asks for."""


@dataclass(frozen=True, slots=True)
class CoursePlan:
    """How much of the office a course takes. The first `num_facts` facts of each user are told, three times each."""

    users: tuple[OfficeUser, ...]
    num_facts: int
    num_answered: int
    """Facts of each user that are also asked freely, under every way of recall."""
    num_choices_with_text: int
    """How many of those have their forced choice repeated with the recalled lines in the context."""
    num_passages: int
    """Held-out neutral passages read under each user's model."""
    num_watched: int
    """Users compared bit for bit while another one learns."""
    has_shared: bool
    max_answer_tokens: int = 24
    max_answers_at_once: int = 32
    max_scores_at_once: int = 4

    def facts(self, user: OfficeUser) -> tuple[Fact, ...]:
        """Returns what a user tells, and is asked by forced choice."""
        return user.facts[: self.num_facts]

    def answered(self, user: OfficeUser) -> tuple[Fact, ...]:
        """Returns what a user also asks freely: spread over the facts told, one further on from user to user."""
        told, start = self.facts(user), self.users.index(user)
        step = max(1, len(told) // max(1, self.num_answered))
        return tuple(told[(start + index * step) % len(told)] for index in range(min(self.num_answered, len(told))))

    def helped(self, user: OfficeUser) -> tuple[Fact, ...]:
        """Returns which of the answered facts are also asked by forced choice with recalled lines in the context."""
        return self.answered(user)[: self.num_choices_with_text]


@dataclass(frozen=True, slots=True)
class Teaching:
    """How learning went. `effect_s` is, for each interaction, from sending it to its being in the committed memory."""

    num_interactions: int
    num_tokens: int
    elapsed_s: float
    effect_s: tuple[float, ...]
    num_parked: int


@dataclass(frozen=True, slots=True)
class FreeAnswer:
    """One greedy answer and what it took."""

    text: str
    is_right: bool
    num_prompt_tokens: int
    num_answer_tokens: int
    recalled: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answering:
    """The answers of one column, all asked at once as far as the plan allows."""

    answers: Mapping[Asked, FreeAnswer]
    elapsed_s: float
    num_tokens: int
    """Tokens that were really generated: the bare core answers the same words once."""

    @property
    def accuracy(self) -> Accuracy:
        """How many answers name the right value."""
        return accuracy_of(sum(answer.is_right for answer in self.answers.values()), len(self.answers))


@dataclass(frozen=True, slots=True)
class Choice:
    """A forced choice among all users' values of a slot: which one is right, and what was chosen (None is a tie)."""

    right: int
    plain_core: int
    """What the bare core finds likeliest."""
    plain_user: int
    """What the user's model finds likeliest."""
    raised: int | None
    """What the user's model raised most over the bare core."""


@dataclass(frozen=True, slots=True)
class Choices:
    """Forced choices by question, and those with recalled lines in the context (text, both), for some questions."""

    without_text: Mapping[Asked, Choice]
    with_text: Mapping[Asked, Choice]
    with_both: Mapping[Asked, Choice]


def choice_accuracy(choices: Mapping[Asked, Choice], kind: Literal["plain_core", "plain_user", "raised"]) -> Accuracy:
    """Returns how many of the choices were right."""
    return accuracy([getattr(one, kind) for one in choices.values()], [one.right for one in choices.values()])


@dataclass(frozen=True, slots=True)
class Bits:
    """Bits per byte of the same text under a user's model and under the bare core."""

    user: float
    core: float

    @property
    def change(self) -> float:
        """How much worse the user's model is, as a share of the core's; below zero it is better."""
        return self.user / self.core - 1

    @staticmethod
    def of(user_nats: float, core_nats: float, num_bytes: int) -> Bits:
        """Returns the bits per byte of log-probabilities in nats."""
        scale = -1 / (math.log(2) * num_bytes)
        return Bits(user_nats * scale, core_nats * scale)


@dataclass(frozen=True, slots=True)
class Isolation:
    """What became of the watched users while another learned, compared bit for bit."""

    learner: str
    watched: tuple[str, ...]
    num_compared: int
    num_changed: int
    has_learner_changed: bool


@dataclass(frozen=True, slots=True)
class Forgetting:
    """One user forgotten: largest difference of that user's scores from the bare core's, in nats, before and after."""

    user: str
    erasure: Erasure
    difference_before: float
    difference_after: float
    num_scores: int
    is_empty: bool


@dataclass(frozen=True, slots=True)
class NightOutcome:
    """What a night of the demo came to.

    `shared` and `private` count what the newcomer finds raised most, among the values of a question, over the core
    before. `recalled_before` and `recalled_after` count the users' own facts, on the old version and carried over.
    Without a promotion there is nothing to ask after. `sleep_s` is the night alone, from its plan to its verdict.
    """

    elapsed_s: float
    sleep_s: float
    version: CoreVersion
    num_dreams: int
    bad: CoreVersion
    answers_before: tuple[str, ...]
    answers_after: tuple[str, ...]
    shared: Accuracy | None
    private: Accuracy | None
    num_carried_over: int
    recalled_before: Accuracy
    recalled_after: Accuracy | None
    rollback_s: float | None
    difference_after_rollback: float | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything a course saw."""

    plan: CoursePlan
    core: str
    teaching: Teaching
    answering: Mapping[Column, Answering]
    choices: Choices
    neutral: Mapping[str, Bits]
    own_words: Mapping[str, Bits]
    isolation: Isolation
    forgetting: Forgetting
    memory_bytes: int
    """The largest memory of a user, as it is stored."""
    night: NightOutcome | None = None
    """What the night came to, where there was one."""
