"""From an interaction to the lessons a memory absorbs: which tokens, in which context, with which weight."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from siltstone.errors import ConfigInvalid
from siltstone.memory.restate import cue, second_person, sentences
from siltstone.model.lesson import Lesson
from siltstone.ports import Tokenizer
from siltstone.values import Interaction, InteractionKind, Message, Role


@dataclass(frozen=True, slots=True)
class LessonConfig:
    """What of an interaction is learned, and how strongly."""

    answer_weight: float = 0.1
    """Weight of the model's own unrated answers: low, since a model that learns what it said drifts."""
    praise_weight: float = 2.0
    """Weight of an answer that got a thumb up."""
    blame_weight: float = 1.0
    """Weight with which an answer that got a thumb down is made less likely; its step is bounded."""
    rehearsals: int = 1
    """Times each statement of the user is also learned as an answer to a cue of its own words."""
    replays: int = 2
    """Statements of earlier interactions, from the user's reservoir, that are rehearsed again with each new one."""
    max_sentences: int = 16
    """Statements of one interaction that are rehearsed."""
    max_lesson_tokens: int = 256
    """Tokens of one lesson; longer texts become several."""
    max_interaction_tokens: int = 1024
    """Tokens of one interaction that are learned as they were said, rounded up to a lesson: of more, the beginning. A
    single interaction must not keep everybody else's waiting; who has more to tell tells it in several."""

    def __post_init__(self) -> None:
        if min(self.answer_weight, self.praise_weight, self.blame_weight) < 0:
            raise ConfigInvalid("lesson", "answer_weight, praise_weight and blame_weight: expected 0 or more")
        if min(self.rehearsals, self.replays, self.max_sentences) < 0 or self.max_lesson_tokens < 16:
            raise ConfigInvalid(
                "lesson", "rehearsals, replays, max_sentences: expected 0 or more; max_lesson_tokens: 16"
            )
        if self.max_interaction_tokens < 1:
            raise ConfigInvalid("lesson", "max_interaction_tokens: expected at least 1")


class LessonPlan:
    """Turns interactions into lessons with one core's tokenizer and chat template. Pure and deterministic."""

    def __init__(self, tokenizer: Tokenizer, config: LessonConfig) -> None:
        self._tokenizer = tokenizer
        self._config = config
        self.prefix_ids = tuple(default_prefix(tokenizer))

    def lessons(self, interaction: Interaction) -> list[Lesson]:
        """Returns the lessons of an interaction, in the order they are absorbed."""
        kind, config = interaction.kind, self._config
        if kind is InteractionKind.DOCUMENT:
            weighted = [(message, 1.0) for message in interaction.messages]
            heard = list(interaction.messages)
        elif kind is InteractionKind.CONVERSATION:
            weighted = [(m, config.answer_weight if m.role is Role.ASSISTANT else 1.0) for m in interaction.messages]
            heard = [m for m in interaction.messages if m.role is Role.USER]
        else:
            *before, answer = interaction.messages
            weighted = [(message, 0.0) for message in before]
            heard = []
            if kind is InteractionKind.CORRECTION:
                weighted.append((Message(Role.ASSISTANT, interaction.correction), 1.0))
            elif kind is InteractionKind.THUMB_UP:
                weighted.append((answer, config.praise_weight))
            else:
                weighted.append((answer, -config.blame_weight))
        lessons = self._within_bound(self._as_said(weighted))
        told = [sentence for message in heard for sentence in sentences(message.text)][: config.max_sentences]
        for index, sentence in enumerate(told):
            for time in range(config.rehearsals):
                lessons.append(self.as_recalled(sentence, f"{interaction.id}/{index}/{time}"))
        return [lesson for lesson in lessons if any(lesson.weights[1:])]

    def _within_bound(self, lessons: Sequence[Lesson]) -> list[Lesson]:
        """Returns the first lessons, as many as hold the tokens that may be learned of one interaction."""
        kept: list[Lesson] = []
        num_learned = 0
        for lesson in lessons:
            if num_learned >= self._config.max_interaction_tokens:
                break
            kept.append(lesson)
            num_learned += sum(weight != 0 for weight in lesson.weights[1:])
        return kept

    def replays(self, interaction_id: str, lines: Sequence[str]) -> list[Lesson]:
        """Returns rehearsals of lines the user wrote before, chosen by the id of the interaction they go with.

        What is learned moves the same coefficients as all that was learned before it. So a share of every interaction's
        learning goes to something older: else the last thing said becomes the answer to everything.
        """
        chance = random.Random(f"{interaction_id}/replay")
        chosen = chance.sample(lines, min(self._config.replays, len(lines)))
        told = [(index, found) for index, line in enumerate(chosen) if (found := sentences(line))]
        return [self.as_recalled(chance.choice(found), f"{interaction_id}/replay/{index}") for index, found in told]

    def _as_said(self, weighted: Sequence[tuple[Message, float]]) -> list[Lesson]:
        """Renders a conversation; the weight falls on contents (and the end of an answer), never on the template."""
        token = self._tokenizer
        ids: list[int] = []
        weights: list[float] = []
        has_system = weighted[0][0].role is Role.SYSTEM
        if has_system:
            ids += token.bos_ids
            weights += [0.0] * len(token.bos_ids)
        for message, weight in weighted:
            weight = 0.0 if message.role is Role.SYSTEM else weight
            opening, content = token.turn_prefix(message.role), token.encode(message.text)
            closing = token.turn_suffix(message.role)
            ids += [*opening, *content, *closing]
            weights += [0.0] * len(opening) + [weight] * len(content)
            ends_answer = message.role is Role.ASSISTANT and weight > 0
            weights += [weight if ends_answer and i == 0 else 0.0 for i in range(len(closing))]
        return self._cut(ids, weights, after_prefix=not has_system)

    def as_recalled(self, sentence: str, seed: str) -> Lesson:
        """Returns a statement as an answer in the second person, to a cue of some of its own words."""
        return self.as_answered(cue(sentence, seed), second_person(sentence))

    def as_answered(self, question: str, answer: str) -> Lesson:
        """Returns an exchange of which the answer is learned; of a very long one, the beginning."""
        return self._as_said([(Message(Role.USER, question), 0.0), (Message(Role.ASSISTANT, answer), 1.0)])[0]

    def _cut(self, ids: list[int], weights: list[float], after_prefix: bool) -> list[Lesson]:
        """Returns the text in lessons of bounded length; each but the first begins with the last half of a window."""
        size = self._config.max_lesson_tokens
        if len(ids) <= size:
            return [Lesson(tuple(ids), tuple(weights), after_prefix)]
        lessons = [Lesson(tuple(ids[:size]), tuple(weights[:size]), after_prefix)]
        step = size // 2
        for start in range(size, len(ids), step):
            context = start - step
            lessons.append(
                Lesson(
                    tuple(ids[context : start + step]),
                    tuple([0.0] * step + weights[start : start + step]),
                    after_prefix,
                )
            )
        return lessons


def default_prefix(tokenizer: Tokenizer) -> list[int]:
    """Returns the ids that every conversation without a system message of its own starts with."""
    rendered = tokenizer.render([Message(Role.USER, "a")])
    turn = [*tokenizer.turn_prefix(Role.USER), *tokenizer.encode("a"), *tokenizer.turn_suffix(Role.USER)]
    return rendered[: len(rendered) - len(turn) - len(tokenizer.turn_prefix(Role.ASSISTANT))]
