"""Reads the conversations.json of a ChatGPT data export, one conversation in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import ijson

from siltstone.errors import InvalidInput
from siltstone.journal.sources.source import Skipped, SkipReason, SourceOptions, sendable, stable_id
from siltstone.values import Interaction, InteractionKind, Message, Role, UserKey, is_valid_id

_EVERYONE: Final = "all"
_MAX_TIME_S: Final = 1e11
_TEXT_KINDS: Final = ("text", "multimodal_text")


def read_chatgpt_export(path: Path, options: SourceOptions) -> Iterator[Interaction | Skipped]:
    """Reads the exchanges of every conversation, along the branch its owner last saw.

    What was said to tools, thought aloud or hidden from view is left out; so are pictures.

    Raises: InvalidInput when `options.user` does not say whose export it is.
    """
    if not is_valid_id(options.user):
        raise InvalidInput("user", "the id of the user whose export this is", options.user[:80] or "nothing")
    return _read_exchanges(path, options)


def _read_exchanges(path: Path, options: SourceOptions) -> Iterator[Interaction | Skipped]:
    owner = UserKey(options.tenant, options.user)
    for number, conversation in enumerate(_read_conversations(path, options.max_entry_bytes), start=1):
        where = f"{path.name}:{number}"
        if isinstance(conversation, SkipReason):
            yield Skipped(conversation, where)
        elif isinstance(conversation, Mapping) and isinstance(conversation.get("mapping"), Mapping):
            yield from _exchanges_of(conversation, owner, where, options)
        else:
            yield Skipped(SkipReason.MALFORMED, where)


def _read_conversations(path: Path, max_bytes: int) -> Iterator[Any]:
    """Yields each element of the file's array, or the reason in place of one that cannot be had."""
    try:
        with path.open("rb") as stream:
            events = iter(ijson.basic_parse(stream, use_float=True))
            if next(events)[0] != "start_array":
                yield SkipReason.MALFORMED
                return
            builder, num_bytes, depth = ijson.ObjectBuilder(), 0, 0
            for event, value in events:
                if depth == 0 and event == "end_array":
                    return
                depth += event.startswith("start_") - event.startswith("end_")
                num_bytes += 8 + (len(value.encode("utf-8", "replace")) if isinstance(value, str) else 0)
                if num_bytes <= max_bytes:
                    builder.event(event, value)
                if depth == 0:
                    yield builder.value if num_bytes <= max_bytes else SkipReason.TOO_LARGE
                    builder, num_bytes = ijson.ObjectBuilder(), 0
    except (OSError, ijson.JSONError, ValueError):
        # Behind damage in one long JSON value there is no telling where the next entry begins.
        yield SkipReason.MALFORMED


def _exchanges_of(
    conversation: Mapping[str, Any], owner: UserKey, where: str, options: SourceOptions
) -> Iterator[Interaction | Skipped]:
    asked: list[str] = []
    answered: list[str] = []
    answer_node, at_ms = "", options.default_at_ms
    turns = [*_visible_turns(conversation), (Role.USER, "", "", None)]
    for role, node, text, time_s in turns:
        if role is Role.USER:
            if asked and answered:
                yield Interaction(
                    id=answer_node if is_valid_id(answer_node) else stable_id("chatgpt", answer_node),
                    owner=owner,
                    kind=InteractionKind.CONVERSATION,
                    occurred_at_ms=at_ms,
                    messages=(Message(Role.USER, "\n\n".join(asked)), Message(Role.ASSISTANT, "\n\n".join(answered))),
                    consent=options.consent,
                )
                asked, answered = [], []
            asked += [text] if text else []
        elif asked:
            answered.append(text)
            answer_node = node
            at_ms = int(time_s * 1000) if time_s is not None else at_ms
    if asked:
        yield Skipped(SkipReason.UNANSWERED, where)


def _visible_turns(conversation: Mapping[str, Any]) -> list[tuple[Role, str, str, float | None]]:
    """Returns role, node id, text and time of what user and assistant said to each other, first to last."""
    nodes: Mapping[str, Any] = conversation["mapping"]
    turns = []
    node_id: Any = conversation.get("current_node") or _latest_leaf(nodes)
    seen: set[str] = set()
    while isinstance(node_id, str) and node_id not in seen and isinstance(nodes.get(node_id), Mapping):
        seen.add(node_id)
        node = nodes[node_id]
        said = _said(node.get("message"))
        if said is not None:
            turns.append((said[0], node_id, said[1], said[2]))
        node_id = node.get("parent")
    return turns[::-1]


def _latest_leaf(nodes: Mapping[str, Any]) -> str | None:
    """Returns the end of the newest branch: older exports do not name the current node."""
    leaves = [
        (_time_s(node.get("message")) or 0.0, node_id)
        for node_id, node in nodes.items()
        if isinstance(node, Mapping) and not node.get("children")
    ]
    return max(leaves)[1] if leaves else None


def _said(message: Any) -> tuple[Role, str, float | None] | None:
    """Returns who said what when, or None for anything but words between user and assistant."""
    if not isinstance(message, Mapping):
        return None
    author, content, metadata = message.get("author"), message.get("content"), message.get("metadata")
    if not isinstance(author, Mapping) or author.get("role") not in (Role.USER, Role.ASSISTANT):
        return None
    if not isinstance(content, Mapping) or content.get("content_type", "text") not in _TEXT_KINDS:
        return None
    hidden = isinstance(metadata, Mapping) and metadata.get("is_visually_hidden_from_conversation") is True
    if hidden or message.get("weight") == 0 or message.get("recipient", _EVERYONE) != _EVERYONE:
        return None
    parts = content.get("parts")
    text = "\n".join(part for part in parts if isinstance(part, str)).strip() if isinstance(parts, list) else ""
    return (Role(author["role"]), sendable(text), _time_s(message)) if text else None


def _time_s(message: Any) -> float | None:
    time_s = message.get("create_time") if isinstance(message, Mapping) else None
    return float(time_s) if isinstance(time_s, int | float) and 0 <= time_s < _MAX_TIME_S else None
