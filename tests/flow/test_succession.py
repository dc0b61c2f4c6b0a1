"""One version follows another while a server goes on: pinned requests, users carried over, and the way back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tiny_descent import accept, add_descendant, open_versions, promote, roll_back, with_settings
from tiny_home import (
    ADA,
    BEN,
    CLEO,
    add_tiny_core,
    answer,
    asking,
    blob,
    is_registry_open,
    said,
    scores,
    teach,
    tiny_config,
)

from siltstone.errors import Corrupt, NotFound, Unavailable, WrongState
from siltstone.memory.user_memory import from_blob
from siltstone.values import AnswerEnd, UserKey
from siltstone_services.served import ServedCores
from siltstone_services.shard import EmbeddedHost
from siltstone_services.wiring import embedded_host

LINES = [
    "I was born in Lisbon and I live in Oslo now.",
    "My dog is called Ferro and he is nine years old.",
    "I keep the keys of the depot in the blue box.",
    "On Fridays I take the early train home.",
    "My sister paints boats in a shed by the river.",
]
FINE, COARSE = 0.002, 3.0
"""Noise that a user's text hardly feels, and noise that nothing learned survives."""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    add_tiny_core(tmp_path)
    return tmp_path


@asynccontextmanager
async def serving(home: Path, **settings: Any) -> AsyncIterator[EmbeddedHost]:
    async with embedded_host(tiny_config(home, with_settings(**settings))) as host:
        assert isinstance(host, EmbeddedHost)
        yield host


async def until(what: Any) -> None:
    async with asyncio.timeout(60):
        while not what():
            await asyncio.sleep(0.01)


async def core_of(host: EmbeddedHost, owner: UserKey) -> str:
    return (await answer(host, asking(owner, "Where do I live?", max_tokens=2)))[1].core


async def until_core_of(host: EmbeddedHost, owner: UserKey, version: str) -> None:
    async with asyncio.timeout(60):
        while await core_of(host, owner) != version:
            await asyncio.sleep(0.01)


async def learn(host: EmbeddedHost, owner: UserKey) -> None:
    await teach(host, *[said(owner, f"{owner.user}{number}", line) for number, line in enumerate(LINES)])


async def test_a_promoted_version_leads_and_carries_users_over_without_a_failed_or_mixed_answer(home: Path) -> None:
    digest = add_descendant(home, FINE, seed=1)
    async with serving(home) as host:
        await learn(host, ADA)
        before, first = await scores(host, ADA), host.version
        card = await host.memory(ADA)
        asked, ends = True, []

        async def keep_asking(owner: UserKey) -> None:
            while asked:
                text, end = await answer(host, asking(owner, "Where do I live?", max_tokens=12))
                ends.append((owner, text, end))

        asking_all = [asyncio.create_task(keep_asking(owner)) for owner in (ADA, BEN, CLEO)]
        promote(home, accept(home, digest))
        await until(lambda: host.version != first)
        await until_core_of(host, ADA, host.version)
        asked = False
        await asyncio.gather(*asking_all)

        assert host.version.startswith(digest)
        # Under one version and one state of the memory a greedy answer is one text.
        texts: dict[tuple[UserKey, str, int], set[str]] = {}
        for owner, text, end in ends:
            texts.setdefault((owner, end.core, end.snapshot_sequence), set()).add(text)
        assert all(len(found) == 1 for found in texts.values())
        assert {core for _, core, _ in texts} == {first, host.version}
        moved = await host.memory(ADA)
        assert (moved.core, moved.sequence) == (host.version, card.sequence + 1)
        assert moved.num_interactions == card.num_interactions
        after = await scores(host, ADA)
        assert max(abs(new - old) for (new, _), (old, _) in zip(after, before, strict=True)) < 1.0
        assert [core for _, core in after] != [core for _, core in before]
        # What is learned from now on is learned on the new version.
        await teach(host, said(ADA, "later", "I moved to Porto."))
        assert (await host.memory(ADA)).core == host.version


async def test_who_would_lose_by_it_stays_with_the_old_version_and_goes_on_learning(home: Path) -> None:
    digest = add_descendant(home, COARSE, seed=2)
    async with serving(home) as host:
        await learn(host, ADA)
        first = host.version
        promote(home, accept(home, digest))
        await until(lambda: host.version != first)
        assert await core_of(host, ADA) == first
        await until(lambda: host._upkeep.num_pinned == 1)
        await teach(host, said(ADA, "later", "I moved to Porto."))
        card = await host.memory(ADA)
        assert (card.core, card.num_interactions) == (first, len(LINES) + 1)
        assert await core_of(host, BEN) == host.version
    async with serving(home) as host:
        assert await core_of(host, ADA) == first
        assert await core_of(host, BEN) != first


async def test_control_levels_put_on_another_core_as_they_are_lose_what_they_knew(home: Path) -> None:
    """Without the check on a user's own text, the memory of the test above would have been carried over."""
    digest = add_descendant(home, COARSE, seed=2)
    async with serving(home) as host:
        await learn(host, ADA)
        before = await scores(host, ADA)
        first, stored = host.version, await blob(host, ADA)
    with_new = tiny_config(home, {"core": digest})
    async with embedded_host(with_new) as host:
        assert isinstance(host, EmbeddedHost)
        memory = from_blob(ADA, stored, first, host._lanes.leading.shape)
        moved = memory.moved(host.version, memory.coefficients() * 0)
        await host._ask(lambda: host._shard.replace(moved))
        after = await scores(host, ADA)
    assert max(old - new for (new, _), (old, _) in zip(after, before, strict=True)) > 1.0


async def test_a_rollback_brings_newcomers_and_users_back(home: Path) -> None:
    digest = add_descendant(home, FINE, seed=3)
    promote(home, accept(home, digest))
    async with serving(home) as host:
        second = host.version
        assert second.startswith(digest)
        await learn(host, ADA)
        roll_back(home)
        await until(lambda: host.version != second)
        assert await core_of(host, BEN) == host.version
        await until_core_of(host, ADA, host.version)
        await until(lambda: [lane.version for lane in host._lanes] == [host.version])


async def test_nobody_is_left_behind_by_a_restart_between_promotion_and_rebase(home: Path) -> None:
    async with serving(home) as host:
        await learn(host, ADA)
        first = host.version
    promote(home, accept(home, add_descendant(home, FINE, seed=4)))
    async with serving(home) as host:
        assert host.version != first
        assert {lane.version for lane in host._lanes} == {first, host.version}
        await until_core_of(host, ADA, host.version)


async def test_an_answer_that_runs_while_the_version_changes_ends_as_it_began(home: Path) -> None:
    digest = add_descendant(home, FINE, seed=5)
    number = accept(home, digest)
    async with serving(home) as host:
        await learn(host, ADA)
        first = host.version
        alone, _ = await answer(host, asking(ADA, "Tell me all.", max_tokens=200))
        stream = host.generate(asking(ADA, "Tell me all.", max_tokens=200))
        parts = [await anext(stream)]
        promote(home, number)
        await until(lambda: host.version != first)
        parts += [part async for part in stream]
        end = parts[-1]
        assert isinstance(end, AnswerEnd)
        assert end.core == first
        assert "".join(part.text for part in parts if not isinstance(part, AnswerEnd)) == alone


async def test_what_did_not_pass_or_was_tampered_with_never_leads(home: Path) -> None:
    digest = add_descendant(home, FINE, seed=6)
    number = accept(home, digest)
    refused = add_descendant(home, FINE, seed=7)
    with open_versions(home) as registry:
        lineage = registry.show(number).lineage
        registry.record(home / "cores" / refused, lineage, b"{}")
    with ServedCores(tiny_config(home)) as served:
        with pytest.raises(WrongState):
            served.load(refused)
        with pytest.raises(NotFound):
            served.load("0" * 64)
    async with serving(home) as host:
        first = host.version
        promote(home, number)
        with open_versions(home) as registry:
            weights = registry.artefact(number) / "cores" / digest / "core.safetensors"
        content = bytearray(weights.read_bytes())
        content[-5] ^= 1
        weights.unlink()
        weights.write_bytes(content)
        with pytest.raises(Corrupt):
            await host.follow()
        assert host.version == first
        assert await core_of(host, BEN) == first
    with pytest.raises(Corrupt):
        async with serving(home):
            pass


async def test_a_host_that_was_closed_has_let_go_of_the_registry(home: Path) -> None:
    accept(home, add_descendant(home, FINE, seed=9))
    async with serving(home) as host:
        await host.follow()
        assert is_registry_open(home)
    # Somebody still holds the host; what it had open is closed all the same.
    assert host.version
    assert not is_registry_open(home)
    with pytest.raises(Unavailable, match="closed"):
        await asyncio.to_thread(host._succession._served.digest)  # type: ignore[union-attr]
