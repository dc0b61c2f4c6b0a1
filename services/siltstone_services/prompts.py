"""The prompt of an answer: the conversation, and what text recall found for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from siltstone.errors import InvalidInput
from siltstone.memory.restate import second_person
from siltstone.ports import TextRecall, Tokenizer
from siltstone.values import GenerateRequest, Message, RecallMode, Role

MAX_RECALLED_LINES: Final = 3
_ASKING_BACK: Final = "What have I told you about myself?"


def recall_lines(recall: TextRecall, mode: RecallMode, lines: Sequence[str], messages: Sequence[Message]) -> list[str]:
    """Returns the reservoir lines that belong to the last question, where the mode wants any."""
    asked = [message.text for message in messages if message.role is Role.USER]
    if mode == "weights" or not lines or not asked:
        return []
    return recall.search(lines, asked[-1], MAX_RECALLED_LINES)


def render_prompt(tokenizer: Tokenizer, request: GenerateRequest, recalled: Sequence[str]) -> list[int]:
    """Returns the token ids of a request's conversation, with the recalled lines before the question they are for.

    Raises: InvalidInput when there is no question to answer.
    """
    messages = list(request.messages)
    if not messages or messages[-1].role is Role.ASSISTANT:
        raise InvalidInput("messages", "a conversation whose last message is the user's", "none")
    return tokenizer.render(with_recalled(messages, recalled))


def with_recalled(messages: Sequence[Message], recalled: Sequence[str]) -> list[Message]:
    """Returns a conversation in which, before its last message, the model has told the user the recalled lines.

    They are turned into the second person, as a memory rehearses them: what is in the context and what is in the
    weights then say the same words. A small model reads an answer off its own turn far better than off a quotation in
    the user's (decisions/0005). The lines never reach the system message.
    """
    *before, question = messages
    if not recalled:
        return [*before, question]
    told = "\n".join(second_person(line) for line in recalled)
    return [*before, Message(Role.USER, _ASKING_BACK), Message(Role.ASSISTANT, told), question]


def render_scored(tokenizer: Tokenizer, prompt: Sequence[Message]) -> list[int]:
    """Returns the ids before a scored answer; an assistant's last message is left open, for the answer to continue."""
    if not prompt:
        return list(tokenizer.bos_ids)
    if prompt[-1].role is not Role.ASSISTANT:
        return tokenizer.render(prompt)
    return tokenizer.render(prompt[:-1]) + tokenizer.encode(prompt[-1].text)
