"""The prompt of an answer: the conversation, and what text recall found for it."""

from __future__ import annotations

from collections.abc import Sequence

from siltstone.errors import InvalidInput
from siltstone.ports import TextRecall, Tokenizer
from siltstone.values import GenerateRequest, Message, RecallMode, Role

MAX_RECALLED_LINES = 6


def recall_lines(recall: TextRecall, mode: RecallMode, lines: Sequence[str], messages: Sequence[Message]) -> list[str]:
    """Returns the reservoir lines that belong to the last question, where the mode wants any."""
    asked = [message.text for message in messages if message.role is Role.USER]
    if mode == "weights" or not lines or not asked:
        return []
    return recall.search(lines, asked[-1], MAX_RECALLED_LINES)


def render_prompt(tokenizer: Tokenizer, request: GenerateRequest, recalled: Sequence[str]) -> list[int]:
    """Returns the token ids of a request's conversation. Recalled lines stand before the question they are for.

    They are the user's own words, and go where the user's words go: into the user's turn, as a quotation.

    Raises: InvalidInput when there is no question to answer.
    """
    messages = list(request.messages)
    if not messages or messages[-1].role is Role.ASSISTANT:
        raise InvalidInput("messages", "a conversation whose last message is the user's", "none")
    if recalled:
        messages[-1] = Message(messages[-1].role, with_recalled(messages[-1].text, recalled))
    return tokenizer.render(messages)


def with_recalled(question: str, recalled: Sequence[str]) -> str:
    """Returns the text of a user's turn that quotes recalled lines before its question."""
    if not recalled:
        return question
    told = "\n".join(f"- {line}" for line in recalled)
    return f"Here is what I told you before:\n{told}\n\n{question}"


def render_scored(tokenizer: Tokenizer, prompt: Sequence[Message]) -> list[int]:
    """Returns the ids before a scored answer; an assistant's last message is left open, for the answer to continue."""
    if not prompt:
        return list(tokenizer.bos_ids)
    if prompt[-1].role is not Role.ASSISTANT:
        return tokenizer.render(prompt)
    return tokenizer.render(prompt[:-1]) + tokenizer.encode(prompt[-1].text)
