"""Trains jobs, each in a process of its own that is killed: `train_forker.py JOB FAULT [JOB FAULT]...`.

A fault is a fault point with its count, or "after:MILLISECONDS". Prints the wait status of each as a JSON list.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import tiny
import torch
from tiny_training import put_job

from siltstone import faults
from siltstone.adapters.plain_trainer import PlainTrainer
from siltstone.sleep.train_config import TrainConfig

CONFIG = TrainConfig(checkpoint_every_steps=3)


def train_and_die(job: Path, fault: str) -> int:
    """Returns the wait status of a process that trained a job until it was killed."""
    name, _, count = fault.rpartition(":")
    child = os.fork()
    if not child:
        if name != "after":
            os.environ[faults.FAULT_VARIABLE] = fault
            # The point was imported by name already; it looks its arming up in the module, which is filled anew.
            importlib.reload(faults)
        PlainTrainer(CONFIG).train(put_job(job))
        os._exit(0)
    if name == "after":
        time.sleep(int(count) / 1000)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


if __name__ == "__main__":
    # What all of them need is made once, before there are several; torch's optimisers import much when first made.
    tiny.world()
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
    pairs = zip(sys.argv[1::2], sys.argv[2::2], strict=True)
    print(json.dumps([train_and_die(Path(job), fault) for job, fault in pairs]))
