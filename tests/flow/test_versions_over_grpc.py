"""Versions over gRPC and from the command line: what is told of them, and a champion that moves by compare-and-set."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from echo_host import EchoHost
from tiny_descent import open_versions
from tiny_versions import accept, add_core, lineage, record, verdict
from typer.testing import CliRunner, Result

from siltstone.adapters.system_clock import SystemClock
from siltstone.config import SiltstoneConfig, load_config
from siltstone.errors import Corrupt, InvalidInput, NotFound, StaleEpoch, WrongState
from siltstone.sleep_values import VersionState
from siltstone_services.cli import app
from siltstone_services.client import SiltstoneClient
from siltstone_services.gateway import Gateway
from siltstone_services.home import announced
from siltstone_services.operator_desk import operator_desk
from siltstone_services.version_records import VersionRecords


@pytest.fixture
def config(tmp_path: Path, mlflow_address: str, request: pytest.FixtureRequest) -> SiltstoneConfig:
    settings = {"home": str(tmp_path), "gateway.port": 0, "mlflow.address": mlflow_address}
    return load_config(overrides={**settings, "mlflow.name": request.node.name}, environment={})


@pytest.fixture
def home(config: SiltstoneConfig) -> Path:
    """A home with two versions that passed the gate, a refused one and a candidate."""
    home = config.home_path
    with open_versions(home) as registry:
        accept(registry, home, 1)
        accept(registry, home, 2)
        refused = record(registry, home, 3)
        registry.set_verdict(refused.number, verdict(refused, accepted=False, value=None))
        record(registry, home, 4)
    return home


@pytest_asyncio.fixture
async def client(home: Path, config: SiltstoneConfig) -> AsyncIterator[SiltstoneClient]:
    async with (
        operator_desk(config) as operator,
        Gateway(EchoHost(), config.gateway, config.admission, SystemClock(), operator) as gateway,
        SiltstoneClient(gateway.address, timeout_s=60.0) as client,
    ):
        yield client


async def test_versions_are_told_without_naming_anybody(client: SiltstoneClient, home: Path) -> None:
    versions, champion = await client.versions.list()
    assert [(one.number, one.state.value) for one in versions] == [
        (1, "accepted"),
        (2, "accepted"),
        (3, "refused"),
        (4, "candidate"),
    ]
    assert champion is None
    assert (versions[0].num_people, versions[0].num_interactions, versions[0].seeds) == (2, 8, {"dream": 5})
    assert await client.versions.list(page_size=1) == (versions, champion)
    report = await client.versions.get(3)
    with open_versions(home) as registry:
        assert report.verdict == registry.show(3).verdict
    assert report.card == versions[2]
    assert report.measurements == ()
    (first, second) = await client.versions.explain(3)
    assert "refused: 1 of 1 checks did not pass" in first
    assert "FAIL  retention" in second
    assert await client.versions.explain(4) == ()


async def test_a_champion_moves_only_for_who_has_seen_the_present_one(client: SiltstoneClient) -> None:
    with pytest.raises(NotFound, match="champion"):
        await client.versions.champion()
    first = await client.versions.promote(1, 0)
    assert (first.number, first.epoch) == (1, 1)
    assert await client.versions.champion() == first
    for late in (client.versions.promote(2, 0), client.versions.roll_back(0)):
        with pytest.raises(StaleEpoch, match="expected epoch 0, it is at 1"):
            await late
    assert await client.versions.champion() == first
    assert (await client.versions.promote(2, first.epoch)).number == 2
    back = await client.versions.roll_back(2)
    assert (back.number, back.epoch) == (1, 3)
    versions, champion = await client.versions.list()
    assert champion == back
    assert versions[0].state is VersionState.SERVING


async def test_what_is_not_there_or_has_not_passed_is_refused(client: SiltstoneClient) -> None:
    for call in (client.versions.get(9), client.versions.explain(0), client.versions.promote(9, 0)):
        with pytest.raises(NotFound, match="version"):
            await call
    for number in (3, 4):
        with pytest.raises(WrongState, match=f"version {number} is "):
            await client.versions.promote(number, 0)
    with pytest.raises(NotFound):
        await client.versions.roll_back(0)
    with pytest.raises(InvalidInput, match="page_size"):
        await client.versions.list(page_size=-1)


async def test_evidence_that_was_changed_is_not_told(client: SiltstoneClient, home: Path) -> None:
    (evidence,) = home.glob("versions/000001-*/evidence.json")
    evidence.write_bytes(b'{"measurements": []}')
    with pytest.raises(Corrupt, match="the evidence of version 1"):
        await client.versions.get(1)
    assert (await client.versions.get(2)).card.number == 2


def measured(*values: float) -> bytes:
    told = {
        "name": "capability",
        "unit": "nats/token",
        "candidate": values,
        "champion": [],
        "origin": [0.5],
        "higher_is_better": True,
    }
    return json.dumps({"measurements": [told]}).encode()


async def test_two_versions_are_compared_through_the_server(
    client: SiltstoneClient,
    home: Path,
    config: SiltstoneConfig,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with open_versions(home) as registry:
        for seed, values in ((5, (0.25, 0.75)), (6, (1.0,))):
            registry.record(add_core(home, seed), lineage(f"night-{seed}", f"core-{seed}"), measured(*values))

    found = await client.versions.compare(5, 6)

    assert found == VersionRecords(config).compare(5, 6)
    assert [
        (one.num_items, one.candidate, one.champion) for report in found.reports for one in report.measurements
    ] == [
        (2, 0.5, None),
        (1, 1.0, None),
    ]
    assert found.origins == (("parent", "core-5", "core-6"), ("night", "night-5", "night-6"))
    assert (await client.versions.compare(3, 3)).origins == ()
    with pytest.raises(NotFound, match="version"):
        await client.versions.compare(5, 9)

    # The command has it from the server alone: the home that it is started with holds nothing.
    monkeypatch.setenv("COLUMNS", "200")
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    async def speak(*words: str) -> Result:
        said = ["--home", str(elsewhere), "versions", "compare", *words]
        return await asyncio.to_thread(CliRunner().invoke, app, said)

    shown = await speak("5", "6", "--address", client.address)
    assert shown.exit_code == 0, shown.stderr
    assert "capability 0.5 1 0.5 nats/token" in " ".join(shown.stdout.split())
    assert "night-5 night-6" in " ".join(shown.stdout.split())
    assert (await speak("5", "9", "--address", client.address)).exit_code == 4
    refused = await speak("5", "6", "--measure", "--address", client.address)
    assert refused.exit_code == 3
    assert "a home on this machine" in refused.stderr
    # A server that runs on the home is found without being named.
    with announced(elsewhere, client.address):
        assert (await speak("5", "6")).stdout == shown.stdout
    assert (await speak("5", "6", "--address", "127.0.0.1:1")).exit_code == 2
    assert (await speak("5", "6")).exit_code == 4


def test_the_command_line_moves_the_champion_of_a_home_without_a_server(
    home: Path, config: SiltstoneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")

    def speak(*words: str) -> Result:
        mlflow = ["--set", f"mlflow.address={config.mlflow.address}", "--set", f"mlflow.name={config.mlflow.name}"]
        return CliRunner().invoke(app, ["--home", str(home), *mlflow, *words])

    assert "champion: version 1" in speak("versions", "promote", "1").stdout
    late = speak("versions", "promote", "2", "--expected-epoch", "0")
    assert late.exit_code == 5
    assert "expected epoch 0, it is at 1" in late.stderr
    assert "champion: version 2" in speak("versions", "promote", "2", "--expected-epoch", "1").stdout
    assert "champion: version 1" in speak("versions", "rollback").stdout
    assert "* " in speak("versions", "list").stdout
    assert "1, serving" in " ".join(speak("versions", "show", "1").stdout.split())
    assert "the gate has not judged it" in speak("gate", "explain", "4").stdout
    assert speak("gate", "explain", "7").exit_code == 4
    # An address that is named is not passed over.
    assert speak("versions", "list", "--address", "127.0.0.1:1").exit_code == 2
    # What a server said that is gone is.
    with announced(home, "127.0.0.1:1"):
        assert speak("versions", "list").exit_code == 0


def test_a_home_that_is_not_there_is_not_made_by_looking(tmp_path: Path) -> None:
    home = tmp_path / "mistyped"

    failed = CliRunner().invoke(app, ["--home", str(home), "versions", "list"])

    assert failed.exit_code == 4
    assert "home folder" in failed.stderr
    assert not home.exists()
