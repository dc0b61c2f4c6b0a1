"""The cases of `siltstone bench wake`: serving and learning for many users."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from siltstone.errors import Unavailable
from siltstone.memory.user_memory import MemoryConfig
from siltstone_services.benchmark.decode import run_decode
from siltstone_services.benchmark.gpu import copy_rate, run_large
from siltstone_services.benchmark.peers import PeftPeer, peers_python, peft_peer, run_peft_decode
from siltstone_services.benchmark.readings import Outcome, Say, Target, at_least
from siltstone_services.benchmark.store import run_stored_users, run_swap
from siltstone_services.benchmark.update import LEARNED_TOKENS, Peer, run_update
from siltstone_services.benchmark.world import COMMON, LLAMA_1B, LLAMA_7B, SMOLLM2, Shape, World

SMALL_MEMORY = MemoryConfig(num_layers=4, rank=6)
"""627 kB on disk, levels and gradients included: what the LoRA of the peers has in weights alone."""
TINY_MEMORY = MemoryConfig(num_layers=1, rank=1, sites=("down",))
_UNGUARDED = Shape("common without write guard", COMMON.core, replace(COMMON.memory, guarded_directions=0))
_PEFT_ADAPTERS = (1, 8, 64)


def wake_cases(quick: bool, folder: Path, say: Say) -> Iterator[Outcome]:
    """Runs the cases one after the other, their stores in a folder."""
    common = World(COMMON)
    yield run_decode(common, (1, 8, 64), 4 if quick else 15, 6 if quick else 10, say)
    with ExitStack() as stack:
        peers: dict[int, PeftPeer] = {}
        try:
            python = peers_python(not quick, say)
            for adapters in _PEFT_ADAPTERS:
                say(f"PEFT: loading {adapters} adapters")
                peers[adapters] = stack.enter_context(peft_peer(python, COMMON, adapters))
        except Unavailable as error:
            yield Outcome("PEFT", absence=str(error))
            peers = {}
        else:
            yield run_peft_decode(peers, 3 if quick else 9, 2 if quick else 5, say)
        yield run_update(common, 64, 3 if quick else 9, say, peers=_update_peers(peers))
    yield run_swap(World(Shape("small", COMMON.core, SMALL_MEMORY)), 64, 50 if quick else 300, folder, say)
    counts = (1_000, 5_000) if quick else (1_000, 10_000, 100_000)
    yield run_stored_users(World(Shape("tiny", COMMON.core, TINY_MEMORY)), counts, 64, 4 if quick else 15, folder, say)
    default = World(SMOLLM2)
    users = (8,) if quick else (1, 8, 64)
    yield run_decode(default, users, 3 if quick else 7, 3 if quick else 4, say)
    if not quick:
        yield run_update(World(_UNGUARDED), 64, 5, say)
        yield run_update(default, 8, 3, say)
        yield run_swap(default, 4, 12, folder, say)
    del default
    yield from _gpu_cases(say)


def _update_peers(peers: dict[int, PeftPeer]) -> dict[str, tuple[Peer, Target | None]]:
    return {
        f"PEFT, {adapters} loaded": (partial(peer.update_s, LEARNED_TOKENS), at_least(2.0, "x"))
        for adapters, peer in peers.items()
        if adapters != 8
    }


def _gpu_cases(say: Say) -> Iterator[Outcome]:
    if not torch.cuda.is_available():
        yield Outcome("GPU: shapes of 1B and 7B", absence="no CUDA device")
        return
    copied = copy_rate("cuda")
    yield Outcome("GPU", (copied,))
    for shape in (LLAMA_1B, LLAMA_7B):
        yield from run_large(shape, (1, 64, 256), "cuda", torch.bfloat16, copied, say)
