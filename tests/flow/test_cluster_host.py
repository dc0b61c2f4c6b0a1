"""The host of a cluster, over nodes of this process: it finds the owner, follows it, and loses no request."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from pathlib import Path

import pytest
from servers import free_port
from tiny_cluster import NUM_PARTITIONS, ONE_BY_ONE, USERS, blobs_of, embedded_blobs, open_cluster, stream_of
from tiny_home import ADA, add_tiny_core, asking, said, tiny_config
from tiny_night import exam

from siltstone.errors import ConfigInvalid, InvalidInput, KeyMissing, Overloaded, Unavailable
from siltstone.journal.partition import partition_of
from siltstone.placement.coordinator import Claim
from siltstone.values import AnswerEnd, AnswerPart, Consent, GenerateRequest, Interaction, Message, Receipt, Role
from siltstone_services.cluster.conductor import Conductor
from siltstone_services.cluster.router import ClusterHost
from siltstone_services.embedded_store import open_store
from siltstone_services.night import run_night
from siltstone_services.version_records import open_registry

QUESTION = [Message(Role.USER, "Where do I live?")]
ANSWERS = ["In Lisbon.", "In Oslo."]
IS_ON = {
    **{f"{part}.num_partitions": NUM_PARTITIONS for part in ("kafka", "redis", "key_store")},
    "cluster.is_on": True,
    "sealing.master_key_variable": "KEY",
}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    add_tiny_core(home)
    return home


async def answer(host: ClusterHost, request: GenerateRequest) -> tuple[str, AnswerEnd]:
    items = [item async for item in host.generate(request)]
    assert isinstance(items[-1], AnswerEnd)
    return "".join(item.text for item in items[:-1] if isinstance(item, AnswerPart)), items[-1]


async def teach(host: ClusterHost, stream: Sequence[Interaction], at_once: int = 10) -> None:
    for start in range(0, len(stream), at_once):
        await host.wait_absorbed(await host.record(stream[start : start + at_once]))


async def settled(conductor: Conductor, **shares: int) -> None:
    def is_so() -> bool:
        names = [name.replace("_", "-") for name in shares]
        found = [len(conductor.coordinator.partitions_of(name)) for name in names]
        return conductor.coordinator.is_settled and found == list(shares.values())

    await conductor.wait_for(is_so, 30, "the cluster", "it does not settle")


async def test_memories_are_those_of_one_process_to_the_bit(home: Path) -> None:
    users = USERS[:10]
    stream = stream_of(2, users)
    async with open_cluster(home, ONE_BY_ONE) as (host, conductor, _):
        await settled(conductor, shard_0=8, shard_1=8)
        await teach(host, stream)
        found = await blobs_of(host, users)
        told, end = await answer(host, asking(users[0], "Where do I live?"))
        assert (end.snapshot_sequence, end.recorded) == (2, None)
        assert told
        views = await host.shards()
        assert [len(view.partitions) for view in views] == [8, 8]
        assert {place.partition for view in views for place in view.partitions} == set(range(NUM_PARTITIONS))
        assert all(place.epoch >= 1 for view in views for place in view.partitions)
        assert sum(place.position for view in views for place in view.partitions) == len(stream)
        status = await host.status()
        assert (status.num_absorbed, status.num_users_stored, status.lag_interactions) == (len(stream), len(users), 0)
    assert found == await embedded_blobs(home, stream, users)


async def test_no_request_fails_while_a_shard_is_drained_and_comes_back_under_load(home: Path) -> None:
    users = USERS[:8]
    stream = stream_of(4, users)
    async with open_cluster(home, ONE_BY_ONE) as (host, conductor, _):
        is_over = asyncio.Event()
        num_scored = 0

        async def ask(user: int) -> None:
            nonlocal num_scored
            while not is_over.is_set():
                await host.score(users[user], QUESTION, ANSWERS)
                await answer(host, asking(users[user], "Where do I live?", max_tokens=4))
                num_scored += 1
                await asyncio.sleep(0.02)

        asking_all = [asyncio.create_task(ask(user)) for user in range(3)]
        half = len(stream) // 2
        await teach(host, stream[: half // 2])
        conductor.coordinator.drain("shard-0")
        await teach(host, stream[half // 2 : half])
        await settled(conductor, shard_0=0, shard_1=16)
        conductor.coordinator.undrain("shard-0")
        await teach(host, stream[half:])
        await settled(conductor, shard_0=8, shard_1=8)
        is_over.set()
        await asyncio.gather(*asking_all)
        assert num_scored > 0
        found = await blobs_of(host, users)
    assert found == await embedded_blobs(home, stream, USERS[:8])


async def test_a_shard_that_dies_loses_nothing_and_gets_its_share_back(home: Path) -> None:
    stream = stream_of(3, USERS[:8])
    async with open_cluster(home, ONE_BY_ONE) as (host, conductor, fleet):
        third = len(stream) // 3
        await teach(host, stream[:third])
        fleet.may_restart.clear()
        recorded = await host.record(stream[third : 2 * third])
        await fleet.links["shard-0"].die()
        await host.wait_absorbed(recorded)
        assert (await host.memory(USERS[0])).num_interactions == 2
        await settled(conductor, shard_1=16)
        fleet.may_restart.set()
        await teach(host, stream[2 * third :])
        await settled(conductor, shard_0=8, shard_1=8)
        assert fleet.num_restarts == 1
        found = await blobs_of(host, USERS[:8])
    assert found == await embedded_blobs(home, stream, USERS[:8])


async def test_an_answer_goes_on_where_it_was_when_its_shard_dies(home: Path) -> None:
    async with open_cluster(home) as (host, conductor, fleet):
        await teach(host, [said(ADA, "a0", "I live in Oslo.")])
        request = asking(ADA, "Where do I live?", max_tokens=48)
        whole, _ = await answer(host, request)
        owner = conductor.coordinator.owner_of(partition_of(ADA, NUM_PARTITIONS))
        assert owner is not None
        items = host.generate(request)
        begun = await anext(items)
        await fleet.links[owner.shard].die()
        rest = [item async for item in items]
        assert isinstance(begun, AnswerPart)
        assert "".join(item.text for item in [begun, *rest] if isinstance(item, AnswerPart)) == whole
        assert isinstance(rest[-1], AnswerEnd)


async def test_an_answer_whose_user_has_moved_on_is_not_mended_by_another_one(home: Path) -> None:
    async with open_cluster(home) as (host, conductor, fleet):
        await teach(host, [said(ADA, "a0", "I live in Oslo.")])
        owner = conductor.coordinator.owner_of(partition_of(ADA, NUM_PARTITIONS))
        assert owner is not None
        items = host.generate(asking(ADA, "Where do I live?", max_tokens=400))
        await anext(items)
        recorded = await host.record([said(ADA, "a1", "I was born in Lisbon.")])
        await fleet.links[owner.shard].die()
        await host.wait_absorbed(recorded)
        with pytest.raises(Unavailable, match="the rest of the answer"):
            [item async for item in items]


async def test_an_answered_question_is_learned_once_it_is_answered(home: Path) -> None:
    async with open_cluster(home) as (host, _, _):
        request = asking(ADA, "Where do I live?", interaction_id="q0", consent=Consent(learn=True))
        _, end = await answer(host, request)
        assert end.recorded is not None
        assert await host.wait_absorbed([end.recorded]) == []
        assert (await host.memory(ADA)).num_interactions == 1


async def test_a_forgotten_user_is_gone_and_can_begin_anew(home: Path) -> None:
    async with open_cluster(home) as (host, _, _):
        await teach(host, [said(ADA, "a0", "I live in Oslo."), said(ADA, "a1", "I was born in Lisbon.")])
        erasure = await host.forget(ADA)
        assert (erasure.had_memory, erasure.num_interactions) == (True, 2)
        assert (await host.memory(ADA)).sequence == 0
        await teach(host, [said(ADA, "a2", "I live in Oslo.")])
        assert (await host.memory(ADA)).num_interactions == 1


async def test_calls_that_come_together_travel_together(home: Path) -> None:
    async with open_cluster(home) as (host, _, fleet):
        await teach(host, stream_of(1))
        num_before, hops_before = host._appends.num_hops, sum(batch.num_hops for batch in host._scores.values())
        await asyncio.gather(*(host.score(owner, QUESTION, ANSWERS) for owner in USERS))
        receipts = await asyncio.gather(*(host.record([said(owner, "late", "Hello.")]) for owner in USERS))
        await asyncio.gather(*map(host.wait_absorbed, receipts))
        hops = sum(batch.num_hops for batch in host._scores.values()) - hops_before
        # The first goes at once, and the others while it is on its way; to each of two shards.
        assert hops <= 2 * len(fleet.links)
        assert host._appends.num_hops - num_before <= 2


async def test_one_calls_fault_is_not_the_others(home: Path) -> None:
    async with open_cluster(home) as (host, _, _):
        bad = said(ADA, "bad", "\ud800")
        told = await asyncio.gather(
            host.record([said(USERS[0], "x0", "Hello.")]),
            host.record([bad]),
            host.record([said(USERS[1], "x1", "Hello.")]),
            return_exceptions=True,
        )
        assert [isinstance(one, InvalidInput) for one in told] == [False, True, False]
        with pytest.raises(InvalidInput):
            await host.score(ADA, QUESTION, [""])


async def test_one_users_key_is_not_the_trouble_of_who_records_beside_that_user(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_cluster(home) as (host, _, _):
        append = host._journal.append

        def needs_keys(interactions: Sequence[Interaction]) -> list[Receipt]:
            if any(one.owner == ADA for one in interactions):
                raise KeyMissing(f"the key of {ADA}", "one of the vault's master key", "one of another")
            return append(interactions)

        monkeypatch.setattr(host._journal, "append", needs_keys)
        others = [owner for owner in USERS if owner != ADA][:2]
        told = await asyncio.gather(
            *(host.record([said(owner, "beside", "Hello.")]) for owner in (others[0], ADA, others[1])),
            return_exceptions=True,
        )
        assert [isinstance(one, KeyMissing) for one in told] == [False, True, False]


async def test_what_is_too_much_for_a_shard_that_lags_is_refused_with_a_time(home: Path) -> None:
    settings = {"shard.max_lag_interactions": 4, "cluster.num_shards": 1}
    async with open_cluster(home, settings, num_shards=1) as (host, conductor, fleet):
        fleet.may_restart.clear()
        await fleet.links["shard-0"].die()
        await conductor.wait_for(lambda: not conductor.coordinator.shards, 30, "the shard", "it is not missed")
        for number in range(4):
            await host.record([said(ADA, f"a{number}", "Hello.")])
        with pytest.raises(Overloaded, match="try again in"):
            await host.record([said(ADA, "more", "Hello.")])
        fleet.may_restart.set()
        await conductor.wait_for(lambda: conductor.coordinator.is_settled, 30, "the cluster", "it does not settle")
        while (await host.status()).lag_interactions:
            await asyncio.sleep(0.01)
        await host.record([said(ADA, "after", "Hello.")])


async def test_without_any_owner_a_request_is_told_so_once_its_time_is_over(home: Path) -> None:
    async with open_cluster(home, {"cluster.follow_budget_s": 0.3}) as (host, conductor, fleet):
        fleet.may_restart.clear()
        recorded = await host.record([said(ADA, "a0", "Hello.")])
        await host.wait_absorbed(recorded)
        for link in fleet.links.values():
            await link.die()
        await conductor.wait_for(lambda: not conductor.coordinator.shards, 30, "the shards", "they are not missed")
        with pytest.raises(Unavailable, match="none owns it now"):
            await host.memory(ADA)
        with pytest.raises(Unavailable, match="none owns it now"):
            [item async for item in host.generate(asking(ADA, "Where?"))]
        # The journal takes what is said meanwhile.
        recorded = await host.record([said(ADA, "a1", "Hello again.")])
        fleet.may_restart.set()
        await conductor.wait_for(lambda: conductor.coordinator.is_settled, 30, "the cluster", "it does not settle")
        await host.wait_absorbed(recorded)


async def test_an_order_that_fails_again_and_again_of_the_same_is_told_once(
    home: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_tries = 0

    async def away(*_: object) -> Claim:
        nonlocal num_tries
        num_tries += 1
        raise Unavailable("the store", "nobody answers")

    async with open_cluster(home) as (_, conductor, fleet):
        for _ in range(2):
            with monkeypatch.context() as patch:
                num_tries = 0
                patch.setattr(fleet.links["shard-1"], "assign", away)
                await fleet.links["shard-1"].die()
                async with asyncio.timeout(60):
                    while num_tries < 3:
                        await asyncio.sleep(0.01)
            await settled(conductor, shard_0=NUM_PARTITIONS // 2, shard_1=NUM_PARTITIONS // 2)
    told = [record for record in caplog.records if record.getMessage() == "order failed"]
    assert [(vars(one)["order"], vars(one)["error"]) for one in told] == 2 * [
        ("assign", "the store is unavailable: nobody answers")
    ]


def test_what_works_on_the_file_of_a_home_is_refused_for_a_cluster(home: Path) -> None:
    with (
        pytest.raises(ConfigInvalid, match="the memories of a cluster are not in it"),
        open_store(tiny_config(home, IS_ON)),
    ):
        pass


def test_a_night_over_a_cluster_that_does_not_answer_ends_with_that(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY", base64.b64encode(bytes(range(32))).decode())
    nobody = {"key_store.address": f"redis://127.0.0.1:{free_port()}", "key_store.retry_budget_s": 0.05}

    with pytest.raises(Unavailable):
        run_night(tiny_config(home, {**IS_ON, **nobody}), 0, 0, lambda _: None, lambda _: None, exam=exam())

    with open_registry(tiny_config(home)) as registry:
        assert registry.list() == ()
