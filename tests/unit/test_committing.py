"""A round travels to the store on a thread of its own: what else is done with its shard waits for it, or goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import pytest
from simulated_process import CORE, NUM_PARTITIONS, SHAPE, USERS, ChainAbsorber, chain, chain_of, home_of
from simulated_stores import MemoryJournal, MemoryStore

from siltstone.journal.admit import AdmissionLimits, admit
from siltstone.memory.absorber import Absorber, Absorbers
from siltstone.memory.round import Round
from siltstone.memory.shard import Shard, ShardConfig
from siltstone.values import Commit, Consent, Interaction, InteractionKind, JournalRecord, Message, Parked, Role

ADA = USERS[0]
WAIT_S = 30.0
"""Seconds until a test that hangs gives up."""


class HeldBack(MemoryStore):
    """A store that lets a commit wait, once it has come, until it is let through."""

    def __init__(self) -> None:
        super().__init__(NUM_PARTITIONS)
        self.has_come, self.may_go = threading.Event(), threading.Event()

    def commit(self, commit: Commit) -> None:
        self.has_come.set()
        assert self.may_go.wait(WAIT_S)
        super().commit(commit)


def _admit(record: JournalRecord) -> Interaction | Parked:
    decided = admit(record.payload, AdmissionLimits())
    assert isinstance(decided, Interaction)
    return decided


class Place:
    """A shard that owns everything, its journal and its store."""

    def __init__(self, committer: ThreadPoolExecutor) -> None:
        self.journal, self.store, self.committer = MemoryJournal(NUM_PARTITIONS), HeldBack(), committer
        absorbers = Absorbers({CORE: cast(Absorber, ChainAbsorber())})
        config = ShardConfig()
        self.shard = Shard(self.journal, self.store, _admit, absorbers, CORE, SHAPE, home_of, config)
        self.shard.take([self.store.acquire(partition, "test") for partition in range(NUM_PARTITIONS)])

    def hear(self, name: str) -> None:
        said = (Message(Role.USER, "The depot opens at seven."),)
        consent = Consent(learn=True)
        self.journal.append([Interaction(name, ADA, InteractionKind.DOCUMENT, 1, said, consent=consent)])

    def absorb(self) -> Round:
        taken = self.shard.gather()
        assert taken is not None
        for _ in self.shard.absorb(taken):
            pass
        return taken

    def send(self) -> None:
        """Sends a round on its way, and returns when it is at the store's door."""
        self.shard.begin_commit(self.absorb(), self.committer)
        assert self.store.has_come.wait(WAIT_S)

    def beside(self, do: Callable[[], object]) -> threading.Thread:
        """Does something on another thread, as far as it comes."""
        thread = threading.Thread(target=do, daemon=True)
        thread.start()
        return thread


@pytest.fixture
def place() -> Iterator[Place]:
    with ThreadPoolExecutor(1) as committer:
        place = Place(committer)
        yield place
        place.store.may_go.set()


def test_the_next_round_is_built_on_the_one_that_is_on_its_way(place: Place) -> None:
    place.hear("a")
    place.send()
    place.hear("b")
    following = place.absorb()
    # Nobody is answered from what has not arrived.
    assert chain_of(place.shard.memory_of(ADA)) == 0
    place.store.may_go.set()
    place.shard.end_commit()
    assert chain_of(place.shard.memory_of(ADA)) == chain(0, "a")
    place.shard.commit(following)
    assert chain_of(place.shard.memory_of(ADA)) == chain(chain(0, "a"), "b")
    assert place.shard.num_absorbed == 2


def test_a_user_who_is_forgotten_meanwhile_does_not_come_back(place: Place) -> None:
    place.hear("a")
    place.send()
    forgetting = place.beside(lambda: place.shard.forget(ADA))
    place.store.may_go.set()
    forgetting.join(WAIT_S)
    assert not forgetting.is_alive()
    place.shard.end_commit()
    assert place.store.load(ADA) is None
    assert chain_of(place.shard.memory_of(ADA)) == 0


def test_without_waiting_a_forgotten_user_comes_back(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.hear("a")
    place.send()
    with monkeypatch.context() as unprotected:
        unprotected.setattr(Shard, "settle", lambda self: None)
        place.shard.forget(ADA)
    assert place.store.load(ADA) is None
    place.store.may_go.set()
    place.shard.end_commit()
    assert place.store.load(ADA) is not None


def test_a_partition_that_is_left_meanwhile_is_left_after_it(place: Place) -> None:
    place.hear("a")
    place.send()
    leaving = place.beside(lambda: place.shard.leave([home_of(ADA)]))
    assert place.shard.owns(ADA)
    place.store.may_go.set()
    leaving.join(WAIT_S)
    assert not leaving.is_alive()
    assert not place.shard.owns(ADA)
    assert place.store.position(home_of(ADA)) == 1
