from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siltstone.errors import InvalidInput
from siltstone.journal.admit import AdmissionLimits, Refusal, admit, check, decode, encode, park_reason
from siltstone.values import Consent, Interaction, InteractionKind, Message, ParkReason, Role, UserKey

LIMITS = AdmissionLimits()
QUESTION = Message(Role.USER, "Where were you born?")
ANSWER = Message(Role.ASSISTANT, "In Lisbon.")
SYSTEM = Message(Role.SYSTEM, "Be brief.")


def interaction(kind=InteractionKind.CONVERSATION, messages=(QUESTION, ANSWER), **changes):
    correction = "In Porto." if kind is InteractionKind.CORRECTION else ""
    made = Interaction("i1", UserKey("office", "ada"), kind, 1_700_000_000_000, tuple(messages), correction)
    return replace(made, **changes)


def changed(path, value):
    """A payload with one field set, or taken away when `value` is Ellipsis."""
    fields = json.loads(encode(interaction()))
    *parents, last = path
    place = fields
    for name in parents:
        place = place[name]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return json.dumps(fields).encode()


ids = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._@:+=-]{0,20}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40).filter(
    lambda text: text.strip()
)
messages = st.lists(st.builds(Message, st.sampled_from([Role.USER, Role.ASSISTANT]), texts), min_size=1, max_size=6)


@st.composite
def sound_interactions(draw):
    kind = draw(st.sampled_from(list(InteractionKind)))
    exchange = [*draw(st.sampled_from([[], [SYSTEM]])), *draw(messages), ANSWER]
    turns = exchange[-1:] if kind is InteractionKind.DOCUMENT else exchange
    return Interaction(
        draw(ids),
        UserKey(draw(ids), draw(ids)),
        kind,
        draw(st.integers(0, 2**45)),
        tuple(turns),
        draw(texts) if kind is InteractionKind.CORRECTION else "",
        Consent(True, draw(st.booleans())),
    )


@given(sound_interactions())
def test_a_sound_interaction_is_admitted_and_comes_back_the_same(sound):
    assert check(sound, LIMITS) is None
    assert decode(encode(sound)) == sound
    assert admit(encode(sound), LIMITS) == sound


@given(sound_interactions())
def test_the_encoding_is_canonical(sound):
    payload = encode(sound)
    assert encode(decode(payload)) == payload
    shuffled = dict(reversed(json.loads(payload).items()))
    assert encode(decode(json.dumps(shuffled, indent=2).encode())) == payload


def test_the_encoding_is_what_the_format_says():
    assert (
        encode(interaction(messages=(Message(Role.USER, "Ü\n"), ANSWER)))
        == (
            '{"consent":{"learn":true,"share":false},"correction":"","id":"i1","kind":"conversation",'
            '"messages":[{"role":"user","text":"Ü\\n"},{"role":"assistant","text":"In Lisbon."}],'
            '"occurred_at_ms":1700000000000,"schema_version":1,"tenant":"office","user":"ada"}'
        ).encode()
    )


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_as_a_value(payload):
    result = admit(payload, LIMITS)
    assert isinstance(result, Refusal)
    # "{}" is JSON, though of no schema.
    assert result.reason in (ParkReason.UNDECODABLE, ParkReason.UNKNOWN_SCHEMA)


@given(st.data())
def test_a_damaged_payload_is_refused_as_a_value_or_admitted_whole(data):
    payload = bytearray(encode(interaction()))
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    result = admit(bytes(payload), LIMITS)
    assert isinstance(result, Refusal) or check(result, LIMITS) is None


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (["schema_version"], 2, ParkReason.UNKNOWN_SCHEMA),
        (["schema_version"], 0, ParkReason.UNKNOWN_SCHEMA),
        (["schema_version"], "1", ParkReason.UNKNOWN_SCHEMA),
        (["schema_version"], True, ParkReason.UNKNOWN_SCHEMA),
        (["schema_version"], ..., ParkReason.UNKNOWN_SCHEMA),
        (["kind"], "gossip", ParkReason.UNKNOWN_KIND),
        (["kind"], None, ParkReason.UNKNOWN_KIND),
        (["kind"], ..., ParkReason.UNDECODABLE),
        (["messages", 0, "role"], "tool", ParkReason.WRONG_ROLES),
        (["messages", 0, "role"], 1, ParkReason.WRONG_ROLES),
        (["messages", 0, "text"], 5, ParkReason.UNDECODABLE),
        (["messages", 0, "text"], "a\0b", ParkReason.UNDECODABLE),
        (["messages", 0, "text"], "\udc00", ParkReason.UNDECODABLE),
        (["messages", 0, "text"], " \n", ParkReason.EMPTY),
        (["messages", 0], "hello", ParkReason.UNDECODABLE),
        (["messages"], {}, ParkReason.UNDECODABLE),
        (["messages"], [], ParkReason.EMPTY),
        (["messages", 0, "colour"], "red", ParkReason.UNDECODABLE),
        (["colour"], "red", ParkReason.UNDECODABLE),
        (["id"], "a/b", ParkReason.UNDECODABLE),
        (["id"], 7, ParkReason.UNDECODABLE),
        (["user"], "u" * 10_000, ParkReason.UNDECODABLE),
        (["user"], "../ada", ParkReason.UNDECODABLE),
        (["tenant"], "", ParkReason.UNDECODABLE),
        (["occurred_at_ms"], 1.5, ParkReason.UNDECODABLE),
        (["occurred_at_ms"], -1, ParkReason.UNDECODABLE),
        (["occurred_at_ms"], 10**18, ParkReason.UNDECODABLE),
        (["occurred_at_ms"], float("nan"), ParkReason.UNDECODABLE),
        (["correction"], "stray", ParkReason.UNDECODABLE),
        (["consent"], True, ParkReason.UNDECODABLE),
        (["consent", "learn"], 1, ParkReason.UNDECODABLE),
        (["consent", "learn"], False, ParkReason.NO_CONSENT),
        (["consent", "learn"], ..., ParkReason.UNDECODABLE),
    ],
)
def test_a_wrong_field_is_refused_with_its_reason(path, value, reason):
    result = admit(changed(path, value), LIMITS)
    assert isinstance(result, Refusal)
    assert result.reason is reason
    assert "expected" in result.detail
    assert "found" in result.detail


@pytest.mark.parametrize(
    "payload",
    [b"", b"null", b"[]", b"{}", b"[" * 100_000, b"\xff\xfe", b"9" * 5_000, b'{"schema_version":1,"schema_version":1}'],
)
def test_what_is_no_interaction_is_refused(payload):
    result = admit(payload, LIMITS)
    assert isinstance(result, Refusal)
    assert result.reason in (ParkReason.UNDECODABLE, ParkReason.UNKNOWN_SCHEMA)


@pytest.mark.parametrize(
    ("unsound", "reason"),
    [
        (interaction(InteractionKind.DOCUMENT), ParkReason.WRONG_ROLES),
        (interaction(messages=[SYSTEM]), ParkReason.WRONG_ROLES),
        (interaction(messages=[QUESTION, SYSTEM, ANSWER]), ParkReason.WRONG_ROLES),
        (interaction(InteractionKind.CORRECTION, [ANSWER, QUESTION]), ParkReason.WRONG_ROLES),
        (interaction(InteractionKind.THUMB_UP, [QUESTION]), ParkReason.WRONG_ROLES),
        (interaction(InteractionKind.THUMB_DOWN, [QUESTION]), ParkReason.WRONG_ROLES),
        (interaction(InteractionKind.CORRECTION, correction=" "), ParkReason.EMPTY),
        (interaction(messages=[]), ParkReason.EMPTY),
        (interaction(consent=Consent(learn=False, share=True)), ParkReason.NO_CONSENT),
        (interaction(schema_version=2), ParkReason.UNKNOWN_SCHEMA),
    ],
)
def test_an_unsound_interaction_is_refused_with_its_reason(unsound, reason):
    refusal = check(unsound, LIMITS)
    assert refusal is not None
    assert refusal.reason is reason
    assert admit(encode(unsound), LIMITS) == refusal


def test_size_is_counted_in_bytes_of_all_texts_and_the_limit_is_allowed():
    limits = AdmissionLimits(max_text_bytes=20, max_messages=2)
    sound = interaction(messages=[Message(Role.USER, "ä" * 5), Message(Role.ASSISTANT, "b" * 10)])
    assert check(sound, limits) is None
    for one_more in (
        replace(sound, messages=(sound.messages[0], Message(Role.ASSISTANT, "b" * 11))),
        replace(sound, messages=(*sound.messages, Message(Role.USER, "c"))),
        replace(sound, kind=InteractionKind.CORRECTION, correction="d"),
    ):
        refusal = check(one_more, limits)
        assert refusal is not None
        assert refusal.reason is ParkReason.TOO_LARGE


def test_an_enormous_payload_is_refused_before_it_is_read():
    result = admit(b"[" * 50_000_000, LIMITS)
    assert result == Refusal(ParkReason.TOO_LARGE, "payload: expected at most 524288 bytes, found 50000000 bytes")


def test_no_admitted_text_exceeds_the_payload_limit():
    worst = interaction(InteractionKind.DOCUMENT, [Message(Role.USER, "x" + "\x01" * (LIMITS.max_text_bytes - 1))])
    assert check(worst, LIMITS) is None
    assert admit(encode(worst), LIMITS) == worst


def test_a_refusal_does_not_repeat_a_users_text():
    secret = "my password is swordfish"
    for unsound in (
        interaction(messages=[Message(Role.USER, secret + "\0"), ANSWER]),
        interaction(messages=[Message(Role.USER, secret * 9_000), ANSWER]),
        interaction(correction=secret),
    ):
        refusal = check(unsound, LIMITS)
        assert refusal is not None
        assert "swordfish" not in refusal.detail


def test_a_lone_surrogate_is_not_encoded():
    with pytest.raises(InvalidInput, match="lone surrogate"):
        encode(interaction(messages=[Message(Role.USER, "\ud800"), ANSWER]))


def test_the_reason_of_an_undecodable_payload_follows_from_its_field():
    with pytest.raises(InvalidInput) as caught:
        decode(changed(["messages", 1, "role"], "tool"))
    assert caught.value.field == "messages[1].role"
    assert park_reason(caught.value) is ParkReason.WRONG_ROLES
