"""The parts of the demo's course in which the users ask: freely, and by forced choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from siltstone.evaluation.forced_choice import choose, names_value
from siltstone.evaluation.office_material import Fact, OfficeUser
from siltstone.values import AnswerEnd, GenerateRequest, Message, Role, Sampling
from siltstone_services.demo_outcome import Answering, Asked, Choice, Choices, Column, FreeAnswer
from siltstone_services.demo_setting import Setting, at_once, key_of
from siltstone_services.prompts import with_recalled

_Question = tuple[OfficeUser, Fact]
_Scores = list[tuple[float, float]]


async def ask_freely(setting: Setting, column: Column) -> Answering:
    """Asks every question of the plan, each in a fresh conversation, and judges the answers."""
    plan, clock = setting.plan, setting.clock
    asked = [(user, fact) for user in plan.users for fact in plan.answered(user)]
    # The bare core knows nobody: the same words get the same answer whoever asks, so they are asked once.
    posed = list({fact.question: (user, fact) for user, fact in asked}.values()) if column == "core" else asked
    started_s = clock.monotonic_s()
    with setting.screen.counting(f"answers, {column}", len(posed)) as count:

        async def answer(question: _Question) -> tuple[str, AnswerEnd]:
            user, fact = question
            request = GenerateRequest(
                key_of(user),
                (Message(Role.USER, fact.question),),
                Sampling(max_tokens=plan.max_answer_tokens),
                "weights" if column == "core" else column,
                core_only=column == "core",
            )
            text, end = await setting.client.answer(request)
            count(end.num_answer_tokens)
            return text, end

        given = await at_once(posed, answer, plan.max_answers_at_once)
    elapsed_s = clock.monotonic_s() - started_s
    if column == "core":
        by_words = {fact.question: one for (_, fact), one in zip(posed, given, strict=True)}
        of_asked = [by_words[fact.question] for _, fact in asked]
    else:
        of_asked = given
    judged = {
        (user.id, fact.key): FreeAnswer(
            text,
            names_value(text, fact.value, setting.office.values(fact.slot)),
            end.num_prompt_tokens,
            end.num_answer_tokens,
            end.recalled,
        )
        for (user, fact), (text, end) in zip(asked, of_asked, strict=True)
    }
    return Answering(judged, elapsed_s, sum(end.num_answer_tokens for _, end in given))


async def choose_all(setting: Setting, text_answers: Mapping[Asked, FreeAnswer]) -> Choices:
    """Scores every value of a slot as the answer to each question, without text in the context and with it.

    The lines that text recall put before a question are known from `text_answers`.
    """
    plan = setting.plan
    asked = [(user, fact) for user in plan.users for fact in plan.facts(user)]
    helped = [(user, fact) for user in plan.users for fact in plan.helped(user)]
    with setting.screen.counting("forced choice", len(asked) + len(helped)) as count:

        async def score(question: _Question, lines: Sequence[str] = ()) -> _Scores:
            user, fact = question
            conversation = with_recalled([Message(Role.USER, fact.question)], lines)
            prompt = *conversation, Message(Role.ASSISTANT, fact.answer_stem)
            values = [f" {value}" for value in setting.office.values(fact.slot)]
            scores = await setting.client.score(key_of(user), prompt, values)
            count(0)
            return scores

        async def score_helped(question: _Question) -> _Scores:
            user, fact = question
            return await score(question, text_answers[user.id, fact.key].recalled)

        bare = await at_once(asked, score, plan.max_scores_at_once)
        with_lines = await at_once(helped, score_helped, plan.max_scores_at_once)
    core = {(user.id, fact.key): _columns(one)[1] for (user, fact), one in zip(asked, bare, strict=True)}

    def chosen(question: _Question, scores: Sequence[float]) -> Choice:
        user, fact = question
        right, lp_core = setting.office.values(fact.slot).index(fact.value), core[user.id, fact.key]
        return Choice(right, _likeliest(lp_core), _likeliest(scores), choose(scores, lp_core))

    without_text, text, both = {}, {}, {}
    for (user, fact), scores in zip(asked, bare, strict=True):
        without_text[user.id, fact.key] = chosen((user, fact), _columns(scores)[0])
    for (user, fact), scores in zip(helped, with_lines, strict=True):
        under_user, under_core = _columns(scores)
        text[user.id, fact.key] = chosen((user, fact), under_core)
        both[user.id, fact.key] = chosen((user, fact), under_user)
    return Choices(without_text, text, both)


def _columns(scores: _Scores) -> tuple[list[float], list[float]]:
    return [user for user, _ in scores], [core for _, core in scores]


def _likeliest(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=scores.__getitem__)
