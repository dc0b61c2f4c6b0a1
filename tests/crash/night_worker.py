"""Runs nights in forks that die at a fault point: a line `TASK HOME FAULT SEED` in, how the fork ended out.

night      a night, as it is
careless   writes the core of the last night over again where it lies, as a night must not
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import torch
from tiny_night import sleep

from siltstone import faults
from siltstone.adapters.core_store import CoreStore

SETTINGS = {"sleep.keep_versions": 0}


def write_in_place(home: Path) -> None:
    newest = next(core for core in CoreStore(home).list() if core.source.startswith("sleep:"))
    path = home / "cores" / newest.digest / "core.safetensors"
    content = path.read_bytes()
    with path.open("wb") as file:
        for half in (content[: len(content) // 2], content[len(content) // 2 :]):
            file.write(half)
            file.flush()
            faults.fault_point("careless.half")


def run_in_fork(task: str, home: Path, fault: str, seed: int) -> int:
    process = os.fork()
    if process == 0:
        os.environ[faults.FAULT_VARIABLE] = fault
        importlib.reload(faults)
        if task == "careless":
            write_in_place(home)
        else:
            sleep(home, seed, accepts=False, settings=SETTINGS)
        os._exit(0)
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        task, home, fault, seed = line.split()
        print(run_in_fork(task, Path(home), fault, int(seed)), flush=True)
