from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from siltstone.errors import InvalidInput, NotFound
from siltstone.journal.admit import encode
from siltstone.journal.sources import Skipped, SkipReason, SourceOptions, open_source
from siltstone.values import Consent, Interaction, InteractionKind, Message, Role, UserKey

ANN = UserKey("acme", "ann")


def _read(path: Path, **options: object) -> list[Interaction | Skipped]:
    return list(open_source("jsonl", path, SourceOptions(**options)))  # type: ignore[arg-type]


def _write(path: Path, *lines: bytes | dict[str, object]) -> Path:
    file = path / "stream.jsonl"
    file.write_bytes(
        b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    )
    return file


def test_what_the_journal_writes_is_read_back_as_it_was(tmp_path: Path) -> None:
    said = Interaction(
        "i-1",
        ANN,
        InteractionKind.CORRECTION,
        1_700_000_000_000,
        (Message(Role.USER, "Where do I live?"), Message(Role.ASSISTANT, "In Rome.")),
        "In Lisboa, near the «river».",
        Consent(learn=True, share=True),
    )
    assert _read(_write(tmp_path, encode(said))) == [said]


def test_the_simple_forms_give_documents_and_conversations(tmp_path: Path) -> None:
    file = _write(
        tmp_path,
        {"user": "ann", "text": "My dog is called Biscuit."},
        {
            "user": "bob",
            "id": "given",
            "tenant": "acme",
            "occurred_at_ms": 7,
            "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "text": "Hello"}],
        },
    )
    document, conversation = _read(file, default_at_ms=5, consent=Consent(share=True))
    assert isinstance(document, Interaction)
    assert (document.owner, document.kind) == (UserKey("replay", "ann"), InteractionKind.DOCUMENT)
    assert (document.occurred_at_ms, document.consent.share) == (5, True)
    assert document.messages == (Message(Role.USER, "My dog is called Biscuit."),)
    assert conversation == Interaction(
        "given",
        UserKey("acme", "bob"),
        InteractionKind.CONVERSATION,
        7,
        (Message(Role.USER, "Hi"), Message(Role.ASSISTANT, "Hello")),
        consent=Consent(share=True),
    )


def test_ids_are_the_same_when_a_file_is_read_again_and_differ_between_equal_lines(tmp_path: Path) -> None:
    line: dict[str, object] = {"user": "ann", "text": "again"}
    first, second = (entry.id for entry in _read(_write(tmp_path, line, line)) if isinstance(entry, Interaction))
    assert first != second
    grown = _read(_write(tmp_path, line, line, {"user": "ann", "text": "more"}))
    assert [entry.id for entry in grown[:2] if isinstance(entry, Interaction)] == [first, second]


def test_each_damaged_line_is_skipped_with_its_place_and_the_rest_is_read(tmp_path: Path) -> None:
    file = _write(
        tmp_path,
        b"{not json",
        b"\xff\xfe\x00",
        b"[1, 2]",
        b"[" * 100_000,
        {"user": "ann"},
        {"user": "ann", "text": 3},
        {"user": "ann", "text": "x", "occurred_at_ms": "now"},
        {"user": "ann", "messages": [{"role": "wizard", "text": "x"}]},
        {"user": "ann", "messages": "x"},
        {"schema_version": 99, "user": "ann", "text": "x"},
        b'{"user": "ann", "text": "\\ud800"}',
        {"user": "a/b", "text": "x"},
        {"user": "a" * 10_000, "text": "x"},
        b"",
        {"user": "ann", "text": "y" * 200_000},
        {"user": "ann", "text": "still here"},
    )
    *skipped, last = _read(file, max_entry_bytes=150_000)
    wanted = [SkipReason.MALFORMED] * 11 + [SkipReason.INVALID_ID] * 2 + [SkipReason.TOO_LARGE]
    assert [entry.reason for entry in skipped if isinstance(entry, Skipped)] == wanted
    lines = [*range(1, 14), 15]
    assert [entry.where for entry in skipped if isinstance(entry, Skipped)] == [f"stream.jsonl:{n}" for n in lines]
    assert isinstance(last, Interaction)
    assert last.messages[0].text == "still here"


def test_a_long_file_is_read_in_the_memory_of_a_line(tmp_path: Path) -> None:
    file = tmp_path / "long.jsonl"
    line = json.dumps({"user": "ann", "text": "word " * 200}).encode() + b"\n"
    with file.open("wb") as stream:
        stream.writelines(line for _ in range(1500))

    def peak(held: bool) -> int:
        entries = open_source("jsonl", file, SourceOptions())
        tracemalloc.start()
        num = len(list(entries)) if held else sum(1 for _ in entries)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert num == 1500
        return peak_bytes

    assert peak(held=False) < 200_000
    assert peak(held=True) > 1_000_000, "the control: the measure sees what is held"


def test_a_line_without_end_is_never_held_whole(tmp_path: Path) -> None:
    file = tmp_path / "endless.jsonl"
    file.write_bytes(b"x" * 8_000_000)
    tracemalloc.start()
    (only,) = _read(file, max_entry_bytes=10_000)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert only == Skipped(SkipReason.TOO_LARGE, "endless.jsonl:1")
    assert peak_bytes < 500_000


def test_what_cannot_be_opened_is_said_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="expected one of jsonl, irc, mbox, chatgpt-export"):
        open_source("csv", tmp_path, SourceOptions())
    with pytest.raises(NotFound):
        open_source("jsonl", tmp_path / "none.jsonl", SourceOptions())
    assert _read(tmp_path) == [Skipped(SkipReason.MALFORMED, tmp_path.name)], "a folder holds no lines"
