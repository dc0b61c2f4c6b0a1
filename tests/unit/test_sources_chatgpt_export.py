from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siltstone.errors import InvalidInput
from siltstone.journal.admit import encode
from siltstone.journal.sources import Skipped, SkipReason, SourceOptions, open_source
from siltstone.values import Interaction, InteractionKind, Message, Role, UserKey

Node = dict[str, Any]


def _node(name: str, parent: str | None, role: str, *parts: object, **fields: object) -> Node:
    content = {"content_type": fields.pop("content_type", "text"), "parts": list(parts)}
    message = {"id": name, "author": {"role": role}, "content": content, "create_time": 1_700_000_000.5} | fields
    return {"id": name, "parent": parent, "children": [], "message": message}


def _conversation(*nodes: Node, current: str | None = None) -> dict[str, Any]:
    mapping = {"root": {"id": "root", "parent": None, "children": [], "message": None}}
    mapping |= {node["id"]: node for node in nodes}
    for node in nodes:
        mapping[node["parent"]]["children"].append(node["id"])
    return {"title": "t", "mapping": mapping, "current_node": current}


DOGS = _conversation(
    _node("s", "root", "system", "You are kind.", weight=0),
    _node("u1", "s", "user", "My dog is called", "Biscuit."),
    _node("old", "u1", "assistant", "An answer that was asked for again."),
    _node("call", "u1", "assistant", "search('dog')", recipient="browser"),
    _node("tool", "call", "tool", "found"),
    _node("thought", "tool", "assistant", "hm", content_type="thoughts"),
    _node("a1", "thought", "assistant", "A fine name."),
    _node("a2", "a1", "assistant", "Truly."),
    _node("picture", "a2", "user", {"asset_pointer": "x"}, "Look at him", content_type="multimodal_text"),
    _node("not valid!", "picture", "assistant", "Sweet.", create_time=None),
    _node("u3", "not valid!", "user", "Unanswered"),
    current="u3",
)


def _read(path: Path, **options: object) -> list[Interaction | Skipped]:
    return list(open_source("chatgpt-export", path, SourceOptions(user="ann", **options)))  # type: ignore[arg-type]


def _export(folder: Path, *conversations: object) -> Path:
    file = folder / "conversations.json"
    file.write_text(json.dumps(list(conversations)))
    return file


def test_each_exchange_on_the_branch_last_seen_is_a_conversation(tmp_path: Path) -> None:
    first, second, rest = _read(_export(tmp_path, DOGS))
    assert first == Interaction(
        "a2",
        UserKey("replay", "ann"),
        InteractionKind.CONVERSATION,
        1_700_000_000_500,
        (Message(Role.USER, "My dog is called\nBiscuit."), Message(Role.ASSISTANT, "A fine name.\n\nTruly.")),
    )
    assert isinstance(second, Interaction)
    assert second.id.startswith("chatgpt-")
    assert second.messages == (Message(Role.USER, "Look at him"), Message(Role.ASSISTANT, "Sweet."))
    assert rest == Skipped(SkipReason.UNANSWERED, "conversations.json:1")


def test_another_current_node_shows_the_other_branch_and_none_shows_the_newest(tmp_path: Path) -> None:
    (old,) = _read(_export(tmp_path, DOGS | {"current_node": "old"}))
    assert isinstance(old, Interaction)
    assert old.messages[1].text == "An answer that was asked for again."
    nodes = (
        _node("q", "root", "user", "Where?"),
        _node("early", "q", "assistant", "There.", create_time=1.0),
        _node("late", "q", "assistant", "Here.", create_time=2.0),
    )
    (newest,) = _read(_export(tmp_path, _conversation(*nodes)))
    assert isinstance(newest, Interaction)
    assert newest.messages[1].text == "Here."


def test_damaged_conversations_are_skipped_and_the_rest_is_read(tmp_path: Path) -> None:
    circle = _conversation(_node("u", "root", "user", "x"), _node("a", "u", "assistant", "y"), current="a")
    circle["mapping"]["u"]["parent"] = "a"
    odd = _conversation(_node("n", "root", "user", 5, None, ["x"]), current="n")
    odd["mapping"]["n"]["message"]["author"] = "nobody"
    large = _conversation(_node("big", "root", "user", "x" * 50_000), current="big")
    entries = _read(
        _export(tmp_path, 7, "text", None, {}, {"mapping": []}, circle, odd, large, DOGS), max_entry_bytes=20_000
    )
    skipped = [(entry.reason, entry.where[-1]) for entry in entries if isinstance(entry, Skipped)]
    malformed = [(SkipReason.MALFORMED, str(number)) for number in range(1, 6)]
    assert skipped == [*malformed, (SkipReason.TOO_LARGE, "8"), (SkipReason.UNANSWERED, "9")]
    assert [entry.id for entry in entries if isinstance(entry, Interaction)][:2] == ["a", "a2"]


@pytest.mark.parametrize("data", [b"", b"{}", b"7", b"no json", b"[{", b"[1e999999]", b'["\xff"]', b"[" * 5000])
def test_what_is_no_export_is_skipped(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "conversations.json"
    file.write_bytes(data)
    assert [entry.reason for entry in _read(file) if isinstance(entry, Skipped)] == [SkipReason.MALFORMED]


@given(st.integers(0, 3000), st.binary(max_size=6))
def test_no_damage_stops_an_export_with_an_error(
    tmp_path_factory: pytest.TempPathFactory, place: int, junk: bytes
) -> None:
    file = _export(tmp_path_factory.mktemp("export"), DOGS)
    data = file.read_bytes()
    file.write_bytes(data[:place] + junk + data[place + len(junk) :])
    for entry in _read(file):
        assert isinstance(entry, Skipped) or encode(entry)


_ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["role", "parts", "x"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@given(st.sampled_from(["id", "author", "content", "create_time", "weight", "recipient", "metadata"]), _ANY_JSON)
def test_no_unexpected_value_stops_an_export_with_an_error(
    tmp_path_factory: pytest.TempPathFactory, field: str, value: object
) -> None:
    strange = json.loads(json.dumps(DOGS))
    strange["mapping"]["a1"]["message"][field] = value
    if isinstance(value, dict):
        strange["mapping"]["a1"]["message"]["content"] = {"content_type": value, "parts": value.get("parts")}
    strange["mapping"]["picture"]["parent"] = value if field == "id" else "a2"
    file = _export(tmp_path_factory.mktemp("export"), strange, DOGS)
    entries = _read(file)
    assert all(isinstance(entry, Skipped) or encode(entry) for entry in entries)
    assert entries[-1] == Skipped(SkipReason.UNANSWERED, "conversations.json:2")


def test_what_comes_before_the_damage_is_kept(tmp_path: Path) -> None:
    file = _export(tmp_path, DOGS, DOGS)
    file.write_bytes(file.read_bytes()[:-50])
    entries = _read(file)
    assert next(entry.id for entry in entries if isinstance(entry, Interaction)) == "a2"
    assert len(entries) == 4
    assert entries[-1] == Skipped(SkipReason.MALFORMED, "conversations.json:2")


def test_a_large_export_is_read_in_the_memory_of_a_conversation(tmp_path: Path) -> None:
    conversation = _conversation(
        _node("u", "root", "user", "x" * 20_000), _node("a", "u", "assistant", "y" * 20_000), current="a"
    )
    file = _export(tmp_path, *[conversation] * 100)

    def peak(held: bool) -> int:
        entries = open_source("chatgpt-export", file, SourceOptions(user="ann"))
        tracemalloc.start()
        num = len(list(entries)) if held else sum(1 for _ in entries)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert num == 100
        return peak_bytes

    assert peak(held=False) < 1_000_000
    assert peak(held=True) > 2_000_000, "the control: the measure sees what is held"


def test_an_export_needs_to_be_somebodys(tmp_path: Path) -> None:
    file = _export(tmp_path, DOGS)
    for user in ("", "a/b", "a" * 10_000):
        with pytest.raises(InvalidInput, match="user"):
            open_source("chatgpt-export", file, SourceOptions(user=user))
