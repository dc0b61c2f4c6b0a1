"""Promotions that race, and promoters that die: one champion, one epoch after the other, the mirror healed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
from mlflow import MlflowClient
from tiny_versions import accept, sqlite_registry

from siltstone.adapters import mlflow_registry
from siltstone.adapters import sqlite_registry as sqlite_registry_module
from siltstone.adapters.mlflow_registry import MlflowConfig, MlflowRegistry
from siltstone.sleep_values import VersionState

WORKER = Path(__file__).with_name("promotion_worker.py")
BEFORE_DURABLE = [
    "promote.verified",
    "promote.begun",
    "promote.decided",
    "change.states_written",
    "change.moves_written",
    "change.champion_written",
]
AFTERWARDS = ["promote.durable", "mirror.tagged", "mirror.alias_moved"]
UPLOADING = ["mirror.uploaded"]
_names = count()


def worker_command(*arguments):
    return [sys.executable, str(WORKER), *map(str, arguments)]


def worker_environment():
    return {**os.environ, "PYTHONPATH": str(WORKER.parent.parent)}


def run_race(task, home, config, num_movers, num_rounds):
    command = worker_command(task, home, config.address, config.name, num_movers, num_rounds)
    result = subprocess.run(command, env=worker_environment(), capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout.splitlines()[-1])
    assert told["exits"] == [0] * num_movers, result.stderr
    return told["won"]


def alias_of(config):
    client = MlflowClient(config.address, config.address)
    return client.get_model_version_by_alias(config.name, "champion")


def serving(registry):
    return [version.number for version in registry.list() if version.state is VersionState.SERVING]


def new_config(address):
    return MlflowConfig(address, f"promotion-{next(_names)}")


def race_for_the_champion(home, address, num_movers, num_rounds):
    config = new_config(address)
    with sqlite_registry(home) as ledger:
        registry = MlflowRegistry(home, ledger, config)
        for seed in range(1, 5):
            accept(registry, home, seed)
    won = run_race("race", home, config, num_movers, num_rounds)
    assert [epoch for epoch, _ in won] == list(range(1, num_rounds + 1))
    with sqlite_registry(home) as registry:
        champion = registry.champion()
        assert [champion.epoch, champion.number] == won[-1]
        assert serving(registry) == [champion.number]
        risen = [[m.epoch, m.number] for m in registry.history() if m.after is VersionState.SERVING]
        assert risen == won
    assert alias_of(config).tags["siltstone.number"] == str(champion.number)


def race_for_the_alias(home, address, num_movers, num_rounds):
    """Returns how many of the moves that MLflow took were lost, or went back behind a version already served."""
    config = new_config(address)
    client = MlflowClient(address, address)
    client.create_registered_model(config.name)
    for _ in range(num_movers * num_rounds + 1):
        client.create_model_version(config.name, home.as_uri())
    client.set_registered_model_alias(config.name, "champion", "1")
    won = run_race("raw", home, config, num_movers, num_rounds)
    assert len(won) == num_movers * num_rounds
    return len(won) - (int(alias_of(config).version) - 1)


def test_of_racing_movers_one_wins_each_round_and_the_alias_ends_at_the_champion(tmp_path, mlflow_address):
    race_for_the_champion(tmp_path, mlflow_address, num_movers=4, num_rounds=10)


@pytest.mark.slow
def test_eight_movers_in_fifty_rounds_lose_no_move(tmp_path, mlflow_address):
    race_for_the_champion(tmp_path, mlflow_address, num_movers=8, num_rounds=50)


def test_movers_that_only_set_the_alias_lose_moves(tmp_path, mlflow_address):
    assert race_for_the_alias(tmp_path, mlflow_address, num_movers=4, num_rounds=3) > 0


@pytest.mark.slow
def test_eight_movers_in_fifty_rounds_that_only_set_the_alias_lose_moves(tmp_path, mlflow_address):
    assert race_for_the_alias(tmp_path, mlflow_address, num_movers=8, num_rounds=50) > 0


def test_a_late_setter_of_the_alias_moves_it_backwards(tmp_path, mlflow_address):
    config, client = new_config(mlflow_address), MlflowClient(mlflow_address, mlflow_address)
    client.create_registered_model(config.name)
    for _ in range(3):
        client.create_model_version(config.name, tmp_path.as_uri())
    client.set_registered_model_alias(config.name, "champion", "1")
    # Both have seen 1. The fast one promotes twice before the slow one does what it decided at first.
    for number in ("2", "3", "2"):
        client.set_registered_model_alias(config.name, "champion", number)
    assert alias_of(config).version == 2


@pytest.fixture(scope="module")
def mortal(mlflow_address):
    """Promotes in a process that dies at a fault point; returns how it ended."""
    command = worker_command("die", "-", mlflow_address, "-")
    with subprocess.Popen(
        command, env=worker_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as worker:

        def promote(home, config, fault, number, epoch):
            worker.stdin.write(f"{home} {config.name} {fault} {number} {epoch}\n")
            worker.stdin.flush()
            return int(worker.stdout.readline())

        yield promote
        worker.stdin.close()


def test_every_step_of_a_promotion_has_its_fault_point():
    sources = [Path(module.__file__).read_text() for module in (sqlite_registry_module, mlflow_registry)]
    found = re.findall(r'fault_point\("(.+?)"\)', "".join(sources))
    assert sorted(found) == sorted([*BEFORE_DURABLE, *AFTERWARDS, *UPLOADING])


@pytest.fixture
def config(tmp_path, mlflow_address):
    """A registry with two accepted versions, the first of which serves."""
    config = new_config(mlflow_address)
    with sqlite_registry(tmp_path) as ledger:
        registry = MlflowRegistry(tmp_path, ledger, config)
        for seed in (1, 2):
            accept(registry, tmp_path, seed)
        registry.promote(1, 0)
    return config


def test_a_promotion_killed_at_any_step_before_the_last_has_not_happened(tmp_path, config, mortal):
    with sqlite_registry(tmp_path) as ledger:
        before = (ledger.champion(), ledger.list(), ledger.history())
    for point in BEFORE_DURABLE:
        assert mortal(tmp_path, config, f"{point}:1", 2, 1) == -signal.SIGKILL, point
        with sqlite_registry(tmp_path) as ledger:
            assert (ledger.champion(), ledger.list(), ledger.history()) == before, point
        assert alias_of(config).tags["siltstone.number"] == "1"
    with sqlite_registry(tmp_path) as ledger:
        assert MlflowRegistry(tmp_path, ledger, config).promote(2, 1).epoch == 2
    assert alias_of(config).tags["siltstone.number"] == "2"


@pytest.mark.parametrize("point", AFTERWARDS)
def test_a_promotion_killed_after_that_has_happened_and_the_next_start_heals_the_mirror(
    tmp_path, config, mortal, point
):
    # A start finds nothing to mirror, so that the first time a point is reached is in the promotion.
    assert mortal(tmp_path, config, f"{point}:1", 2, 1) == -signal.SIGKILL
    with sqlite_registry(tmp_path) as ledger:
        champion = ledger.champion()
        assert (champion.number, champion.epoch) == (2, 2)
        assert serving(ledger) == [2]
        assert [move.epoch for move in ledger.history()] == [0, 0, 0, 0, 1, 2, 2]
        MlflowRegistry(tmp_path, ledger, config)
        client = MlflowClient(config.address, config.address)
        versions = client.search_model_versions(f"name = '{config.name}'")
        states = {one.tags["siltstone.number"]: one.tags["siltstone.state"] for one in versions}
        assert states == {"1": "retired", "2": "serving"}
        assert alias_of(config).tags["siltstone.number"] == "2"
        assert client.get_registered_model(config.name).tags["siltstone.epoch"] == "2"


def test_a_version_whose_upload_was_killed_is_uploaded_at_the_next_start(tmp_path, mlflow_address, mortal):
    config = new_config(mlflow_address)
    with sqlite_registry(tmp_path) as ledger:
        accept(ledger, tmp_path, 1)
    assert mortal(tmp_path, config, "mirror.uploaded:1", 1, 0) == -signal.SIGKILL
    with sqlite_registry(tmp_path) as ledger:
        registry = MlflowRegistry(tmp_path, ledger, config)
        assert registry.promote(1, 0).epoch == 1
    assert alias_of(config).tags["siltstone.number"] == "1"
