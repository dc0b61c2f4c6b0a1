"""Runs a night on a disk that is full, as far as its own limit on file sizes can make it: `FILE.py HOME SEED BYTES`.

No file may grow beyond so many bytes; none with 0. Exit status 0: the night ended; 5: it was refused as unavailable.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch
from tiny_night import sleep

from siltstone.errors import Unavailable


def main(home: Path, seed: int, max_bytes: int) -> int:
    if max_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, max_bytes))
    try:
        sleep(home, seed, accepts=False)
    except Unavailable:
        return 5
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
