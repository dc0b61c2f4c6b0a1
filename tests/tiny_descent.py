"""Versions of the tiny core: a descendant as a night would make it, recorded, accepted and promoted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tiny_home import tiny_config

from siltstone.adapters.core_store import CoreStore
from siltstone.adapters.imported_core import ImportedCore
from siltstone.adapters.signing import FolderSigner
from siltstone.adapters.sqlite_registry import SqliteRegistry
from siltstone.adapters.system_clock import SystemClock
from siltstone.sleep_values import Champion, CheckResult, Lineage, Verdict
from siltstone_services.learning import ground_extra
from siltstone_services.served import record_origin


def open_versions(home: Path) -> SqliteRegistry:
    """Returns the registry of a home."""
    return SqliteRegistry(home, FolderSigner(home), SystemClock())


def add_descendant(home: Path, size: float, seed: int, parent: str = "tiny") -> str:
    """Puts a core beside its parent whose bent MLPs differ by noise of a size, and returns its digest."""
    store = CoreStore(home)
    loaded = store.load(parent)
    first = loaded.config.num_layers - tiny_config(home).memory.shape_for(loaded.config).num_layers
    chance = torch.Generator().manual_seed(seed)
    tensors = dict(loaded.tensors)
    for name, old in loaded.tensors.items():
        if ".mlp." in name and int(name.split(".")[1]) >= first:
            tensors[name] = old + torch.randn(old.shape, generator=chance) * size * old.std()
    extras = {**loaded.extras, **ground_extra(loaded)}
    made = ImportedCore(f"noise {seed}", loaded.config, tensors, loaded.tokenizer.json, loaded.chat, extras)
    return store.add(made, f"noise-{seed}")


def accept(home: Path, digest: str, parent: str = "tiny") -> int:
    """Records a core as a night's that passed the gate, and returns its number; the origin before it."""
    store = CoreStore(home)
    with open_versions(home) as registry:
        origin = store.resolve(parent)
        record_origin(registry, home / "cores" / origin, "test")
        version = registry.record(home / "cores" / digest, Lineage(origin, digest, {}, (), {}, {}, "test"), b"{}")
        passed = CheckResult("seen", True, "as planned", 0.0, 0.0, 0.0, "nats", 1)
        return registry.set_verdict(version.number, Verdict(digest, "test", True, (passed,))).number


def promote(home: Path, number: int) -> Champion:
    """Makes a version champion."""
    with open_versions(home) as registry:
        champion = registry.champion()
        return registry.promote(number, champion.epoch if champion else 0)


def roll_back(home: Path) -> Champion:
    """Makes the former champion champion again."""
    with open_versions(home) as registry:
        champion = registry.champion()
        assert champion is not None
        return registry.rollback(champion.epoch)


def with_settings(**more: Any) -> Mapping[str, Any]:
    """Returns settings under which a server looks for another version at once."""
    return {"sleep.look_every_s": 0.02, **more}
