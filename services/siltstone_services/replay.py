"""Feeds other people's data through the gRPC path, as fast as the server absorbs it or as slowly as asked."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Final

from siltstone.errors import InvalidInput, Overloaded
from siltstone.evaluation.figures import Origin
from siltstone.journal.sources import Skipped, SkipReason
from siltstone.ports import Clock
from siltstone.values import Figure, Interaction, ShardStatus, UserKey
from siltstone_services.client import SiltstoneClient

_STATUS_EVERY_S: Final = 0.5
_WAIT_STEP_S: Final = 0.1
_MAX_BATCH_CHARS: Final = 500_000
_REFUSED_AT = re.compile(r"interactions\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    """How much of a source is replayed, and how fast."""

    max_users: int | None = None
    """Only the first so many users of the source."""
    max_interactions: int | None = None
    """Only so many interactions."""
    rate: float | None = None
    """Interactions a second at most."""
    batch: int = 32
    """Interactions of one call."""
    is_waiting: bool = False
    """Whether to wait until everything is absorbed."""
    is_shared: bool = False
    """Whether its people agreed that nights may learn from it, where it does not say so itself."""


@dataclass(slots=True)
class ReplayProgress:
    """How far a replay is."""

    num_recorded: int = 0
    num_duplicates: int = 0
    num_refused: int = 0
    num_retries: int = 0
    num_parked: int = 0
    num_absorbed: int = 0
    absorbed_tokens: int = 0
    lag: int = 0
    max_lag: int = 0
    recording_s: float = 0.0
    elapsed_s: float = 0.0
    users: set[UserKey] = field(default_factory=set)
    skipped: Counter[SkipReason] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)

    @property
    def num_read(self) -> int:
        """Interactions of the source that were sent, whatever became of them."""
        return self.num_recorded + self.num_duplicates + self.num_refused

    def figures(self, origin: Origin) -> list[Figure]:
        """Returns what was measured."""
        recording_s, elapsed_s = max(self.recording_s, 1e-9), max(self.elapsed_s, 1e-9)
        return [
            origin.figure("replay recorded", self.num_recorded, "interactions"),
            origin.figure("replay users", len(self.users), "users"),
            origin.figure("replay duplicates", self.num_duplicates, "interactions"),
            origin.figure("replay refused", self.num_refused, "interactions"),
            origin.figure("replay parked", self.num_parked, "interactions"),
            origin.figure("replay skipped", sum(self.skipped.values()), "entries"),
            origin.figure("replay record rate", self.num_recorded / recording_s, "interactions/s"),
            origin.figure("replay absorb rate", self.num_absorbed / elapsed_s, "interactions/s"),
            origin.figure("replay absorbed tokens rate", self.absorbed_tokens / elapsed_s, "tokens/s"),
            origin.figure("replay largest lag", self.max_lag, "interactions"),
            origin.figure("replay retries", self.num_retries, "calls"),
            origin.figure("replay time", self.elapsed_s, "s"),
        ]


def pause_s(num_sent: int, rate: float | None, elapsed_s: float) -> float:
    """Returns how long to wait before sending more, so that no more than `rate` were sent a second."""
    return 0.0 if rate is None else max(0.0, num_sent / rate - elapsed_s)


class Replay:
    """One replay. `tell` is called after every step with the progress."""

    def __init__(
        self,
        client: SiltstoneClient,
        source: Iterator[Interaction | Skipped],
        plan: ReplayPlan,
        clock: Clock,
        tell: Callable[[ReplayProgress], None],
    ) -> None:
        self._client, self._plan, self._clock, self._tell = client, plan, clock, tell
        self._progress = ReplayProgress()
        self._chosen = islice(self._choose(source), plan.max_interactions)
        self._told_at_s = 0.0

    async def run(self) -> ReplayProgress:
        """Replays, and returns how it went.

        Raises: Unavailable when the server is gone. Run it again then: what is there already is not written twice.
        """
        progress, before = self._progress, await self._client.status()
        started_s = self._clock.monotonic_s()
        while batch := await asyncio.to_thread(self._next_batch):
            await self._record(batch)
            progress.recording_s = progress.elapsed_s = self._clock.monotonic_s() - started_s
            await self._look(before)
            await asyncio.sleep(pause_s(progress.num_read, self._plan.rate, progress.recording_s))
        await self._look(before, at_once=True)
        while self._plan.is_waiting and progress.lag:
            await asyncio.sleep(_WAIT_STEP_S)
            progress.elapsed_s = self._clock.monotonic_s() - started_s
            await self._look(before, at_once=True)
        return progress

    def _choose(self, source: Iterator[Interaction | Skipped]) -> Iterator[Interaction]:
        progress, max_users = self._progress, self._plan.max_users
        for item in source:
            if isinstance(item, Skipped):
                progress.skipped[item.reason] += 1
            elif item.owner in progress.users or max_users is None or len(progress.users) < max_users:
                progress.users.add(item.owner)
                is_shared = item.consent.share or self._plan.is_shared
                yield replace(item, consent=replace(item.consent, share=is_shared))

    def _next_batch(self) -> list[Interaction]:
        max_size = self._plan.batch if self._plan.rate is None else max(1, min(self._plan.batch, int(self._plan.rate)))
        batch: list[Interaction] = []
        num_chars = 0
        while len(batch) < max_size and num_chars < _MAX_BATCH_CHARS:
            interaction = next(self._chosen, None)
            if interaction is None:
                break
            batch.append(interaction)
            num_chars += sum(len(message.text) for message in interaction.messages)
        return batch

    async def _record(self, batch: list[Interaction]) -> None:
        """Writes a batch; what is refused of it is counted and left out, the rest is written."""
        while batch:
            try:
                receipts = await self._client.record(batch)
            except Overloaded as error:
                self._progress.num_retries += 1
                await asyncio.sleep(error.retry_after_s)
                continue
            except InvalidInput as error:
                at = _REFUSED_AT.match(error.field)
                if at is None and len(batch) > 1:
                    await self._record(batch[: len(batch) // 2])
                    batch = batch[len(batch) // 2 :]
                    continue
                batch = [*batch[: int(at[1])], *batch[int(at[1]) + 1 :]] if at is not None else []
                self._progress.num_refused += 1
                self._progress.refusals[_REFUSED_AT.sub("interactions[]", error.field)] += 1
                continue
            num_duplicates = sum(receipt.duplicate for receipt in receipts)
            self._progress.num_duplicates += num_duplicates
            self._progress.num_recorded += len(receipts) - num_duplicates
            return

    async def _look(self, before: ShardStatus, *, at_once: bool = False) -> None:
        now_s = self._clock.monotonic_s()
        if at_once or now_s - self._told_at_s >= _STATUS_EVERY_S:
            self._told_at_s = now_s
            status, progress = await self._client.status(), self._progress
            progress.lag = status.lag_interactions
            progress.max_lag = max(progress.max_lag, progress.lag)
            progress.num_parked = status.num_parked - before.num_parked
            progress.num_absorbed = status.num_absorbed - before.num_absorbed
            progress.absorbed_tokens = status.absorbed_tokens - before.absorbed_tokens
        self._tell(self._progress)
