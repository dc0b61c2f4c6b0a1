from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siltstone.journal.admit import AdmissionLimits, check, encode
from siltstone.journal.sources import Skipped, SkipReason, SourceOptions, open_source
from siltstone.journal.sources.mbox import own_words
from siltstone.journal.sources.source import pseudonym
from siltstone.values import Interaction, InteractionKind, Message, Role

MBOX = b"""\
From ann@example.org Fri Jan 19 05:29:00 2007
From: Ann Example <Ann@Example.org>
To: list@example.org
Subject: dogs
Date: Fri, 19 Jan 2007 05:29:00 +0100
Message-ID: <1@example.org>
Content-Type: multipart/alternative; boundary="b"

--b
Content-Type: text/html

<p>not this</p>
--b
Content-Type: text/plain; charset=iso-8859-1
Content-Transfer-Encoding: quoted-printable

My dog is called M=FCsli. Write to ann@example.org.
>From here on he is older.

On Thu, 18 Jan 2007 at 10:00, Bob Builder
<bob@example.org> wrote:
> What is your dog called?
>> Which dog?

--\x20
Ann Example, 12 Secret Street
--b--

From bob@example.org Sat Jan 20 05:29:00 2007
From: bob@example.org
Date: nonsense
Content-Type: text/plain; charset=no-such-charset

Hello there

-----Original Message-----
From: someone

From nobody Sat Jan 20 05:29:00 2007
From: undisclosed
Date: Sat, 20 Jan 2007 05:29:00 +0000

Who am I?

From bob@example.org Sat Jan 20 05:29:00 2007
From: bob@example.org

> only a quote

From bob@example.org Sat Jan 20 05:29:00 2007
From: bob@example.org
Message-ID: <last@example.org>

last
"""


def _read(path: Path, **options: object) -> list[Interaction | Skipped]:
    return list(open_source("mbox", path, SourceOptions(**options)))  # type: ignore[arg-type]


def _box(folder: Path, data: bytes = MBOX) -> Path:
    file = folder / "mail.mbox"
    file.write_bytes(data)
    return file


def test_mails_become_documents_of_hashed_senders_in_their_own_words(tmp_path: Path) -> None:
    first, second, unknown, quote, last = _read(_box(tmp_path), salt="s", default_at_ms=9)
    ann, bob = pseudonym("ann@example.org", "s"), pseudonym("bob@example.org", "s")
    assert isinstance(first, Interaction)
    assert (first.owner.user, first.kind) == (ann, InteractionKind.DOCUMENT)
    assert first.messages == (
        Message(Role.USER, f"My dog is called Müsli. Write to {ann}.\nFrom here on he is older."),
    )
    assert first.occurred_at_ms == int(datetime(2007, 1, 19, 4, 29, tzinfo=UTC).timestamp() * 1000)
    assert isinstance(second, Interaction)
    assert (second.owner.user, second.occurred_at_ms, second.messages[0].text) == (bob, 9, "Hello there")
    assert unknown == Skipped(SkipReason.INVALID_ID, "mail.mbox:3")
    assert quote == Skipped(SkipReason.EMPTY, "mail.mbox:4")
    assert isinstance(last, Interaction)
    assert check(first, AdmissionLimits()) is check(last, AdmissionLimits()) is None


def test_ids_follow_the_message_and_not_its_place(tmp_path: Path) -> None:
    first, *_, last = _read(_box(tmp_path))
    cut = MBOX[MBOX.rindex(b"From bob@") :]
    assert _read(_box(tmp_path, cut)) == [last]
    assert isinstance(first, Interaction)
    assert isinstance(last, Interaction)
    assert first.id != last.id


def test_a_mail_larger_than_allowed_is_skipped_and_the_next_is_read(tmp_path: Path) -> None:
    large = b"From x Fri Jan 19 05:29:00 2007\nFrom: ann@example.org\n\n" + b"long line\n" * 10_000 + b"\n"
    entries = _read(_box(tmp_path, large + MBOX), max_entry_bytes=50_000)
    assert entries[0] == Skipped(SkipReason.TOO_LARGE, "mail.mbox:1")
    assert len(entries) == 6


@pytest.mark.parametrize(
    ("text", "own"),
    [
        ("Yes.\n\n> No?\n", "Yes."),
        ("Ann wrote:\n> No?\nYes.", "Yes."),
        ("On Monday I wrote:\nthe plan", "On Monday I wrote:\nthe plan"),
        ("a\n\n\n\n\nb\r\n--\r\nsign", "a\n\nb"),
        ("a -- b\n--- c", "a -- b\n--- c"),
    ],
)
def test_own_words_are_what_is_neither_quoted_nor_signed(text: str, own: str) -> None:
    assert own_words(text) == own


@pytest.mark.parametrize("charset", [b"no-such", b"undefined", b"idna", b'"a\0b"', b"*0=utf-8'"])
def test_a_mail_in_an_unusable_charset_is_read_as_utf_8(tmp_path: Path, charset: bytes) -> None:
    head = b"From x Fri Jan 19 05:29:00 2007\nFrom: ann@example.org\nContent-Type: text/plain; charset="
    (mail,) = _read(_box(tmp_path, head + charset + "\n\nMüsli\n".encode()))
    assert isinstance(mail, Interaction)
    assert mail.messages[0].text == "Müsli"


def test_a_mail_nested_too_deep_to_parse_is_skipped_and_the_next_is_read(tmp_path: Path) -> None:
    nested = b"From x Fri Jan 19 05:29:00 2007\n" + b"Content-Type: message/rfc822\n\n" * 1_500 + b"\n\n"
    entries = _read(_box(tmp_path, nested + MBOX))
    assert entries[0] == Skipped(SkipReason.MALFORMED, "mail.mbox:1")
    assert len(entries) == 6


_DAMAGE = st.sampled_from(
    [b"Date: 99", b"From: <", b"charset=", b"boundary=", b"\xff\xfe", b"=?utf-8?b?", b"\0", b"\n\n", b"base64", b";"]
)


@given(st.lists(st.tuples(st.integers(0, len(MBOX)), _DAMAGE), max_size=8), st.binary(max_size=40))
def test_no_damage_stops_a_mailbox_half_way(
    tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[int, bytes]], tail: bytes
) -> None:
    data = MBOX
    for place, junk in damage:
        data = data[:place] + junk + data[place:]
    for entry in _read(_box(tmp_path_factory.mktemp("mail"), data + tail)):
        assert isinstance(entry, Skipped) or encode(entry)
