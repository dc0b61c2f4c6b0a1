"""A night over what a cluster holds: read from a real broker and a real store, it is what an embedded one would be."""

from __future__ import annotations

import asyncio
import base64
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import servers
from tiny_home import add_tiny_core, said, teach, tiny_config
from tiny_night import FACT, PEOPLE, SETTINGS, exam, make_home, sleep

from siltstone.adapters.bm25_recall import Bm25Recall
from siltstone.adapters.core_store import CoreStore
from siltstone.adapters.system_clock import SystemClock
from siltstone.config import SiltstoneConfig
from siltstone.errors import InvalidInput
from siltstone.sleep_values import VersionState
from siltstone.values import Consent
from siltstone_services.cluster.backends import open_backends
from siltstone_services.night import NightDone, run_night
from siltstone_services.shard import EmbeddedHost

NUM_PARTITIONS = 4


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[dict[str, Any]]:
    key = tmp_path / "master.key"
    key.write_text(base64.b64encode(bytes(range(32))).decode())
    with servers.tansu(tmp_path / "tansu") as broker, servers.valkey(tmp_path / "valkey") as store:
        topic = f"t{uuid.uuid4().hex}"
        yield {
            **SETTINGS,
            **{f"{part}.num_partitions": NUM_PARTITIONS for part in ("kafka", "redis", "key_store")},
            "cluster.is_on": True,
            "kafka.brokers": f"127.0.0.1:{broker.port}",
            "kafka.topic": topic,
            "kafka.parked_topic": f"{topic}.parked",
            "kafka.replication_factor": 1,
            "kafka.min_insync_replicas": 1,
            "redis.address": f"redis://127.0.0.1:{store.port}",
            "key_store.address": f"redis://127.0.0.1:{store.port}",
            "key_store.namespace": "keys",
            "sealing.master_key_file": str(key),
        }


async def tell(config: SiltstoneConfig, share: bool) -> None:
    """Lets four people say what those of `tiny_night` say, into the cluster's journal and memories."""
    core = CoreStore(config.home_path).load(config.core)
    with open_backends(config) as backends:
        async with EmbeddedHost(core, backends.journal, backends.store, Bm25Recall(), SystemClock(), config) as host:
            for owner in PEOPLE:
                told = [
                    said(owner, f"{owner}-{at}".replace("/", "."), text)
                    for at, text in enumerate([FACT, f"Indeed. {FACT}"])
                ]
                await teach(host, *(replace(one, consent=Consent(learn=True, share=share)) for one in told))


def night_of(config: SiltstoneConfig) -> NightDone:
    return run_night(config, 1, 0, lambda _: None, lambda _: None, exam=exam())


def test_a_night_over_a_cluster_teaches_what_one_over_a_file_does(tmp_path: Path, settings: dict[str, Any]) -> None:
    home = tmp_path / "home"
    home.mkdir()
    add_tiny_core(home)
    config = tiny_config(home, settings)
    asyncio.run(tell(config, share=True))

    done = night_of(config)

    embedded = sleep(make_home(tmp_path / "embedded"))
    assert done.version.state is VersionState.ACCEPTED
    assert done.version.lineage.num_people == len(PEOPLE)
    assert {one.lesson.ids for one in done.night.dreams} == {one.lesson.ids for one in embedded.night.dreams}
    assert done.night.taught.keys() == embedded.night.taught.keys()


def test_what_nobody_shared_is_not_slept_over(tmp_path: Path, settings: dict[str, Any]) -> None:
    home = tmp_path / "home"
    home.mkdir()
    add_tiny_core(home)
    config = tiny_config(home, settings)
    asyncio.run(tell(config, share=False))

    with pytest.raises(InvalidInput):
        night_of(config)
