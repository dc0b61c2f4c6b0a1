"""Cores, lineages and verdicts small enough that a registry of them is made in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel

from siltstone.adapters.core_store import CoreStore
from siltstone.adapters.imported_core import ImportedCore, tensor_shapes
from siltstone.adapters.signing import FolderSigner
from siltstone.adapters.sqlite_registry import SqliteRegistry
from siltstone.adapters.tokenizer import plain_chat
from siltstone.adapters.tokenizer_json import byte_level_bpe
from siltstone.model.config import CoreConfig
from siltstone.ports import VersionRegistry
from siltstone.sleep_values import CheckResult, Contributor, CoreVersion, Lineage, Verdict

TOKENS = [*sorted(ByteLevel.alphabet()), "<|end|>"]
CONFIG = CoreConfig(
    vocab_size=len(TOKENS),
    d_model=8,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    d_mlp=12,
    rope_base=10000.0,
    norm_eps=1e-5,
    max_context=32,
    tied_head=True,
)
EVIDENCE = b'{"retention": [0.1, 0.2]}'

Open = Callable[[Path], VersionRegistry]


@dataclass
class SteppingClock:
    """A clock that moves on by a millisecond whenever it is looked at."""

    at_ms: int = 1_700_000_000_000

    def now_ms(self) -> int:
        self.at_ms += 1
        return self.at_ms

    def monotonic_s(self) -> float:
        return self.at_ms / 1000


def add_core(home: Path, seed: int) -> Path:
    """Stores a random core and returns its folder."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in tensor_shapes(CONFIG).items()}
    tokenizer_json = byte_level_bpe(TOKENS, [], [len(TOKENS) - 1], [], "gpt-2")
    imported = ImportedCore("test", CONFIG, tensors, tokenizer_json, plain_chat("", ("<|end|>",)))
    return home / "cores" / CoreStore(home).add(imported, f"night{seed}")


def lineage(sleep_id: str = "night-1", parent: str = "") -> Lineage:
    contributors = (Contributor("0" * 64, 3), Contributor("1" * 64, 5))
    return Lineage(parent, sleep_id, {0: 7, 3: 12}, contributors, {"dream": 5}, {"distil.rate": "0.001"}, "r1")


def verdict(version: CoreVersion, accepted: bool = True, value: float | None = 0.25) -> Verdict:
    result = CheckResult("retention", accepted, "it kept what it knew", value, 0.5, None, "nats", 100)
    return Verdict(version.digest, "shipped", accepted, (result,))


@contextmanager
def sqlite_registry(home: Path) -> Iterator[SqliteRegistry]:
    with SqliteRegistry(home, FolderSigner(home), SteppingClock()) as registry:
        yield registry


def record(registry: VersionRegistry, home: Path, seed: int, parent: str = "origin") -> CoreVersion:
    return registry.record(add_core(home, seed), lineage(f"night-{seed}", parent), EVIDENCE)


def accept(registry: VersionRegistry, home: Path, seed: int) -> CoreVersion:
    version = record(registry, home, seed)
    return registry.set_verdict(version.number, verdict(version))
