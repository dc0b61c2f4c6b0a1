"""Movers of the champion, run as processes of their own so that they can race and be killed.

    promotion_worker.py race HOME ADDRESS NAME MOVERS ROUNDS   movers under the compare-and-set
    promotion_worker.py raw HOME ADDRESS NAME MOVERS ROUNDS    movers that set MLflow's alias, as without it
    promotion_worker.py die - ADDRESS -                        promotes once for every line HOME NAME FAULT NUMBER EPOCH

Everything is imported once; the movers are forks of it.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import sys
from pathlib import Path

from mlflow import MlflowClient
from tiny_versions import sqlite_registry

from siltstone import faults
from siltstone.adapters.mlflow_registry import MlflowConfig, MlflowRegistry
from siltstone.errors import StaleEpoch

_FORK = multiprocessing.get_context("fork")


def move_with_compare_and_set(home, config, mover, num_rounds, barrier, results):
    """Every mover sees the champion of the round, then all of them try to replace it at once."""
    with sqlite_registry(home) as ledger:
        registry = MlflowRegistry(home, ledger, config)
        numbers = [version.number for version in registry.list()]
        for _ in range(num_rounds):
            seen = registry.champion()
            epoch = seen.epoch if seen else 0
            others = [number for number in numbers if seen is None or number != seen.number]
            barrier.wait()
            try:
                champion = registry.promote(others[mover % len(others)], epoch)
                results.put((champion.epoch, champion.number))
            except StaleEpoch:
                pass
            barrier.wait()


def move_the_alias(home, config, mover, num_rounds, barrier, results):
    """The same without protection: every mover means to put the version after the one it saw."""
    client = MlflowClient(config.address, config.address)
    for _ in range(num_rounds):
        seen = int(client.get_model_version_by_alias(config.name, "champion").version)
        barrier.wait()
        # Some movers are slower than others.
        if mover % 2:
            seen = int(client.get_model_version_by_alias(config.name, "champion").version)
        client.set_registered_model_alias(config.name, "champion", str(seen + 1))
        results.put((seen + 1, seen + 1))
        barrier.wait()


def race(mover, home, config, num_movers, num_rounds):
    barrier, results = _FORK.Barrier(num_movers, timeout=120), _FORK.Manager().Queue()
    movers = [
        _FORK.Process(target=mover, args=(home, config, number, num_rounds, barrier, results))
        for number in range(num_movers)
    ]
    for process in movers:
        process.start()
    for process in movers:
        process.join()
    won = [results.get() for _ in range(results.qsize())]
    print(json.dumps({"won": sorted(won), "exits": [process.exitcode for process in movers]}), flush=True)


def die(home, config, number, fault, epoch):
    """Promotes in a fork that one fault point kills; prints how it ended."""
    process = os.fork()
    if process == 0:
        os.environ[faults.FAULT_VARIABLE] = fault
        importlib.reload(faults)
        with sqlite_registry(home) as ledger:
            MlflowRegistry(home, ledger, config).promote(number, epoch)
        os._exit(0)
    _, status = os.waitpid(process, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)


def main(task, home, address, name, *numbers):
    config = MlflowConfig(address, name)
    if task == "die":
        for line in sys.stdin:
            folder, name, fault, number, epoch = line.split()
            die(Path(folder), MlflowConfig(address, name), int(number), fault, int(epoch))
    else:
        mover = move_with_compare_and_set if task == "race" else move_the_alias
        race(mover, Path(home), config, *map(int, numbers))


if __name__ == "__main__":
    main(*sys.argv[1:])
