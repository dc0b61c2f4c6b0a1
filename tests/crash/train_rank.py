"""One of several ranks that train a job with DeepSpeed over gloo: `train_rank.py JOB RANK WORLD MEETING STAGE`.

MEETING is a file that is not there yet. Prints every step as a line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from siltstone.adapters.deepspeed_trainer import Group, run_rank
from siltstone.sleep.train_config import TrainConfig

if __name__ == "__main__":
    job, rank, world, meeting, stage = sys.argv[1:]
    os.environ["LOCAL_RANK"] = rank
    dist.init_process_group("gloo", f"file://{meeting}", timedelta(seconds=60), rank=int(rank), world_size=int(world))
    config = TrainConfig(
        trainer="ray",
        num_workers=int(world),
        zero_stage=int(stage),
        checkpoint_every_steps=2,  # type: ignore[arg-type]
    )
    run_rank(
        Path(job),
        config,
        "cpu",
        Group("cpu"),
        lambda done: print(json.dumps(asdict(done)), flush=True),
        lambda: False,
    )
    dist.barrier()
