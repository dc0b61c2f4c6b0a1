"""A user learns interaction by interaction, and with each one something of those before it."""

from __future__ import annotations

import pytest
import tiny

from siltstone.memory.learner import Learner
from siltstone.memory.lessons import LessonConfig
from siltstone.memory.reservoir import ReservoirLimits
from siltstone.memory.user_memory import UserMemory
from siltstone.values import Interaction

WORLD = tiny.world(lessons=LessonConfig(rehearsals=0, replays=1))
SAID = [tiny.interaction(f"{n}", text) for n, text in enumerate(["I live in Ulm.", "My dog is Pip.", "I bake bread."])]


def read(
    said: list[Interaction], memory: UserMemory, nats: float = 1.0, room: int = 10**9
) -> tuple[UserMemory, list[str]]:
    """Learns to the end, `nats` a token of a conversation; returns the new memory and what every lesson said."""
    learner = Learner(memory, said, WORLD.plan, ReservoirLimits())
    texts = []
    while spans := learner.next_spans(room):
        for span in spans:
            is_told = "You" in tiny.CharTokenizer().decode(span.lesson.ids)
            learner.has_read(span, 0.0 if is_told else nats * span.num_learned)
            if span.is_last:
                texts.append(tiny.CharTokenizer().decode(span.lesson.ids[3:]))
    return learner.grown(memory.numbers), texts


def test_each_interaction_but_the_first_brings_one_told_before() -> None:
    _, texts = read(SAID, WORLD.empty())

    assert len(texts) == 5
    assert "You live in Ulm." in texts[2]
    assert any(told in texts[4] for told in ("You live in Ulm.", "Your dog is Pip."))


def test_what_is_replayed_does_not_hang_on_how_the_stream_is_cut() -> None:
    _, together = read(SAID, WORLD.empty())
    memory, apart = WORLD.empty(), []
    for one in SAID:
        memory, texts = read([one], memory)
        apart += texts

    assert apart == together


def test_how_surprising_an_interaction_was_is_told_by_its_own_words() -> None:
    memory, _ = read(SAID[:1], WORLD.empty(), nats=4.0)
    memory, texts = read(SAID[1:2], memory, nats=3.0)

    assert len(texts) == 2
    assert [entry.surprise for entry in memory.reservoir.entries] == [4.0, 3.0]


def test_an_interaction_without_lessons_is_absorbed_all_the_same() -> None:
    blank = tiny.interaction("blank", "")
    memory, texts = read([blank, *SAID[:1], blank], WORLD.empty())

    assert len(texts) == 1
    assert memory.absorbed_ids == ("blank", "0")
    assert memory.num_interactions == 2


def test_a_piece_takes_so_many_tokens_of_as_many_lessons_as_hold_them() -> None:
    learner = Learner(WORLD.empty(), SAID, WORLD.plan, ReservoirLimits())
    sizes, lessons = [], []
    while spans := learner.next_spans(7):
        sizes.append(sum(span.num_learned for span in spans))
        lessons.append(len(spans))
        for span in spans:
            learner.has_read(span, 1.0)

    assert all(size == 7 for size in sizes[:-1])
    assert max(lessons) == 2


@pytest.mark.parametrize("room", [1, 3, 50])
def test_what_is_learned_does_not_hang_on_the_size_of_a_piece(room: int) -> None:
    whole, texts = read(SAID, WORLD.empty())
    cut, texts_of_cut = read(SAID, WORLD.empty(), room=room)

    assert texts_of_cut == texts
    assert cut.position_tokens == whole.position_tokens
    assert cut.reservoir == whole.reservoir
