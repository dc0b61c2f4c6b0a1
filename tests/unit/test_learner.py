"""A user learns interaction by interaction, and with each one something of those before it."""

from __future__ import annotations

import tiny

from siltstone.memory.learner import Learner
from siltstone.memory.lessons import LessonConfig
from siltstone.memory.reservoir import ReservoirLimits
from siltstone.memory.user_memory import UserMemory
from siltstone.values import Interaction

WORLD = tiny.world(lessons=LessonConfig(rehearsals=0, replays=1))
SAID = [tiny.interaction(f"{n}", text) for n, text in enumerate(["I live in Ulm.", "My dog is Pip.", "I bake bread."])]


def read(said: list[Interaction], memory: UserMemory, nats: float = 1.0) -> tuple[UserMemory, list[str]]:
    """Learns to the end; returns the new memory and what every lesson said."""
    learner = Learner(memory, said, WORLD.plan, ReservoirLimits())
    texts = []
    while (lesson := learner.lesson) is not None:
        texts.append("".join(char for char in tiny.CharTokenizer().decode(lesson.ids[3:])))
        learner.has_learned(10, 10 * nats if len(texts) == 1 else 0.0)
        learner.end_lesson()
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
