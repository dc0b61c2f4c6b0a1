"""Every value comes back from the wire as it was; what we do not know is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siltstone.errors import Corrupt, InvalidInput
from siltstone.proto.v1 import inference_service_pb2, interaction_pb2, memory_service_pb2
from siltstone.sleep_values import (
    Champion,
    CheckResult,
    MeasurementSummary,
    Night,
    NightStage,
    Verdict,
    VersionCard,
    VersionReport,
    VersionState,
)
from siltstone.values import (
    AnswerEnd,
    AnswerPart,
    Consent,
    Erasure,
    FinishReason,
    GenerateRequest,
    Interaction,
    InteractionKind,
    JournalRecord,
    LevelCard,
    MemoryCard,
    Message,
    Parked,
    ParkReason,
    PartitionView,
    Receipt,
    Role,
    Sampling,
    ShardStatus,
    ShardView,
    Snapshot,
    SnapshotDamage,
    UserExport,
    UserKey,
)
from siltstone.wire import answers, interactions, memories, nights, shards, versions

OWNER = UserKey("office", "ada")
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
COUNT = st.integers(0, 2**31 - 1)
REAL = st.floats(allow_nan=False)
OWNERS = st.builds(UserKey, TEXT, TEXT)
CONSENTS = st.builds(Consent, st.booleans(), st.booleans())
MESSAGES = st.lists(st.builds(Message, st.sampled_from(Role), TEXT), max_size=3).map(tuple)
FEEDBACK = [InteractionKind.CORRECTION, InteractionKind.THUMB_UP, InteractionKind.THUMB_DOWN]

MAYBE = st.none() | REAL
VERSION_CARDS = st.builds(
    VersionCard,
    COUNT,
    TEXT,
    st.sampled_from(VersionState),
    TEXT,
    TEXT,
    COUNT,
    COUNT,
    st.dictionaries(TEXT, COUNT, max_size=3),
    TEXT,
    COUNT,
    TEXT,
    COUNT,
    TEXT,
)
RESULTS = st.builds(CheckResult, TEXT, st.booleans(), TEXT, MAYBE, MAYBE, MAYBE, TEXT, COUNT)
VERDICTS = st.builds(Verdict, TEXT, TEXT, st.booleans(), st.lists(RESULTS, max_size=2).map(tuple))
SUMMARIES = st.builds(MeasurementSummary, TEXT, TEXT, COUNT, MAYBE, MAYBE, MAYBE, st.booleans())


def interactions_of(kinds: Any) -> st.SearchStrategy[Interaction]:
    return st.builds(
        Interaction, TEXT, OWNERS, kinds, st.integers(1, 2**53), MESSAGES, TEXT, CONSENTS, schema_version=st.just(1)
    )


RECEIPTS = st.builds(Receipt, TEXT, COUNT, COUNT, st.booleans())
SAMPLINGS = st.builds(Sampling, COUNT, REAL, REAL, st.integers(0, 2**64 - 1))
REQUESTS = st.builds(
    GenerateRequest,
    OWNERS,
    MESSAGES,
    SAMPLINGS,
    st.sampled_from(["weights", "text", "both"]),
    st.booleans(),
    TEXT,
    CONSENTS,
)
ENDS = st.builds(
    AnswerEnd,
    st.sampled_from(FinishReason),
    TEXT,
    COUNT,
    COUNT,
    COUNT,
    st.lists(TEXT, max_size=3).map(tuple),
    st.none() | RECEIPTS,
)
PLACES = st.lists(st.builds(PartitionView, COUNT, COUNT, COUNT, COUNT, st.booleans()), max_size=3).map(tuple)
SHARDS = st.builds(ShardView, TEXT, TEXT, PLACES, COUNT, COUNT, st.none() | REAL, st.none() | REAL, COUNT)
STATUSES = st.builds(ShardStatus, TEXT, *[COUNT] * 9, REAL)
LEVELS = st.lists(st.builds(LevelCard, TEXT, COUNT, COUNT, COUNT, REAL), max_size=3).map(tuple)
CARDS = st.builds(MemoryCard, OWNERS, TEXT, COUNT, COUNT, COUNT, COUNT, LEVELS, COUNT)
SNAPSHOTS = st.builds(Snapshot.seal, st.just(OWNER), TEXT, COUNT, st.binary(max_size=50))
RECORDS = st.builds(JournalRecord, COUNT, COUNT, st.just(OWNER), TEXT, st.binary(max_size=9))
PARKED = st.builds(Parked, COUNT, COUNT, st.just(OWNER), TEXT, st.sampled_from(ParkReason), TEXT, st.binary(max_size=9))
EXPORTS = st.builds(
    UserExport,
    CARDS,
    st.none() | SNAPSHOTS,
    st.lists(RECORDS, max_size=3).map(tuple),
    st.lists(PARKED, max_size=3).map(tuple),
    st.none() | st.builds(SnapshotDamage, TEXT, TEXT, TEXT),
)


def sent(message: Any) -> Any:
    """The message as the other side reads it."""
    return type(message).FromString(message.SerializeToString())


@given(interactions_of(st.sampled_from(InteractionKind)))
def test_an_interaction_comes_back(interaction: Interaction) -> None:
    assert interactions.interaction_from_proto(sent(interactions.interaction_to_proto(interaction)), 9) == interaction


@given(interactions_of(st.sampled_from(FEEDBACK)), st.booleans())
def test_feedback_comes_back(feedback: Interaction, wait: bool) -> None:
    request = sent(interactions.feedback_to_proto(feedback, wait_absorbed=wait))
    assert interactions.feedback_from_proto(request, 9) == feedback
    assert request.wait_absorbed is wait


@given(RECEIPTS)
def test_a_receipt_comes_back(receipt: Receipt) -> None:
    assert interactions.receipt_from_proto(sent(interactions.receipt_to_proto(receipt))) == receipt


@given(REQUESTS)
def test_a_request_for_an_answer_comes_back(request: GenerateRequest) -> None:
    assert answers.generate_request_from_proto(sent(answers.generate_request_to_proto(request))) == request


@given(ENDS | st.builds(AnswerPart, TEXT))
def test_an_answer_comes_back(item: AnswerPart | AnswerEnd) -> None:
    assert answers.answer_from_proto(sent(answers.answer_to_proto(item))) == item


@given(STATUSES)
def test_a_status_comes_back(status: ShardStatus) -> None:
    assert answers.status_from_proto(sent(answers.status_to_proto(status))) == status


@given(SHARDS)
def test_a_shard_comes_back(shard: ShardView) -> None:
    assert shards.shard_from_proto(sent(shards.shard_to_proto(shard))) == shard


@given(CARDS)
def test_a_memory_card_comes_back(card: MemoryCard) -> None:
    assert memories.card_from_proto(sent(memories.card_to_proto(card))) == card


@given(EXPORTS, st.integers(1, 60))
@settings(max_examples=50)
def test_an_export_comes_back_in_chunks_of_any_size(export: UserExport, chunk_bytes: int) -> None:
    reader = memories.ExportReader(OWNER)
    for piece in memories.export_to_proto(export, chunk_bytes):
        reader.add(sent(piece))
    assert reader.finish() == export


def test_an_erasure_comes_back() -> None:
    erasure = Erasure(OWNER, True, 7)
    assert memories.erasure_from_proto(OWNER, sent(memories.erasure_to_proto(erasure))) == erasure


@pytest.mark.parametrize("damage", ["a lost chunk", "a flipped bit", "no card"])
def test_a_damaged_export_is_found(damage: str) -> None:
    card = MemoryCard(OWNER, "c", 1, 0, 0, 8, (), 0)
    pieces = list(memories.export_to_proto(UserExport(card, Snapshot.seal(OWNER, "c", 1, b"8 bytes."), (), ()), 4))
    match damage:
        case "a lost chunk":
            del pieces[-1]
        case "a flipped bit":
            pieces[-1] = memory_service_pb2.ExportUserResponse(snapshot_bytes=b"es/.")
        case _:
            del pieces[0]
    reader = memories.ExportReader(OWNER)
    for piece in pieces:
        reader.add(piece)
    with pytest.raises(Corrupt):
        reader.finish()


@given(st.builds(Night, COUNT, st.sampled_from(NightStage), *[COUNT] * 7, TEXT, st.booleans(), COUNT, TEXT, TEXT))
def test_a_night_comes_back(night: Night) -> None:
    assert nights.night_from_proto(nights.night_to_proto(night)) == night


@given(VERSION_CARDS, st.none() | VERDICTS, st.lists(SUMMARIES, max_size=2).map(tuple))
def test_a_version_comes_back(
    card: VersionCard, verdict: Verdict | None, measurements: tuple[MeasurementSummary, ...]
) -> None:
    report = VersionReport(card, verdict, measurements)
    assert versions.report_from_proto(versions.report_to_proto(report)) == report


@given(st.builds(Champion, COUNT, TEXT, COUNT))
def test_a_champion_comes_back(champion: Champion) -> None:
    assert versions.champion_from_proto(versions.champion_to_proto(champion)) == champion


def test_every_member_of_every_enum_has_a_number() -> None:
    assert {InteractionKind(interactions.KINDS.member("kind", n)) for n in range(1, 6)} == set(InteractionKind)
    assert {memories.PARK_REASONS.number(reason) for reason in ParkReason} == set(range(1, len(ParkReason) + 1))
    assert {interactions.ROLES.number(role) for role in Role} == {1, 2, 3}
    assert {answers.FINISH_REASONS.number(reason) for reason in FinishReason} == {1, 2}
    assert {nights.STAGES.number(stage) for stage in NightStage} == set(range(1, len(NightStage) + 1))
    assert {versions.STATES.number(state) for state in VersionState} == set(range(1, len(VersionState) + 1))


@pytest.mark.parametrize("number", [0, 99, -1])
def test_an_unknown_number_is_refused_by_name(number: int) -> None:
    interaction = interaction_pb2.Interaction(id="a", kind=number)
    with pytest.raises(InvalidInput, match=r"kind: expected one of 1 \(conversation\), .*, found"):
        interactions.interaction_from_proto(interaction, 9)
    message = interaction_pb2.Message(role=number)
    with pytest.raises(InvalidInput, match=r"messages\[1\].role"):
        interactions.messages_from_proto("messages", [interaction_pb2.Message(role=2), message])
    with pytest.raises(InvalidInput, match="kind"):
        interactions.feedback_from_proto(memory_service_pb2.FeedbackRequest(kind=number), 9)


def test_an_unknown_recall_mode_is_refused_and_an_absent_one_is_weights() -> None:
    with pytest.raises(InvalidInput, match="recall"):
        answers.generate_request_from_proto(inference_service_pb2.GenerateRequest(recall=9))
    assert answers.generate_request_from_proto(inference_service_pb2.GenerateRequest()).recall == "weights"


def test_what_is_absent_is_no_consent_the_default_sampling_and_now() -> None:
    read = interactions.interaction_from_proto(interaction_pb2.Interaction(id="a", kind=1), 1234)
    assert read.consent == Consent(learn=False, share=False)
    assert read.occurred_at_ms == 1234
    assert read.schema_version == 1
    assert answers.sampling_from_proto(inference_service_pb2.Sampling()) == Sampling()


def test_a_sampling_of_zeros_is_not_the_default() -> None:
    zeros = Sampling(max_tokens=0, temperature=0.0, top_p=0.0, seed=0)
    assert answers.sampling_from_proto(sent(answers.sampling_to_proto(zeros))) == zeros


def test_a_future_schema_is_refused() -> None:
    with pytest.raises(InvalidInput, match="schema_version: expected 1 to 1, found 7"):
        interactions.interaction_from_proto(interaction_pb2.Interaction(id="a", kind=1, schema_version=7), 9)


@pytest.mark.parametrize(
    "change",
    [{"messages": (Message(Role.USER, "\ud800"),)}, {"occurred_at_ms": 2**70}, {"correction": "\udfff"}],
)
def test_what_protobuf_cannot_hold_is_refused_before_it_is_sent(change: dict[str, Any]) -> None:
    interaction = Interaction("a", OWNER, InteractionKind.DOCUMENT, 1, (Message(Role.USER, "hello"),))
    interactions.interaction_to_proto(interaction)
    with pytest.raises(InvalidInput):
        interactions.interaction_to_proto(dataclasses.replace(interaction, **change))


@pytest.mark.parametrize(
    ("change", "field"),
    [({"seed": -1}, "seed"), ({"seed": 2**64}, "seed"), ({"max_tokens": 2**31}, "max_tokens")],
)
def test_a_number_that_does_not_fit_is_refused_by_its_field(change: dict[str, int], field: str) -> None:
    request = GenerateRequest(OWNER, (Message(Role.USER, "Hi"),), Sampling(**change))
    with pytest.raises(InvalidInput) as refusal:
        answers.generate_request_to_proto(request)
    assert (refusal.value.field, refusal.value.found) == (f"sampling.{field}", str(change[field]))


def test_a_conversation_is_no_feedback() -> None:
    talk = Interaction("a", OWNER, InteractionKind.CONVERSATION, 1, (Message(Role.USER, "hello"),))
    with pytest.raises(InvalidInput, match="kind"):
        interactions.feedback_to_proto(talk, wait_absorbed=False)
