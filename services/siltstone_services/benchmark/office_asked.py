"""What is asked after a night over the office: a newcomer, whom no memory knows, and everybody of themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from siltstone.config import SiltstoneConfig
from siltstone.crew import Crew
from siltstone.evaluation.forced_choice import Accuracy, accuracy, choose
from siltstone.evaluation.office_material import Office, OfficeUser
from siltstone.evaluation.office_questions import Question, own_questions
from siltstone.memory.user_memory import UserMemory
from siltstone.values import Message, Role
from siltstone_services.demo_outcome import CoursePlan
from siltstone_services.lanes import Lane
from siltstone_services.prompts import render_scored
from siltstone_services.upkeep import rebased

Scores = list[tuple[float, float]]


def ask(lane: Lane, questions: Sequence[Question], crew: Crew, memory: UserMemory | None = None) -> list[Scores]:
    """Returns how likely each value of each question is, in nats, under the memory and under its core."""
    tokenizer = lane.loaded.tokenizer
    coefficients = None if memory is None else memory.coefficients()
    calls = []
    for one in questions:
        prompt = render_scored(tokenizer, [Message(Role.USER, one.text), Message(Role.ASSISTANT, one.stem)])
        values = [tokenizer.encode(f" {value}") for value in one.values]
        calls.append(partial(lane.engine.score, prompt, values, coefficients))
    return crew.run(calls)


def raised(after: Sequence[Scores], before: Sequence[Scores]) -> Accuracy:
    """Returns how often the right value is the one that a core raised most over the core before."""
    chosen = [
        choose([core for _, core in new], [core for _, core in old]) for new, old in zip(after, before, strict=True)
    ]
    return accuracy(chosen, [0] * len(chosen))


def likeliest(scores: Sequence[Scores]) -> Accuracy:
    """Returns how often the right value is the likeliest to a core, whatever it was before."""
    chosen = [max((core, -value) for value, (_, core) in enumerate(one)) for one in scores]
    return accuracy([-negative for _, negative in chosen], [0] * len(chosen))


@dataclass(frozen=True, slots=True)
class Carried:
    """What users knew of themselves by forced choice before they were carried over to another core, and after."""

    before: Accuracy
    after: Accuracy
    num_carried: int
    num_users: int


def carry_over(
    office: Office,
    plan: CoursePlan,
    memories: Sequence[tuple[OfficeUser, UserMemory]],
    old: Lane,
    new: Lane,
    config: SiltstoneConfig,
    crew: Crew,
) -> Carried:
    """Carries memories from one core to another, and asks for what their users have said. Who is refused stays."""
    before: list[int | None] = []
    after: list[int | None] = []
    num_carried = 0
    for user, memory in memories:
        questions = own_questions(office, plan.facts(user))
        *_, last = rebased(memory, old, new, config.sleep.rebase)
        assert last is not None
        outcome, moved = last
        num_carried += outcome.accepted
        known = list(_chosen(ask(old, questions, crew, memory)))
        before += known
        after += _chosen(ask(new, questions, crew, moved)) if outcome.accepted else known
    right = [0] * len(before)
    return Carried(accuracy(before, right), accuracy(after, right), num_carried, len(memories))


def _chosen(scores: Sequence[Scores]) -> Iterator[int | None]:
    for one in scores:
        yield choose([own for own, _ in one], [core for _, core in one])
