"""The frozen values that travel between the parts of Siltstone. Standard library only."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Literal

SCHEMA_VERSION: Final = 1
"""Schema of an interaction as it is written to the journal."""

_ID_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:+=-]{0,127}")

RecallMode = Literal["weights", "text", "both"]
"""What an answer may draw on: the user's levels, lines found in the user's reservoir, or both."""


def is_valid_id(text: str) -> bool:
    """Says whether `text` may name a tenant, a user or an interaction: 1 to 128 plain characters, no slash."""
    return _ID_PATTERN.fullmatch(text) is not None


class Role(StrEnum):
    """Who speaks in a message."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


class InteractionKind(StrEnum):
    """What happened between a user and the model."""

    CONVERSATION = "conversation"
    DOCUMENT = "document"
    CORRECTION = "correction"
    THUMB_UP = "thumb_up"
    THUMB_DOWN = "thumb_down"


class ParkReason(StrEnum):
    """Why an interaction could not be absorbed."""

    UNDECODABLE = "undecodable"
    UNKNOWN_SCHEMA = "unknown_schema"
    UNKNOWN_KIND = "unknown_kind"
    NO_CONSENT = "no_consent"
    TOO_LARGE = "too_large"
    EMPTY = "empty"
    WRONG_ROLES = "wrong_roles"
    NOT_FINITE = "not_finite"
    SNAPSHOT_MISMATCH = "snapshot_mismatch"
    CORRUPT_MEMORY = "corrupt_memory"


@dataclass(frozen=True, slots=True, order=True)
class UserKey:
    """A user of a tenant: the owner of a memory."""

    tenant: str
    user: str

    def __str__(self) -> str:
        return f"{self.tenant}/{self.user}"


NOBODY: Final = UserKey("", "")
"""The owner of a journal record that does not say whose it is. No user can have this key."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Consent:
    """What the user agreed to: `learn` into the user's own memory, `share` with the core in a later sleep."""

    learn: bool = True
    share: bool = False


@dataclass(frozen=True, slots=True)
class Interaction:
    """One thing that happened between a user and the model.

    `id` is the idempotency key: the same id from the same owner is applied once. A conversation, a correction and a
    thumb carry the exchange they are about in `messages` (its last message is the answer); a document is one message.
    A correction's `correction` is the text that should have been the answer. `trace` is the traceparent of the call it
    came with, if any: beside what happened, so no part of its bytes, and of no weight to whether two are equal.
    """

    id: str
    owner: UserKey
    kind: InteractionKind
    occurred_at_ms: int
    messages: tuple[Message, ...]
    correction: str = ""
    consent: Consent = field(default_factory=Consent)
    schema_version: int = SCHEMA_VERSION
    trace: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class JournalRecord:
    """One entry of a journal partition: the interaction as the bytes that were admitted, at its position.

    `defect` says why it is none, where the journal itself could tell; its owner is then unknown, or only claimed.
    `trace` is the traceparent it was written with, where the journal keeps it.
    """

    partition: int
    position: int
    owner: UserKey
    interaction_id: str
    payload: bytes
    defect: Parking | None = None
    trace: str = ""


@dataclass(frozen=True, slots=True)
class Parking:
    """Why an interaction was parked."""

    reason: ParkReason
    detail: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """The journal's answer to an append. `duplicate` says the id was already there, at this same position.

    `parked` says why it was not absorbed, to a caller who waited for that; None means absorbed, or not waited for.
    """

    interaction_id: str
    partition: int
    position: int
    duplicate: bool
    parked: Parking | None = None


@dataclass(frozen=True, slots=True)
class Parked:
    """An interaction that could not be absorbed, kept with its reason and origin.

    `trace` is its record's, for those who are told of it when it happens: no store keeps it.
    """

    partition: int
    position: int
    owner: UserKey
    interaction_id: str
    reason: ParkReason
    detail: str
    payload: bytes
    trace: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write a partition. A higher epoch fences every lower one."""

    partition: int
    holder: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A user's whole persisted memory, as one contiguous buffer.

    `digest` is the sha256 of `blob`, in hex; `core` names the core version the levels were learned under;
    `sequence` counts the commits of this user, so (owner, sequence) names the state an answer used.
    """

    owner: UserKey
    core: str
    sequence: int
    blob: bytes
    digest: str

    @staticmethod
    def seal(owner: UserKey, core: str, sequence: int, blob: bytes) -> Snapshot:
        """Makes the snapshot of `blob`, with its digest."""
        return Snapshot(owner, core, sequence, blob, hashlib.sha256(blob).hexdigest())


@dataclass(frozen=True, slots=True)
class TakenIn:
    """An interaction that a partition has taken in, absorbed or parked: what makes a repeat of it known as one."""

    position: int
    owner: UserKey
    interaction_id: str


@dataclass(frozen=True, slots=True)
class Commit:
    """What one atomic commit of a partition changes.

    Accepted only when the store's position is `expected_position` and `lease.epoch` is the newest epoch.
    """

    lease: Lease
    expected_position: int
    next_position: int
    snapshots: tuple[Snapshot, ...]
    parked: tuple[Parked, ...] = ()
    taken_in: tuple[TakenIn, ...] = ()


@dataclass(frozen=True, slots=True)
class DataKey:
    """A user's secret key, and the name by which what it has sealed tells it from the user's earlier ones."""

    name: str
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class MemoryCard:
    """What may be told about a user's memory without telling its content."""

    owner: UserKey
    core: str
    sequence: int
    position_tokens: int
    num_interactions: int
    size_bytes: int
    levels: tuple[LevelCard, ...]
    reservoir_entries: int


@dataclass(frozen=True, slots=True)
class LevelCard:
    """One level of a user's memory: its period, its updates so far, its drift from the core (0 is the core)."""

    name: str
    period_tokens: int
    num_updates: int
    open_tokens: int
    drift: float


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token of an answer is chosen. The temperature is 0 to 10; 0 takes the likeliest."""

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """A user's wish for an answer to a conversation whose last message is not the assistant's.

    With `interaction_id` and a consent to learn, the exchange is recorded as a conversation once answered.
    `core_only` leaves the user's levels and text out: what the bare core would answer. `trace` is as an interaction's.
    """

    owner: UserKey
    messages: tuple[Message, ...]
    sampling: Sampling = field(default_factory=Sampling)
    recall: RecallMode = "weights"
    core_only: bool = False
    interaction_id: str = ""
    consent: Consent = field(default_factory=lambda: Consent(learn=False))
    trace: str = field(default="", compare=False)


class FinishReason(StrEnum):
    """Why an answer ended."""

    STOP = "stop"
    MAX_TOKENS = "max_tokens"


@dataclass(frozen=True, slots=True)
class AnswerPart:
    """The next piece of an answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class AnswerEnd:
    """The end of an answer: why it ended and the versions that gave it.

    `core` and `snapshot_sequence` name the core version and the user's state that were pinned for the whole answer
    (sequence 0: no memory took part; there was none yet, or the bare core was asked for). `recalled` are the reservoir
    lines put into the context.
    """

    reason: FinishReason
    core: str
    snapshot_sequence: int
    num_prompt_tokens: int
    num_answer_tokens: int
    recalled: tuple[str, ...] = ()
    recorded: Receipt | None = None


@dataclass(frozen=True, slots=True)
class SnapshotDamage:
    """A stored snapshot that is not what was written: what of it, and what was expected and found there."""

    what: str
    expected: str
    found: str


@dataclass(frozen=True, slots=True)
class UserExport:
    """Everything kept about a user: the card, the snapshot (None before the first), journal and parked payloads.

    With `damage` the snapshot is left out, or whole but unreadable; the card of what cannot be read counts nothing.
    """

    card: MemoryCard
    snapshot: Snapshot | None
    journal: tuple[JournalRecord, ...]
    parked: tuple[Parked, ...]
    damage: SnapshotDamage | None = None


@dataclass(frozen=True, slots=True)
class Erasure:
    """What `forget` removed."""

    owner: UserKey
    had_memory: bool
    num_interactions: int


@dataclass(frozen=True, slots=True)
class ShardStatus:
    """What an operator may see of a shard: no content."""

    core: str
    num_users_stored: int
    num_users_resident: int
    resident_bytes: int
    lag_interactions: int
    num_answers_running: int
    num_absorbed: int
    num_parked: int
    absorbed_tokens: int
    answered_tokens: int
    busy_s: float
    num_versions: int = 1
    num_rebased: int = 0
    num_pinned: int = 0


@dataclass(frozen=True, slots=True)
class PartitionView:
    """What an operator may see of a partition: whose turn it is (epoch), how far it is, and what waits in it."""

    partition: int
    epoch: int
    position: int
    lag_interactions: int
    is_damaged: bool = False


@dataclass(frozen=True, slots=True)
class ShardView:
    """What an operator may see of one shard and its partitions. Rates are None until they are known."""

    name: str
    state: str
    partitions: tuple[PartitionView, ...]
    num_users_resident: int
    resident_bytes: int
    absorbed_per_s: float | None = None
    answered_tokens_per_s: float | None = None
    num_parked: int = 0
    """Since it began."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number with everything needed to believe it."""

    name: str
    value: float
    unit: str
    target: str
    reached: bool | None
    spread: str
    command: str
    commit: str
    hardware: str
    date: str
