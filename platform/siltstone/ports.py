"""Every way the pure code touches the world. Each port has an embedded and, later, a clustered version."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from siltstone.sleep_values import Champion, CoreVersion, Lineage, StepDone, Verdict, VersionMove
from siltstone.values import (
    AnswerEnd,
    AnswerPart,
    Commit,
    DataKey,
    Erasure,
    GenerateRequest,
    Interaction,
    JournalRecord,
    Lease,
    MemoryCard,
    Message,
    Parked,
    Receipt,
    ShardStatus,
    ShardView,
    Snapshot,
    UserExport,
    UserKey,
)


class Journal(Protocol):
    """The ordered, durable log of interactions, partitioned by user."""

    def append(self, interactions: Sequence[Interaction]) -> list[Receipt]:
        """Writes the interactions, in this order, and returns one receipt for each.

        Promises: durable when it returns (an fsync, or all replicas); idempotent by (owner, id): a repeat, also within
        one call, gets the first one's position and `duplicate=True`. A clustered journal knows repeats only within a
        window and its own process; what is written twice all the same is taken in once, by the store's window.
        Positions of a partition start at 0, rise, and never change. Blocks for the write.
        Raises: InvalidInput when one cannot be written as it is: nothing was written. Unavailable when the log cannot
        take the write (disk full, no broker): nothing was written, or of a clustered journal perhaps some; the caller
        sends all of it again.
        """
        ...

    def read(self, partition: int, start: int, max_records: int) -> list[JournalRecord]:
        """Returns up to `max_records` records of a partition from position `start`, in order, leaving none out.

        Promises: what this process has appended is there; what another one has, a moment later. A payload that was
        damaged raises, it is never returned. What somebody else wrote who knows no better comes with its `defect`.
        Raises: Corrupt when a stored payload does not match its digest, or records from `start` on are not kept any
        more. Unavailable.
        """
        ...

    def follow(self, positions: Mapping[int, int]) -> None:
        """Begins to read partitions on from these positions, as their owner: ahead of what is asked, where that helps.

        Raises: Unavailable.
        """
        ...

    def leave(self, partitions: Sequence[int]) -> None:
        """Reads no more of partitions ahead."""
        ...

    def ready(self, positions: Mapping[int, int]) -> dict[int, int]:
        """Returns those partitions that may have records from their position on, and how many can be read at once.

        Promises: it does not wait for what is not there yet. A partition that cannot be read on is among them, so that
        `read` says why.
        Raises: Unavailable.
        """
        ...

    @property
    def look_every_s(self) -> float:
        """Seconds after which it is worth asking `ready` again; 0 where nobody appends but who tells of it."""
        ...

    def overdue(self, positions: Mapping[int, int], now_ms: int) -> list[int]:
        """Returns those partitions whose record at this position has waited for so long that it may not be kept.

        Promises: told well before: when a quarter of the time is over for which a record is kept at least.
        Raises: Unavailable.
        """
        ...

    def park(self, parked: Sequence[Parked]) -> None:
        """Tells others what was parked, where the journal is one that others read: at least once, durably.

        The store's word is the one that counts; this one comes before it, and may come again.
        Raises: Unavailable.
        """
        ...

    def start_positions(self) -> dict[int, int]:
        """Returns, for every partition of the journal, the position of the oldest record that is still kept."""
        ...

    def end_positions(self) -> dict[int, int]:
        """Returns, for every partition of the journal, the position the next record will get."""
        ...

    def erase(self, owner: UserKey) -> int:
        """Makes every payload of `owner` unreadable for ever and returns how many there were.

        Promises: positions stay (a read returns such a record with an empty payload); idempotent. Where payloads are
        sealed, the user's key is destroyed.
        """
        ...


class SnapshotStore(Protocol):
    """Where users' memories, partition positions, leases and parked interactions are kept."""

    def load(self, owner: UserKey) -> Snapshot | None:
        """Returns the newest snapshot of a user, its digest verified, or None for a user without one.

        Raises: Corrupt when the blob does not match its digest.
        """
        ...

    def commit(self, commit: Commit) -> None:
        """Writes snapshots, parked and taken-in interactions and the partition's next position, all or none, durably.

        Raises: StaleLease when a newer epoch exists; PositionConflict when the stored position is another one;
        InvalidInput when a user is not of the lease's partition, the position would go back, or what was taken in
        does not lie between the positions; Corrupt when a snapshot's digest is not its blob's. Nothing was written.
        Unavailable when the write cannot be made, or a cut connection hides whether it was: the same commit, sent
        again, is written once.
        """
        ...

    def position(self, partition: int) -> int:
        """Returns the partition's committed position: the first record not yet in any snapshot (0 at first)."""
        ...

    def acquire(self, partition: int, holder: str) -> Lease:
        """Takes the partition over: returns a lease with an epoch higher than any before, durably recorded."""
        ...

    def parked(self, owner: UserKey | None = None) -> Iterator[Parked]:
        """Yields parked interactions (of one user), of each partition the oldest first."""
        ...

    def parked_at(self, partition: int, positions: Sequence[int]) -> list[Parked]:
        """Returns those records of a partition, by position, that were parked, oldest first.

        Raises: Corrupt when one of them is not what was written.
        """
        ...

    def taken_in(self, partition: int, ids: Sequence[tuple[UserKey, str]]) -> list[int | None]:
        """Returns, for each (owner, interaction id), the position at which the partition took it in, or None.

        What lies further behind the committed position than the store's window is no longer known. Erasing a user
        leaves it known, so that what is sent again late does not come back.
        """
        ...

    def erase(self, owner: UserKey, lease: Lease) -> bool:
        """Removes the user's snapshot and parked interactions and returns whether there was a snapshot.

        Raises: StaleLease; InvalidInput when the user is not of the lease's partition.
        """
        ...

    def count_users(self) -> int:
        """Returns how many users have a snapshot."""
        ...

    def users_by_core(self) -> dict[str, int]:
        """Returns, for every core that somebody's snapshot was learned under, how many users that are.

        Snapshots that are damaged and cannot say so are counted under an empty name.
        """
        ...


class KeyVault(Protocol):
    """Where users' keys are: one for every user, and of those destroyed the note that they were."""

    def current(self, owners: Sequence[UserKey]) -> list[DataKey]:
        """Returns the key of every owner; makes one for who has none. Of several makers at once all get the same.

        Promises: a key that was returned is kept, durably.
        Raises: Unavailable. Corrupt when a key is not what was kept. ConfigInvalid when the vault's keys cannot be
        unwrapped here; where the vault's others can, KeyMissing. (A program that unwraps does not say why it
        will not: then it is Unavailable.)
        """
        ...

    def find(self, owner: UserKey, name: str) -> DataKey | None:
        """Returns the owner's key of that name; None when it was destroyed.

        Raises: KeyMissing when there is neither the key nor the note that it was destroyed. As `current`.
        """
        ...

    def destroy(self, owner: UserKey) -> str:
        """Destroys the owner's key, durably, and returns its name; empty when there is none. Idempotent.

        Raises: Unavailable.
        """
        ...

    def rewrap(self) -> Iterator[tuple[int, int]]:
        """Wraps every key that the previous master key has wrapped by the current one; the keys stay as they are.

        Yields, of every part that is done, how many keys were looked at and how many of them wrapped anew.
        Promises: what was yielded is durable; killed anywhere, it can be begun again. Others may use, make and destroy
        keys meanwhile, if they know the current master key. When it ends, the previous one is not needed any more.
        Raises: ConfigInvalid at a key that neither has wrapped. Corrupt. Unavailable.
        """
        ...


class Sealer(Protocol):
    """Encrypts what is kept of a user under a key of that user's own."""

    def prepare(self, owners: Sequence[UserKey]) -> None:
        """Gets the keys of many users at once, where the calls that follow would get them one by one.

        Raises: Unavailable when they cannot be had.
        """
        ...

    def seal(self, owner: UserKey, context: str, data: bytes) -> bytes:
        """Returns `data`, sealed. `context` says what it is; only under the same one can it be opened.

        A user who has no key, or whose key was destroyed, gets a new one.
        Raises: Unavailable when the key cannot be had.
        """
        ...

    def open(self, what: str, owner: UserKey, context: str, sealed: bytes) -> bytes | None:
        """Returns what was sealed; None when the key it was sealed under was destroyed. `what` names it in errors.

        Raises: Corrupt when it is not what was sealed for this owner in this context; KeyMissing when its key is not
        there and was never destroyed. Unavailable when the key cannot be had.
        """
        ...

    def name_of_key(self, sealed: bytes) -> str:
        """Returns the name of the key under which something was sealed; empty where that cannot be told."""
        ...

    def forget(self, owner: UserKey) -> str:
        """Destroys the user's key, durably, and returns its name; empty when there is none. Idempotent.

        Other processes may go on sealing with it for as long as they keep keys: that, too, is forgotten.
        Raises: Unavailable.
        """
        ...


class ShardHost(Protocol):
    """The shards, wherever they are: finds the one that owns a user and asks it."""

    async def record(self, interactions: Sequence[Interaction]) -> list[Receipt]:
        """Writes the interactions to the journal; they are absorbed soon after.

        Promises: durable when it returns; idempotent by (owner, id).
        Raises: Overloaded when the owner's shard lags too far behind its journal. Unavailable.
        """
        ...

    async def wait_absorbed(self, receipts: Sequence[Receipt]) -> list[Parked]:
        """Returns once everything up to the receipts is part of the users' committed snapshots, or parked: the parked.

        Raises: Unavailable while the snapshots cannot be written; what was recorded stays safe, ask again. Corrupt when
        the journal is damaged before the receipts: their partition stands still.
        """
        ...

    def generate(self, request: GenerateRequest) -> AsyncIterator[AnswerPart | AnswerEnd]:
        """Answers, piece by piece; the last item is the end. Closing the iterator gives the answer up.

        Promises: one core version and one state of the user for the whole answer.
        Raises: InvalidInput when the conversation does not fit the core's context. Overloaded. Unavailable.
        """
        ...

    async def score(
        self, owner: UserKey, prompt: Sequence[Message], answers: Sequence[str]
    ) -> list[tuple[float, float]]:
        """Returns, for each answer text after the prompt, its log-probability in nats under (user's model, bare core).

        The prompt may end with an assistant message: the answers continue it. Without a prompt the answers are plain
        text, without a template, scored from their second token on where the core has no opening token.
        """
        ...

    async def memory(self, owner: UserKey) -> MemoryCard:
        """Returns the card of a user's memory; a user never met has an empty one."""
        ...

    async def export(self, owner: UserKey) -> UserExport:
        """Returns everything kept about a user, of a damaged memory all the rest.

        Raises: Corrupt when the journal or what was parked is damaged.
        """
        ...

    async def forget(self, owner: UserKey) -> Erasure:
        """Removes a user's memory, journal content and parked interactions. Idempotent; later appends start anew."""
        ...

    async def status(self) -> ShardStatus:
        """Returns what an operator may see."""
        ...

    async def shards(self) -> tuple[ShardView, ...]:
        """Returns every shard that is there, and what it owns."""
        ...

    async def resize(self, num_shards: int) -> None:
        """Returns once there are so many shards, each with its share, and those that left have ended.

        Promises: no request fails for it. It goes on when the caller gives up, and may be asked for again.
        Raises: InvalidInput. WrongState where there is but one process. Unavailable when there is no room for so many.
        Cancelled when another number was asked for meanwhile.
        """
        ...


class CoreTrainer(Protocol):
    """Trains an expert of a core, wherever the machine for it is."""

    def train(
        self,
        job: Path,
        on_step: Callable[[StepDone], None] = lambda _: None,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> Path:
        """Runs the job of a folder to its end and returns the expert: safetensors, the written side of each site.

        Promises: nothing is needed but the folder. Every step is told once, in order, those of earlier runs of the job
        included. Killed at any point, the same call goes on from the newest whole checkpoint, to the losses and the
        expert of a run that was never killed: the same bits with one worker. A finished job is not run again. One run
        of a job at a time. Blocks to the end; `is_cancelled` is asked between steps.
        Raises: Cancelled; what was done is kept, the job can go on. Corrupt when the folder is not what was written.
        NotFound when there is no job. Unavailable when workers die or the disk is full; the job can go on.
        """
        ...


class VersionRegistry(Protocol):
    """Every version of the core: what it is, where it comes from, where it stands, and which one serves."""

    def record(self, core: Path, lineage: Lineage, evidence: bytes) -> CoreVersion:
        """Keeps a core as the next candidate: the folder as a core store holds it, its evidence as JSON, a signature.

        Promises: durable and whole when it returns; numbers start at 1 and rise by one; idempotent by (core, sleep id):
        a repeat returns the version that is there. The folder given stays as it is and may be removed afterwards.
        Raises: NotFound when there is no such core; Corrupt when it is not what its digest says; InvalidInput when the
        evidence is not JSON; Unavailable when it cannot be written. Nothing was recorded in any case.
        """
        ...

    def set_verdict(self, number: int, verdict: Verdict) -> CoreVersion:
        """Writes the gate's verdict beside a candidate, signs anew, and makes it accepted or refused.

        Promises: durable; all or nothing.
        Raises: NotFound; WrongState when it is no candidate; InvalidInput when the verdict is another core's or accepts
        what its checks did not pass; Corrupt when the candidate is not what was signed; Unavailable.
        """
        ...

    def retire(self, number: int) -> CoreVersion:
        """Takes an accepted version out of the line: it will never serve.

        Raises: NotFound; WrongState for any other version; Unavailable.
        """
        ...

    def discard(self, number: int) -> CoreVersion:
        """Removes the folder of a refused or retired version that nobody is pinned to. What is told of it stays.

        Promises: durable; idempotent. The version has no seal afterwards, is not handed out and never serves again.
        Raises: NotFound; WrongState for any other version; Unavailable.
        """
        ...

    def list(self) -> tuple[CoreVersion, ...]:
        """Returns every version, by number."""
        ...

    def show(self, number: int) -> CoreVersion:
        """Returns one version.

        Raises: NotFound; Corrupt.
        """
        ...

    def champion(self) -> Champion | None:
        """Returns the version that serves; None before the first promotion."""
        ...

    def promote(self, number: int, expected_epoch: int) -> Champion:
        """Makes a version the champion, if the champion is still the one of `expected_epoch` (0: there is none yet).

        Promises: a compare-and-set: of any number of movers that saw the same epoch one succeeds. The former champion
        retires in the same step. The epoch rises by one. The version's folder was verified before.
        Raises: StaleEpoch; NotFound; WrongState when it has not passed the gate or has retired without serving; Corrupt
        when its folder is not what was signed; Unavailable. Nothing has moved in any case.
        """
        ...

    def rollback(self, expected_epoch: int) -> Champion:
        """Makes the version champion that served before the present one, as `promote` does. Twice goes two back.

        Raises: as `promote`; NotFound when none served before.
        """
        ...

    def artefact(self, number: int) -> Path:
        """Returns the folder of a version that has passed the gate, its signature and every byte verified.

        The folder is a home with this one core in it: a core store opened on it loads the core by its digest.
        Raises: NotFound, also when it was discarded; WrongState for a candidate or a refused version; Corrupt when it
        is unsigned, not what was signed, or another version's.
        """
        ...

    def history(self) -> tuple[VersionMove, ...]:
        """Returns every move of every version, oldest first. Lines are only ever added.

        Raises: Corrupt when one is missing or is not what was written.
        """
        ...


class Tokenizer(Protocol):
    """Text to token ids and back, with the chat template of a core."""

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of plain text, without special tokens; special tokens in `text` stay plain text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of token ids, special tokens left out."""
        ...

    def turn_prefix(self, role: str) -> list[int]:
        """Returns the ids that open a turn of the chat template, up to where its content begins."""
        ...

    def turn_suffix(self, role: str) -> list[int]:
        """Returns the ids that close a turn of the chat template, from its end marker on."""
        ...

    @property
    def bos_ids(self) -> list[int]:
        """The ids every sequence starts with (may be empty)."""
        ...

    @property
    def stop_ids(self) -> frozenset[int]:
        """The ids at which an answer ends."""
        ...

    def render(self, messages: Sequence[Message]) -> list[int]:
        """Returns the ids of a conversation that the assistant is to continue, by the core's chat template."""
        ...


class Clock(Protocol):
    """Time, injected."""

    def now_ms(self) -> int:
        """Returns UTC milliseconds since 1970."""
        ...

    def monotonic_s(self) -> float:
        """Returns seconds on a clock that never goes back."""
        ...


class TextRecall(Protocol):
    """Finds, among one user's own lines, those that bear on a question."""

    def search(self, lines: Sequence[str], query: str, max_lines: int) -> list[str]:
        """Returns up to `max_lines` of `lines`, best first, none twice, and none that only repeats the query.

        Promises: returns nothing but elements of `lines`; the same call gives the same answer; of lines that fit
        equally well the later one comes first; no line at all is better than one that shares no telling word.
        """
        ...

    def clear(self) -> None:
        """Drops whatever is kept in memory of lines searched before, as erasure demands."""
        ...
