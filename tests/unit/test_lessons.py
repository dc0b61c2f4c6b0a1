"""A lesson teaches what was said, in its context, and never the template around it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from siltstone.errors import ConfigInvalid
from siltstone.memory.lessons import LessonConfig, LessonPlan, default_prefix
from siltstone.model.lesson import Lesson
from siltstone.values import Interaction, InteractionKind, Message, Role, UserKey

TOKENIZER = tiny.CharTokenizer()
CONFIG = LessonConfig(answer_weight=0.25, praise_weight=2.0, blame_weight=0.5, rehearsals=0)
PLAN = LessonPlan(TOKENIZER, CONFIG)

texts = st.text(alphabet="abc ,.?!IMmyYW'", min_size=1, max_size=60)


def is_template(ids: tuple[int, ...], at: int) -> bool:
    return ids[at] in (tiny.TURN, tiny.END) or (at > 0 and ids[at - 1] == tiny.TURN)


def taught(lessons: list[Lesson]) -> list[tuple[str, float]]:
    """Returns every learned character with its weight; an end of turn as a bar."""
    return [
        ("|" if index == tiny.END else TOKENIZER.decode([index]), weight)
        for lesson in lessons
        for index, weight in zip(lesson.ids[1:], lesson.weights[1:], strict=True)
        if weight
    ]


def said(*messages: Message, kind: InteractionKind = InteractionKind.CONVERSATION, correction: str = "") -> Interaction:
    return Interaction("1", UserKey("office", "ada"), kind, 0, messages, correction)


USER, ANSWER = Message(Role.USER, "hello"), Message(Role.ASSISTANT, "yes")


def weights_of(text: str, weight: float) -> list[tuple[str, float]]:
    return [(char, weight) for char in text]


@pytest.mark.parametrize(
    ("interaction", "expected"),
    [
        (said(USER), weights_of("hello", 1.0)),
        (said(USER, ANSWER), weights_of("hello", 1.0) + weights_of("yes|", 0.25)),
        (said(Message(Role.SYSTEM, "be"), USER, ANSWER), weights_of("hello", 1.0) + weights_of("yes|", 0.25)),
        (said(USER, ANSWER, kind=InteractionKind.THUMB_UP), weights_of("yes|", 2.0)),
        (said(USER, ANSWER, kind=InteractionKind.THUMB_DOWN), weights_of("yes", -0.5)),
        (said(USER, ANSWER, kind=InteractionKind.CORRECTION, correction="no"), weights_of("no|", 1.0)),
        (said(USER, kind=InteractionKind.DOCUMENT), weights_of("hello", 1.0)),
    ],
)
def test_each_kind_teaches_its_part_of_the_exchange(
    interaction: Interaction, expected: list[tuple[str, float]]
) -> None:
    assert taught(PLAN.lessons(interaction)) == expected


@settings(max_examples=60)
@given(
    messages=st.lists(st.tuples(st.sampled_from([Role.USER, Role.ASSISTANT]), texts), min_size=2, max_size=4),
    kind=st.sampled_from(list(InteractionKind)),
    rehearsals=st.integers(0, 2),
    correction=texts,
)
def test_no_weight_falls_on_the_template_but_on_the_end_of_an_answer_that_is_learned(
    messages: list[tuple[Role, str]], kind: InteractionKind, rehearsals: int, correction: str
) -> None:
    plan = LessonPlan(TOKENIZER, replace(CONFIG, rehearsals=rehearsals))
    interaction = said(*(Message(role, text) for role, text in messages), kind=kind, correction=correction)

    for lesson in plan.lessons(interaction):
        assert len(lesson.ids) == len(lesson.weights)
        speaker = ""
        for at, weight in enumerate(lesson.weights):
            if at and lesson.ids[at - 1] == tiny.TURN:
                speaker = TOKENIZER.decode(lesson.ids[at : at + 1])
            if is_template(lesson.ids, at) and weight:
                assert lesson.ids[at] == tiny.END
                assert speaker == "a"
                assert weight > 0


def test_a_lesson_of_a_plain_conversation_reads_as_the_template_renders_it() -> None:
    lesson = PLAN.lessons(said(USER))[0]

    rendered = TOKENIZER.render([USER])
    assert [*PLAN.prefix_ids, *lesson.ids] == rendered[: -len(TOKENIZER.turn_prefix(Role.ASSISTANT))]
    assert lesson.after_prefix
    assert default_prefix(TOKENIZER) == list(PLAN.prefix_ids) != []


def test_a_conversation_with_a_system_message_of_its_own_stands_for_itself() -> None:
    messages = [Message(Role.SYSTEM, "be"), USER]
    lesson = PLAN.lessons(said(*messages))[0]

    assert not lesson.after_prefix
    assert list(lesson.ids) == TOKENIZER.render(messages)[: -len(TOKENIZER.turn_prefix(Role.ASSISTANT))]


@settings(max_examples=30)
@given(length=st.integers(1, 400), max_tokens=st.integers(16, 90))
def test_a_long_text_is_learned_once_everywhere_in_lessons_of_bounded_length(length: int, max_tokens: int) -> None:
    plan = LessonPlan(TOKENIZER, replace(CONFIG, max_lesson_tokens=max_tokens))
    text = "".join(chr(40 + i % 80) for i in range(length))

    lessons = plan.lessons(said(Message(Role.USER, text), kind=InteractionKind.DOCUMENT))

    assert "".join(char for char, _ in taught(lessons)) == text
    assert all(len(lesson.ids) <= max_tokens for lesson in lessons)


def test_of_a_very_long_interaction_the_beginning_is_learned() -> None:
    plan = LessonPlan(TOKENIZER, replace(CONFIG, max_lesson_tokens=32, max_interaction_tokens=100))
    text = "".join(chr(40 + i % 80) for i in range(5_000))

    lessons = plan.lessons(said(Message(Role.USER, text), kind=InteractionKind.DOCUMENT))

    learned = "".join(char for char, _ in taught(lessons))
    assert text.startswith(learned)
    assert 100 <= len(learned) <= 132


def test_a_statement_is_also_rehearsed_as_an_answer_and_a_question_is_not() -> None:
    plan = LessonPlan(TOKENIZER, replace(CONFIG, rehearsals=2))
    alone = Counter(taught(PLAN.lessons(said(USER))))
    stated = said(Message(Role.USER, "I sail my boat. Do you sail too?"))

    rehearsed = plan.lessons(stated)

    assert len(rehearsed) == len(PLAN.lessons(stated)) + 2
    for lesson in rehearsed[-2:]:
        answer = "".join(char for char, _ in taught([lesson]))
        assert answer.endswith("boat.|")
        assert "Do you" not in answer
    assert Counter(taught(plan.lessons(said(USER)))) == alone


@settings(max_examples=30)
@given(text=texts)
def test_the_same_interaction_always_gives_the_same_lessons(text: str) -> None:
    interaction = said(Message(Role.USER, text), ANSWER)

    assert LessonPlan(TOKENIZER, LessonConfig()).lessons(interaction) == LessonPlan(TOKENIZER, LessonConfig()).lessons(
        interaction
    )


@pytest.mark.parametrize(
    "change",
    [
        {"answer_weight": -0.1},
        {"praise_weight": -1.0},
        {"blame_weight": -1.0},
        {"rehearsals": -1},
        {"max_sentences": -1},
        {"max_lesson_tokens": 15},
    ],
)
def test_weights_and_lengths_that_make_no_sense_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ConfigInvalid):
        replace(CONFIG, **change)


LINES = ["I was born in Lisbon.", "My dog is called Pickle. He is brown.", "Ramen?", "I play the cello."]


def test_what_is_replayed_is_a_rehearsal_of_a_statement_told_before_and_hangs_on_the_interaction_alone() -> None:
    plan = LessonPlan(TOKENIZER, replace(CONFIG, replays=2))
    told = {"You were born in Lisbon.", "Your dog is called Pickle.", "He is brown.", "You play the cello."}

    replayed = [plan.replays(f"{number}", LINES) for number in range(40)]

    assert replayed == [plan.replays(f"{number}", LINES) for number in range(40)]
    answers = ["".join(char for char, _ in taught([lesson])).strip("|") for lessons in replayed for lesson in lessons]
    assert set(answers) == told
    assert {len(lessons) for lessons in replayed} == {1, 2}, "a question is not replayed"
    assert {weight for lessons in replayed for lesson in lessons for _, weight in taught([lesson])} == {1.0}


def test_nothing_is_replayed_when_nothing_was_told_or_replay_is_off() -> None:
    assert LessonPlan(TOKENIZER, replace(CONFIG, replays=3)).replays("1", []) == []
    assert LessonPlan(TOKENIZER, replace(CONFIG, replays=0)).replays("1", LINES) == []
