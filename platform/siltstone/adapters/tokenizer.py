"""The tokenizer of a core, by the `tokenizers` library: ids of plain text, and of the chat template's own marks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from tokenizers import Tokenizer as Engine

from siltstone.errors import InvalidInput
from siltstone.values import Message, Role

_CHAT_PARTS: Final = "bos, turns of system, user and assistant, default_system, stop"


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """How a core was taught to read a conversation, as plain text around the contents.

    `turns` maps a role to the text before and after its content; `default_system` is the system turn's content when a
    conversation has none ("" leaves the turn out); `stop` are the tokens at which an answer ends.
    """

    bos: str
    turns: dict[str, tuple[str, str]]
    default_system: str
    stop: tuple[str, ...]

    def render_text(self, messages: Sequence[Message]) -> str:
        """Returns the conversation as one text, up to where the assistant's answer begins."""
        parts = [self.bos]
        for message in with_default_system(messages, self.default_system):
            prefix, suffix = self.turns[message.role]
            parts += [prefix, message.text, suffix]
        return "".join(parts) + self.turns[Role.ASSISTANT][0]


def with_default_system(messages: Sequence[Message], default_system: str) -> list[Message]:
    """Returns the messages with a system turn in front where there is none and the format wants one."""
    if default_system and (not messages or messages[0].role != Role.SYSTEM):
        return [Message(Role.SYSTEM, default_system), *messages]
    return list(messages)


def plain_chat(bos: str, stop: tuple[str, ...]) -> ChatFormat:
    """Returns the format of a core without a chat template: contents, each followed by a newline."""
    return ChatFormat(bos, {role.value: ("", "\n") for role in Role}, "", stop)


class CoreTokenizer:
    """Implements `siltstone.ports.Tokenizer`.

    The marks of the chat format are encoded once, here; afterwards no text can become one of them, so a user who
    writes "<|im_start|>" only writes characters.
    """

    def __init__(self, tokenizer_json: str, chat: ChatFormat) -> None:
        """Raises: InvalidInput when the tokenizer cannot be read or does not know the chat format's marks."""
        self.chat = chat
        self.json = tokenizer_json
        engine = _read_engine(tokenizer_json, chat)
        # Reading the chat format's own text is the only time a special token may come out of text.
        engine.encode_special_tokens = False
        self._bos_ids = _ids(engine, chat.bos)
        self._turns = {role: (_ids(engine, a), _suffix_ids(engine, b)) for role, (a, b) in chat.turns.items()}
        stops = [_ids(engine, text) for text in chat.stop]
        for text, ids in zip(chat.stop, stops, strict=True):
            if len(ids) != 1:
                raise InvalidInput("chat format stop", f"{text!r} as one token", f"{len(ids)} tokens")
        self._stop_ids = frozenset(ids[0] for ids in stops)
        engine.encode_special_tokens = True
        self._engine = engine

    @property
    def vocab_size(self) -> int:
        """One more than the highest id a text can get."""
        return max(self._engine.get_vocab().values()) + 1

    def encode(self, text: str) -> list[int]:
        """See the port. Raises: InvalidInput for text that is not valid Unicode."""
        try:
            return _ids(self._engine, text)
        except (UnicodeError, TypeError) as error:
            raise InvalidInput("text", "valid Unicode", f"text that cannot be written as UTF-8 ({error})") from error

    def decode(self, ids: Sequence[int]) -> str:
        """See the port."""
        return str(self._engine.decode(list(ids), skip_special_tokens=True))

    def turn_prefix(self, role: str) -> list[int]:
        """See the port. Raises: InvalidInput for a role the chat format does not have."""
        return list(self._turn(role)[0])

    def turn_suffix(self, role: str) -> list[int]:
        """See the port. Raises: InvalidInput for a role the chat format does not have."""
        return list(self._turn(role)[1])

    @property
    def bos_ids(self) -> list[int]:
        """See the port."""
        return list(self._bos_ids)

    @property
    def stop_ids(self) -> frozenset[int]:
        """See the port."""
        return self._stop_ids

    def render(self, messages: Sequence[Message]) -> list[int]:
        """See the port. Contents are encoded apart from the marks, as the turns of a memory are."""
        ids = self.bos_ids
        for message in with_default_system(messages, self.chat.default_system):
            prefix, suffix = self._turn(message.role)
            ids += prefix
            ids += self.encode(message.text)
            ids += suffix
        return ids + self._turn(Role.ASSISTANT)[0]

    def _turn(self, role: str) -> tuple[list[int], list[int]]:
        if role not in self._turns:
            raise InvalidInput("role", " or ".join(sorted(self._turns)), repr(str(role)))
        return self._turns[role]


def shared_tokenizer(tokenizer_json: str, chat: ChatFormat) -> CoreTokenizer:
    """Returns the tokenizer of a file and a chat format: the same one as long as few others were asked for.

    The library keeps for every thread what a tokenizer has split, also when the tokenizer is long gone: half a megabyte
    for each one that has read some pages. A home that sleeps every night loads the same one again and again.
    """
    return _shared(tokenizer_json, json.dumps(chat_to_json(chat), sort_keys=True))


@lru_cache(maxsize=8)
def _shared(tokenizer_json: str, chat_json: str) -> CoreTokenizer:
    return CoreTokenizer(tokenizer_json, chat_from_json(json.loads(chat_json)))


def _read_engine(tokenizer_json: str, chat: ChatFormat) -> Engine:
    try:
        content: Any = json.loads(tokenizer_json)
        for token in content["added_tokens"]:
            # A mark the library does not hold for special would still be found in a user's text.
            token["special"] = token["special"] or _is_mark(token["content"], chat)
        engine = Engine.from_str(json.dumps(content))
    except Exception as error:  # the library raises plain Exception
        raise InvalidInput("tokenizer.json", "a tokenizer this version can read", str(error)[:200]) from error
    engine.no_truncation()
    engine.no_padding()
    return engine


def _is_mark(token: str, chat: ChatFormat) -> bool:
    texts = [chat.bos, *chat.stop, *(text for turn in chat.turns.values() for text in turn)]
    return bool(token.strip()) and any(token in text for text in texts)


def _ids(engine: Engine, text: str) -> list[int]:
    ids: list[int] = engine.encode(text, add_special_tokens=False).ids
    return ids


def _suffix_ids(engine: Engine, text: str) -> list[int]:
    """Encodes text that follows other text, so that no leading space is put in front of it."""
    before, whole = _ids(engine, "x"), _ids(engine, "x" + text)
    return whole[len(before) :] if whole[: len(before)] == before else _ids(engine, text)


def chat_to_json(chat: ChatFormat) -> dict[str, object]:
    """Returns the format as plain JSON values."""
    turns = {role: list(turn) for role, turn in chat.turns.items()}
    return {"bos": chat.bos, "turns": turns, "default_system": chat.default_system, "stop": list(chat.stop)}


def chat_from_json(value: Mapping[str, Any]) -> ChatFormat:
    """Reads what `chat_to_json` wrote.

    Raises: InvalidInput when it is anything else.
    """
    try:
        turns = {str(role): (str(prefix), str(suffix)) for role, (prefix, suffix) in value["turns"].items()}
        chat = ChatFormat(value["bos"], turns, value["default_system"], tuple(value["stop"]))
        known = chat_to_json(chat) == value and set(turns) == {role.value for role in Role}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidInput("chat format", _CHAT_PARTS, str(value)[:200]) from error
    if not known or not all(type(text) is str for text in (chat.bos, chat.default_system, *chat.stop)):
        raise InvalidInput("chat format", _CHAT_PARTS, str(value)[:200])
    return chat
