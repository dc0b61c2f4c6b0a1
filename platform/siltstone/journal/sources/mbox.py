"""Reads mail from an mbox file: each mail a document of its sender, without quotes and signature."""

from __future__ import annotations

import email
import email.utils
import mailbox
import re
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC
from email.errors import MessageError
from email.message import Message as Mail
from pathlib import Path

from siltstone.journal.sources.source import Skipped, SkipReason, SourceOptions, pseudonym, sendable, stable_id
from siltstone.values import Interaction, InteractionKind, Message, Role, UserKey

_ADDRESS = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_ATTRIBUTION = re.compile(r"\s*(?:On|Am|Le|El|Il|Op|Den)\b.{1,300}:\s*|.{1,200}\b(?:wrote|writes|schrieb|écrit)\s?:\s*")
_FORWARDED = re.compile(r"-{2,} ?(?:Original Message|Forwarded message).*", re.IGNORECASE)
_MAIL_ERRORS = (MessageError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What the standard library's mail parser is known to raise on mail that does not keep to the rules."""


def read_mbox(path: Path, options: SourceOptions) -> Iterator[Interaction | Skipped]:
    """Reads a mailbox in the order it is kept in.

    Addresses, in the sender line and in the text, are replaced by hashed names; names written out in the text are not.
    The first plain-text part is the text. Only the mail being read is in memory, and the offsets of the others.
    """
    try:
        box = mailbox.mbox(path, create=False)
    except (OSError, mailbox.Error):
        yield Skipped(SkipReason.MALFORMED, path.name)
        return
    with closing(box):
        for number, key in enumerate(box.iterkeys(), start=1):
            where = f"{path.name}:{number}"
            with closing(box.get_file(key)) as stream:
                data = stream.read(options.max_entry_bytes + 1)
            if len(data) > options.max_entry_bytes:
                yield Skipped(SkipReason.TOO_LARGE, where)
                continue
            try:
                yield _read_mail(data, where, options)
            except _MAIL_ERRORS:
                yield Skipped(SkipReason.MALFORMED, where)


def _read_mail(data: bytes, where: str, options: SourceOptions) -> Interaction | Skipped:
    mail = email.message_from_bytes(data)
    sender = email.utils.parseaddr(str(mail.get("From", "")))[1]
    if "@" not in sender:
        return Skipped(SkipReason.INVALID_ID, where)
    written = own_words(sendable(_plain_text(mail)))
    if not written:
        return Skipped(SkipReason.EMPTY, where)
    message_id = str(mail.get("Message-ID", "")).strip()
    return Interaction(
        id=stable_id("mail", message_id or data),
        owner=UserKey(options.tenant, pseudonym(sender, options.salt)),
        kind=InteractionKind.DOCUMENT,
        occurred_at_ms=_sent_at_ms(str(mail.get("Date", "")), options.default_at_ms),
        messages=(Message(Role.USER, _ADDRESS.sub(lambda found: pseudonym(found[0], options.salt), written)),),
        consent=options.consent,
    )


def own_words(text: str) -> str:
    """Returns what the sender wrote: no quoted lines, no line announcing them, no signature, nothing forwarded."""
    lines = text.replace("\r\n", "\n").split("\n")
    kept: list[str] = []
    for number, line in enumerate(lines):
        if line.rstrip("\r") in ("-- ", "--") or _FORWARDED.fullmatch(line.strip()):
            break
        if line.startswith(">From "):
            # The mailbox itself writes ">From " for a line that begins with "From ".
            kept.append(line[1:])
        elif not line.startswith(">") and not _announces_quote(lines, number):
            kept.append(line.rstrip())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()


def _announces_quote(lines: list[str], number: int) -> bool:
    """Says whether this line, alone or with the next one, is an "On Monday Ann wrote:" above a quote."""
    following = [line for line in lines[number + 1 : number + 4] if line.strip()]
    if not following:
        return False
    if following[0].startswith(">"):
        return _ATTRIBUTION.fullmatch(lines[number]) is not None or _ends_attribution(lines, number)
    return len(following) > 1 and following[1].startswith(">") and _starts_attribution(lines[number], following[0])


def _starts_attribution(line: str, following: str) -> bool:
    return line.startswith("On ") and _ATTRIBUTION.fullmatch(f"{line} {following}") is not None


def _ends_attribution(lines: list[str], number: int) -> bool:
    return number > 0 and _starts_attribution(lines[number - 1], lines[number])


def _plain_text(mail: Mail) -> str:
    for part in mail.walk():
        if part.get_content_type() == "text/plain" and part.get_content_disposition() != "attachment":
            payload = part.get_payload(decode=True)
            if not isinstance(payload, bytes):
                return ""
            try:
                return payload.decode(part.get_content_charset("utf-8"), "replace")
            except (LookupError, ValueError):
                # Unknown, or known to Python but no charset of mail ("undefined", "idna").
                return payload.decode("utf-8", "replace")
    return ""


def _sent_at_ms(date: str, default_at_ms: int) -> int:
    try:
        sent = email.utils.parsedate_to_datetime(date)
    except (ValueError, TypeError, OverflowError):
        return default_at_ms
    try:
        return max(0, int((sent if sent.tzinfo else sent.replace(tzinfo=UTC)).timestamp() * 1000))
    except (ValueError, OverflowError):
        return default_at_ms
