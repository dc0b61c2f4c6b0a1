"""Shards as actors of Ray: where they are placed, how they are started anew, and how they are reached."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Final, TypeVar

import ray
import ray.exceptions
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from siltstone.config import SiltstoneConfig
from siltstone.errors import SiltstoneError, Unavailable
from siltstone.placement.coordinator import Claim
from siltstone.placement.settings import ClusterConfig
from siltstone.values import AnswerEnd, AnswerPart, Erasure, GenerateRequest, MemoryCard, UserExport, UserKey
from siltstone_services.answers import Pinned
from siltstone_services.beat import Beat, Progress
from siltstone_services.cluster.conductor import within
from siltstone_services.cluster.links import ScoreQuestion, Scores, ShardGone
from siltstone_services.cluster.ray_session import first_line
from siltstone_services.cluster.shard_actor import ShardActor

T = TypeVar("T")

_LOG = logging.getLogger(__name__)
_LOOKS_FOR_ROOM_S: Final = 0.5
_DIED_FOR_GOOD: Final = 4
"""Times in a row that an actor must be told dead before it is taken for one that Ray will not start anew."""


class RayLink:
    """`ShardLink` to an actor. Its errors come as ours, or as ShardGone."""

    def __init__(self, name: str, actor: Any, on_gone: Callable[[str], None]) -> None:
        """`on_gone` hears of every call that did not reach the actor: why it is dead, or nothing where it may live."""
        self.actor, self._name, self._on_gone = actor, name, on_gone

    async def beat(self) -> Beat | None:
        """See `ShardLink.beat`."""
        beat: Beat | None = await self._ask(self.actor.beat.remote)
        return beat

    async def assign(self, partitions: Sequence[int]) -> Claim:
        """See `ShardLink.assign`."""
        claim: Claim = await self._ask(self.actor.assign.remote, partitions)
        return claim

    async def release(self, partitions: Sequence[int]) -> int:
        """See `ShardLink.release`."""
        change: int = await self._ask(self.actor.release.remote, partitions)
        return change

    def watch(self) -> AsyncGenerator[Progress, None]:
        """See `ShardLink.watch`."""
        return self._stream(self.actor.watch.options(num_returns="streaming").remote)

    def answer(self, request: GenerateRequest) -> AsyncGenerator[Pinned | AnswerPart | AnswerEnd, None]:
        """See `ShardLink.answer`."""
        return self._stream(self.actor.answer.options(num_returns="streaming").remote, request)

    async def scores(self, questions: Sequence[ScoreQuestion]) -> list[Scores | SiltstoneError]:
        """See `ShardLink.scores`."""
        told: list[Scores | SiltstoneError] = await self._ask(self.actor.scores.remote, questions)
        return told

    async def cards(self, owners: Sequence[UserKey]) -> list[MemoryCard | SiltstoneError]:
        """See `ShardLink.cards`."""
        told: list[MemoryCard | SiltstoneError] = await self._ask(self.actor.cards.remote, owners)
        return told

    async def export(self, owner: UserKey) -> UserExport:
        """See `ShardLink.export`."""
        export: UserExport = await self._ask(self.actor.export.remote, owner)
        return export

    async def forget(self, owner: UserKey) -> Erasure:
        """See `ShardLink.forget`."""
        erasure: Erasure = await self._ask(self.actor.forget.remote, owner)
        return erasure

    async def stop(self) -> None:
        """Stops the node behind the actor."""
        await self._ask(self.actor.stop.remote)

    async def _ask(self, call: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        with self._translated():
            return await call(*arguments)

    async def _stream(self, call: Callable[..., Any], *arguments: Any) -> AsyncGenerator[Any, None]:
        with self._translated():
            items = call(*arguments)
        is_over = False
        try:
            with self._translated():
                async for reference in items:
                    yield await reference
            is_over = True
        except SiltstoneError:
            is_over = True
            raise
        finally:
            if not is_over:
                # Whoever listened has gone: the actor need not go on.
                ray.cancel(items)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, SiltstoneError):
                raise cause from None
            raise Unavailable(f"the shard {self._name}", f"{type(cause).__name__} in it") from error
        except ray.exceptions.RayActorError as error:
            self._on_gone(_why_dead(error) if isinstance(error, ray.exceptions.ActorDiedError) else "")
            raise ShardGone(f"the shard {self._name}", first_line(error)) from error
        except (ray.exceptions.RayError, ConnectionError) as error:
            raise ShardGone(f"the shard {self._name}", first_line(error)) from error


def bundle_of(cluster: ClusterConfig) -> dict[str, float]:
    """Returns the room that a shard needs, as a bundle of a placement group."""
    wanted = {
        "CPU": cluster.cpus_per_shard,
        "GPU": cluster.gpus_per_shard,
        "memory": cluster.memory_bytes_per_shard,
    }
    return {name: amount for name, amount in wanted.items() if amount}


def actor_options(cluster: ClusterConfig) -> dict[str, Any]:
    """Returns what a shard's actor takes of its bundle, and how often it is started anew.

    Nothing is left out that Ray would otherwise choose: an actor that asks for no GPU sees none.
    """
    options: dict[str, Any] = {
        "num_cpus": cluster.cpus_per_shard,
        "num_gpus": cluster.gpus_per_shard,
        "max_restarts": cluster.max_restarts,
    }
    if cluster.memory_bytes_per_shard:
        options["memory"] = cluster.memory_bytes_per_shard
    return options


@dataclass(slots=True)
class _Place:
    group: Any
    bundle: int
    link: RayLink | None = None
    num_died: int = 0
    why_dead: str = ""


class RayShards:
    """`ShardFleet` of actors in placement groups: one for those it begins with, and one for each that comes later.

    Call it from one event loop.
    """

    max_task_retries: ClassVar[int] = 0
    """A call that was cut off is sent again by who made it, to the owner of that moment, and not by Ray. Were it sent
    by Ray as well, what is stored would be the same."""

    actor_class: ClassVar[type[ShardActor]] = ShardActor

    def __init__(self, config: SiltstoneConfig, log_level: str = "info") -> None:
        """Asks Ray for the room and starts the actors; each opens its node when it is first asked how it is.

        Raises: Unavailable when Ray has no room for them within `cluster.start_budget_s`.
        """
        self._config, self._cluster, self._log_level = config, config.cluster, log_level
        self._places: dict[str, _Place] = {}
        self._spare: list[_Place] = []
        """Room of shards that have left, in groups in which others still live: Ray gives a group's room back as a
        whole."""
        group = placement_group([bundle_of(self._cluster)] * self._cluster.num_shards, strategy=self._cluster.strategy)
        if not group.wait(self._cluster.start_budget_s):
            remove_placement_group(group)
            raise self._no_room(f"{self._cluster.num_shards} shards")
        for number in range(self._cluster.num_shards):
            name = f"shard-{number}"
            self._places[name] = _Place(group, number)
            self._begin(name)

    def _no_room(self, what: str) -> Unavailable:
        return Unavailable("Ray", f"it has no room for {what} of {bundle_of(self._cluster)}")

    async def _find_room(self) -> _Place:
        """Finds room for one more shard. Raises: Unavailable."""
        if self._spare:
            return self._spare.pop()
        elsewhere: dict[str, Any] = {}
        if self._cluster.strategy == "STRICT_SPREAD" and (nodes := await asyncio.to_thread(self._nodes)):
            # A group of its own knows nothing of the others: it is told where they are.
            elsewhere = {"bundle_label_selector": [{"ray.io/node-id": f"!in({','.join(sorted(nodes))})"}]}
        group = placement_group([bundle_of(self._cluster)], strategy="PACK", **elsewhere)
        is_there, give_up_at_s = False, time.monotonic() + self._cluster.start_budget_s
        try:
            while not is_there:
                if time.monotonic() >= give_up_at_s:
                    raise self._no_room("another shard")
                # In short waits: whoever gives up is not held up by Ray.
                is_there = await asyncio.to_thread(group.wait, _LOOKS_FOR_ROOM_S)
        finally:
            if not is_there:
                remove_placement_group(group)
        return _Place(group, 0)

    def _nodes(self) -> set[str]:
        """Returns the machines on which shards are placed."""
        found: set[str] = set()
        for place in self._places.values():
            found.add(placement_group_table(place.group)["bundles_to_node_id"][place.bundle])
        return found

    def _begin(self, name: str) -> None:
        place = self._places[name]
        options = actor_options(self._cluster) | {
            "max_task_retries": self.max_task_retries,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(place.group, place.bundle),
        }
        actor = ray.remote(**options)(self.actor_class).remote(name, asdict(self._config), self._log_level)

        def on_gone(why_dead: str) -> None:
            place.num_died, place.why_dead = (place.num_died + 1 if why_dead else 0), why_dead

        place.num_died, place.link = 0, RayLink(name, actor, on_gone)

    @property
    def names(self) -> Sequence[str]:
        """The shards' names."""
        return tuple(self._places)

    def link(self, name: str) -> RayLink:
        """See `ShardFleet.link`."""
        place = self._places.get(name)
        if place is None or place.link is None:
            raise ShardGone(f"the shard {name}", "it has left")
        return place.link

    async def begin(self, name: str) -> None:
        """See `ShardFleet.begin`."""
        self._places[name] = await self._find_room()
        self._begin(name)

    async def end(self, name: str) -> None:
        """See `ShardFleet.end`."""
        await self._end(name)
        place = self._places.pop(name)
        place.link, place.num_died = None, 0
        self._spare.append(place)
        if all(other.group is not place.group for other in self._places.values()):
            self._spare = [spare for spare in self._spare if spare.group is not place.group]
            remove_placement_group(place.group)

    async def _end(self, name: str) -> None:
        try:
            await within(self._cluster.release_budget_s, self.link(name).stop())
        except (SiltstoneError, TimeoutError) as error:
            told = {"shard": name, "error": str(error) or type(error).__name__}
            _LOG.info("shard was not there to be stopped", extra=told)
        with _of_a_dead_ray():
            ray.kill(self.link(name).actor, no_restart=True)

    async def restart(self, name: str, is_gone: bool) -> None:
        """See `ShardFleet.restart`. Ray starts an actor anew by itself, as often as it is allowed to."""
        place = self._places[name]
        if not is_gone:
            ray.kill(self.link(name).actor, no_restart=False)
        elif place.num_died >= _DIED_FOR_GOOD:
            _LOG.warning("shard placed anew", extra={"shard": name, "reason": place.why_dead})
            self._begin(name)

    async def stop(self) -> None:
        """Stops every node, all at once, then its process, and gives the room back."""
        await asyncio.gather(*map(self._end, self.names))
        for group in {id(place.group): place.group for place in self._places.values()}.values():
            with _of_a_dead_ray():
                remove_placement_group(group)


@contextmanager
def _of_a_dead_ray() -> Iterator[None]:
    """Lets what is to end be ended already: it is not to hide why."""
    try:
        yield
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        _LOG.info("Ray could not end what it held", extra={"error": first_line(error)})


def _why_dead(error: BaseException) -> str:
    """Returns what Ray says, and what the process raised that never began: it comes last."""
    lines = str(error).strip().splitlines()
    last = lines[-1].strip() if len(lines) > 1 else ""
    return f"{first_line(error)} {last[:200]}".strip()
