"""Records texts, files and feedback."""

from __future__ import annotations

import asyncio
import re
import sys
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import typer
from rich.status import Status

from siltstone.adapters.system_clock import SystemClock
from siltstone.errors import InvalidInput, NotFound, Overloaded, Unavailable
from siltstone.journal.sources.source import stable_id
from siltstone.values import Consent, Interaction, InteractionKind, Message, Receipt, Role, UserKey
from siltstone_services.cli.exits import PARKED
from siltstone_services.cli.options import Reach
from siltstone_services.client import SiltstoneClient
from siltstone_services.commands.connection import ask
from siltstone_services.commands.screen import counted, err, out

_PIECE_CHARS: Final = 4_000
_RECORDED_PER_CALL: Final = 32
_AWAITED_PER_CALL: Final = 4
"""Few: a call has a time limit, and after each one there is progress to tell."""
_ENDS: Final = tuple(map(re.compile, (r"\n\s*\n", r"[.!?\u2026][\"')\]\u201d\u2019]*\s", r"\n", r"\s")))
"""Where a text may be broken, the best first: after a paragraph, a sentence, a line, a word."""
_KINDS: Final = {
    "correction": InteractionKind.CORRECTION,
    "up": InteractionKind.THUMB_UP,
    "down": InteractionKind.THUMB_DOWN,
}


@dataclass(frozen=True, slots=True)
class RecordWish:
    """What is to be recorded, whose it is, and how."""

    tenant: str
    user: str
    text: str | None
    file: Path | None
    is_document: bool
    is_again: bool
    is_shared: bool
    is_waiting: bool
    id: str = ""


def record(reach: Reach, wish: RecordWish) -> None:
    """Records a text as something said, or as a document; or a file as one document or more."""
    interactions = _interactions(wish)
    with err().status("recording ...") as status:
        receipts = ask(reach, lambda client: _record_all(client, interactions, wish, status))
    _tell(receipts, wish.is_waiting, "another --id" if wish.id else "--again")


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
    """Yields a long text in parts, broken after a paragraph, else a sentence, a line or a word, else where it is full.

    Learning a part is one interaction: short parts let answers come in between, and progress be told.
    """
    rest = text.strip()
    while len(rest) > _PIECE_CHARS:
        at = _last_end(rest)
        yield rest[:at].rstrip()
        rest = rest[at:].lstrip()
    if rest:
        yield rest


def _last_end(text: str) -> int:
    for end in _ENDS:
        found = [match.end() for match in end.finditer(text, _PIECE_CHARS // 4, _PIECE_CHARS)]
        if found:
            return found[-1]
    return _PIECE_CHARS


def _interactions(wish: RecordWish) -> list[Interaction]:
    if (wish.text is None) == (wish.file is None):
        raise InvalidInput("record", "a TEXT or a --file", "both" if wish.text is not None else "neither")
    if wish.id and wish.file is not None:
        raise InvalidInput("--id", "a TEXT, since parts of a file have ids of their own", "a --file")
    owner, consent, now_ms = (
        UserKey(wish.tenant, wish.user),
        Consent(learn=True, share=wish.is_shared),
        SystemClock().now_ms(),
    )
    if wish.text is not None:
        kind = InteractionKind.DOCUMENT if wish.is_document else InteractionKind.CONVERSATION
        told = (Message(Role.USER, wish.text),)
        return [Interaction(wish.id or uuid.uuid4().hex, owner, kind, now_ms, told, consent=consent)]
    assert wish.file is not None
    # An id that the content gives is known again, also when it was erased; one that chance gives never is.
    chance = [uuid.uuid4().hex] if wish.is_again else []
    return [
        Interaction(
            stable_id("file", wish.tenant, wish.user, number, piece, *chance),
            owner,
            InteractionKind.DOCUMENT,
            now_ms,
            (Message(Role.USER, piece),),
            consent=consent,
        )
        for number, piece in enumerate(pieces(_read(wish.file)))
    ]


async def _record_all(
    client: SiltstoneClient, interactions: Sequence[Interaction], wish: RecordWish, status: Status
) -> list[Receipt]:
    """Records everything, then waits for it, a few at a time; the status tells how far it is.

    Waiting is sending the same ids again: so what is recorded is known at once, however long it takes to learn.
    """
    total = counted(len(interactions), "interaction")
    receipts: list[Receipt] = []
    absorbed: list[Receipt] = []
    try:
        for part in _parts(interactions, _RECORDED_PER_CALL):
            receipts += await _record_part(client, part, is_first=not receipts)
            status.update(f"recorded {len(receipts):,} of {total}")
        for part in _parts(interactions, _AWAITED_PER_CALL) if wish.is_waiting else ():
            absorbed += await client.record(part, wait_absorbed=True)
            status.update(f"absorbed {len(absorbed):,} of {total}")
    except asyncio.CancelledError:
        told = f"stopped: recorded {len(receipts):,} of {total}, {len(absorbed):,} of them known to be absorbed"
        status.console.print(f"{told}; what is recorded is learned all the same", soft_wrap=True)
        if wish.text is not None and not receipts:
            _tell_id(interactions[0], status)
        raise
    except Unavailable:
        if wish.text is not None and receipts:
            status.console.print("it is recorded, and is learned once the server can", soft_wrap=True)
        elif wish.text is not None:
            _tell_id(interactions[0], status)
        raise
    return [
        Receipt(first.interaction_id, first.partition, first.position, first.duplicate, then.parked)
        for first, then in zip(receipts, absorbed or receipts, strict=True)
    ]


def _tell_id(interaction: Interaction, status: Status) -> None:
    told = f"it may be recorded: said again with --id {interaction.id} it is recorded once"
    status.console.print(told, soft_wrap=True, markup=False)


async def _record_part(client: SiltstoneClient, part: Sequence[Interaction], *, is_first: bool) -> list[Receipt]:
    while True:
        try:
            return await client.record(part)
        except Overloaded as error:
            # After the first part it is this file itself that fills the journal.
            if is_first:
                raise
            await asyncio.sleep(error.retry_after_s)


def _parts(interactions: Sequence[Interaction], size: int) -> Iterator[Sequence[Interaction]]:
    for start in range(0, len(interactions), size):
        yield interactions[start : start + size]


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
    if "\0" in text:
        raise InvalidInput("--file", "text", f"a NUL character at {text.index(chr(0))}")
    return text


def _tell(receipts: list[Receipt], is_waiting: bool, anew: str = "--again") -> None:
    """Prints what became of what was recorded; `anew` is what lets it be learned once more.

    Raises: typer.Exit when some of it was parked.
    """
    parked = [receipt.parked for receipt in receipts if receipt.parked is not None]
    num_known = sum(receipt.duplicate for receipt in receipts)
    num_new = sum(not receipt.duplicate and receipt.parked is None for receipt in receipts)
    told = [f"{'absorbed' if is_waiting else 'recorded'} {counted(num_new, 'interaction')}"]
    if parked:
        told.append(f"{len(parked):,} parked")
    if num_known:
        told.append(f"{num_known:,} known already, or forgotten since; {anew} learns it anew")
    last = receipts[-1]
    place = f"journal partition {last.partition}, position {last.position}"
    out().print(f"{', '.join(told)}; {place}", soft_wrap=True)
    for why in dict.fromkeys(parked):
        err().print(f"parked: {why.reason}: {why.detail}", soft_wrap=True, markup=False)
    if parked:
        raise typer.Exit(PARKED)
