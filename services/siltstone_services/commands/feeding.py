"""Records texts, files and feedback."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from siltstone.adapters.system_clock import SystemClock
from siltstone.errors import InvalidInput, NotFound
from siltstone.journal.sources.source import sendable, stable_id
from siltstone.values import Consent, Interaction, InteractionKind, Message, Receipt, Role, UserKey
from siltstone_services.cli.options import Reach
from siltstone_services.client import SiltstoneClient
from siltstone_services.commands.connection import ask
from siltstone_services.commands.screen import out

_PIECE_CHARS: Final = 12_000
_PIECES_PER_CALL: Final = 32
_KINDS: Final = {
    "correction": InteractionKind.CORRECTION,
    "up": InteractionKind.THUMB_UP,
    "down": InteractionKind.THUMB_DOWN,
}


def record(
    reach: Reach,
    tenant: str,
    user: str,
    text: str | None,
    file: Path | None,
    is_document: bool,
    is_shared: bool,
    is_waiting: bool,
) -> None:
    """Records a text as something said, or as a document; or a file as one document or more."""
    if (text is None) == (file is None):
        raise InvalidInput("record", "a TEXT or a --file", "both" if text is not None else "neither")
    owner, consent, now_ms = UserKey(tenant, user), Consent(learn=True, share=is_shared), SystemClock().now_ms()
    if text is not None:
        kind = InteractionKind.DOCUMENT if is_document else InteractionKind.CONVERSATION
        message = Message(Role.USER, sendable(text))
        interactions = [Interaction(uuid.uuid4().hex, owner, kind, now_ms, (message,), consent=consent)]
    else:
        assert file is not None
        interactions = [
            Interaction(
                stable_id("file", tenant, user, number, piece),
                owner,
                InteractionKind.DOCUMENT,
                now_ms,
                (Message(Role.USER, piece),),
                consent=consent,
            )
            for number, piece in enumerate(pieces(_read(file)))
        ]
    _tell(ask(reach, lambda client: _record_all(client, interactions, is_waiting)), is_waiting)


def feedback(
    reach: Reach,
    tenant: str,
    user: str,
    kind: str,
    question: str,
    answer: str,
    correction: str,
    is_shared: bool,
    is_waiting: bool,
) -> None:
    """Records what a user thinks of an answer."""
    exchange = (Message(Role.USER, question), Message(Role.ASSISTANT, answer))
    told = Interaction(
        uuid.uuid4().hex,
        UserKey(tenant, user),
        _KINDS[kind],
        SystemClock().now_ms(),
        exchange,
        correction,
        Consent(learn=True, share=is_shared),
    )
    _tell([ask(reach, lambda client: client.feedback(told, wait_absorbed=is_waiting))], is_waiting)


def pieces(text: str) -> Iterator[str]:
    """Yields a long text in parts, broken between paragraphs, else between lines, else where a part is full."""
    rest = text.strip()
    while len(rest) > _PIECE_CHARS:
        at = max(rest.rfind("\n\n", _PIECE_CHARS // 4, _PIECE_CHARS), 0)
        at = at or max(rest.rfind("\n", _PIECE_CHARS // 4, _PIECE_CHARS), 0) or _PIECE_CHARS
        yield rest[:at].rstrip()
        rest = rest[at:].lstrip()
    if rest:
        yield rest


async def _record_all(client: SiltstoneClient, interactions: list[Interaction], is_waiting: bool) -> list[Receipt]:
    receipts: list[Receipt] = []
    for start in range(0, len(interactions), _PIECES_PER_CALL):
        part = interactions[start : start + _PIECES_PER_CALL]
        receipts += await client.record(part, wait_absorbed=is_waiting)
    return receipts


def _read(file: Path) -> str:
    try:
        data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except FileNotFoundError as error:
        raise NotFound("file", str(file)) from error
    except OSError as error:
        raise InvalidInput("--file", "a file that can be read", error.strerror or str(error)) from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput("--file", "text in UTF-8", f"byte {data[error.start]:#04x} at {error.start}") from error
    if not text.strip():
        raise InvalidInput("--file", "text", "nothing but white space")
    return sendable(text)


def _tell(receipts: list[Receipt], is_waiting: bool) -> None:
    num_new = sum(not receipt.duplicate for receipt in receipts)
    done = "absorbed" if is_waiting else "recorded"
    known = f", {len(receipts) - num_new} known already" if num_new < len(receipts) else ""
    last = receipts[-1]
    out().print(
        f"{done} {num_new} interaction{'s' * (num_new != 1)}{known}; journal partition {last.partition}, "
        f"position {last.position}",
        soft_wrap=True,
    )
