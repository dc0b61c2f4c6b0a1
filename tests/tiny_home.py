"""A home folder with a random core that is small enough to serve, learn and answer in milliseconds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import torch
from tiny import random_tensors
from tokenizers.pre_tokenizers import ByteLevel

from siltstone.adapters.bm25_recall import Bm25Recall
from siltstone.adapters.core_store import CoreStore
from siltstone.adapters.imported_core import ImportedCore
from siltstone.adapters.sqlite_file import SqliteFile
from siltstone.adapters.sqlite_journal import SqliteJournal
from siltstone.adapters.sqlite_snapshots import SqliteSnapshotStore
from siltstone.adapters.system_clock import SystemClock
from siltstone.adapters.tokenizer import ChatFormat
from siltstone.adapters.tokenizer_json import byte_level_bpe
from siltstone.config import SiltstoneConfig, load_config
from siltstone.model.config import CoreConfig
from siltstone.ports import Journal, SnapshotStore
from siltstone.values import (
    AnswerEnd,
    AnswerPart,
    Consent,
    GenerateRequest,
    Interaction,
    InteractionKind,
    Message,
    Role,
    Sampling,
    UserKey,
)
from siltstone_services.shard import EmbeddedHost

TOKENS = [*sorted(ByteLevel.alphabet()), "<|turn|>", "<|end|>"]
TURN, END = len(TOKENS) - 2, len(TOKENS) - 1
CORE = CoreConfig(
    vocab_size=len(TOKENS),
    d_model=32,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    d_mlp=48,
    rope_base=10_000.0,
    norm_eps=1e-5,
    max_context=512,
    tied_head=True,
)
CHAT = ChatFormat(
    bos="",
    turns={role.value: (f"<|turn|>{role.value}\n", "<|end|>\n") for role in Role},
    default_system="Be kind.",
    stop=("<|end|>",),
)
SETTINGS: dict[str, Any] = {
    "core": "tiny",
    "gateway.port": 0,
    "engine.num_threads": 1,
    "memory.num_layers": 2,
    "memory.rank": 4,
    "memory.fast.period_tokens": 8,
    "memory.fast.rate": 0.3,
    "memory.fast.momentum": 0.5,
    "memory.mid.period_tokens": 24,
    "memory.mid.rate": 0.3,
    "store.num_partitions": 4,
    "shard.retry_after_s": 0.05,
}
ADA, BEN, CLEO, DORA = (UserKey("office", name) for name in ("ada", "ben", "cleo", "dora"))


def add_tiny_core(home: Path, seed: int = 7, name: str = "tiny") -> str:
    """Puts the core into the store of a home folder and returns its digest. Its answers are printable, mostly."""
    tensors = random_tensors(CORE, seed)
    is_readable = torch.tensor([len(token) == 1 and token.isascii() for token in TOKENS])
    tensors["embed.weight"][~is_readable] *= 0.1
    tokenizer_json = byte_level_bpe(TOKENS, [], [TURN, END], [], "gpt-2")
    return CoreStore(home).add(ImportedCore("test", CORE, tensors, tokenizer_json, CHAT, {}), name)


def tiny_config(home: Path, settings: Mapping[str, Any] | None = None) -> SiltstoneConfig:
    """Returns the configuration of a tiny home; `settings` go before ours, by dotted name."""
    return load_config(overrides={**SETTINGS, "home": str(home), **(settings or {})}, environment={})


def write_config(home: Path, settings: Mapping[str, Any] | None = None) -> None:
    """Writes the configuration into the home folder, for a server in a process of its own."""
    merged = {**SETTINGS, **(settings or {})}
    lines = [f"{name} = {_toml(value)}" for name, value in merged.items()]
    (home / "siltstone.toml").write_text("\n".join(lines) + "\n")


def _toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)


@asynccontextmanager
async def open_host(
    home: Path,
    settings: Mapping[str, Any] | None = None,
    journal_of: type[SqliteJournal] = SqliteJournal,
    store_of: type[SqliteSnapshotStore] = SqliteSnapshotStore,
) -> AsyncIterator[EmbeddedHost]:
    """Gives a host over the real core store and SQLite; other kinds of journal and store may stand in."""
    config = tiny_config(home, settings)
    core = CoreStore(home).load(config.core)
    with SqliteFile(home / "siltstone.db", config.store) as file:
        journal: Journal = journal_of(file)
        store: SnapshotStore = store_of(file)
        async with EmbeddedHost(core, journal, store, Bm25Recall(), SystemClock(), config) as host:
            yield host


def said(owner: UserKey, id_: str, text: str, answer: str = "") -> Interaction:
    """Returns something a user said and agreed to have learned."""
    messages = [Message(Role.USER, text)] + ([Message(Role.ASSISTANT, answer)] if answer else [])
    return Interaction(
        id_, owner, InteractionKind.CONVERSATION, 1_700_000_000_000, tuple(messages), consent=Consent(learn=True)
    )


def is_registry_open(home: Path) -> bool:
    """Says whether somebody has the registry of a home's versions open: who closes it last takes its log away."""
    assert (home / "versions" / "registry.db").exists()
    return (home / "versions" / "registry.db-wal").exists()


async def teach(host: EmbeddedHost, *interactions: Interaction) -> None:
    """Records interactions and waits until they are absorbed or parked."""
    await host.wait_absorbed(await host.record(interactions))


def asking(owner: UserKey, text: str, max_tokens: int = 16, **more: Any) -> GenerateRequest:
    """Returns a request for a greedy answer."""
    return GenerateRequest(owner, (Message(Role.USER, text),), Sampling(max_tokens=max_tokens), **more)


async def answer(host: EmbeddedHost, request: GenerateRequest) -> tuple[str, AnswerEnd]:
    """Returns a whole answer and its end."""
    items = [item async for item in host.generate(request)]
    assert isinstance(items[-1], AnswerEnd)
    return "".join(item.text for item in items[:-1] if isinstance(item, AnswerPart)), items[-1]


async def scores(host: EmbeddedHost, owner: UserKey) -> list[tuple[float, float]]:
    """Returns what tells one state of a user's model from another."""
    return await host.score(owner, [Message(Role.USER, "Where do I live?")], ["In Lisbon.", "In Oslo.", "No idea."])


async def blob(host: EmbeddedHost, owner: UserKey) -> bytes:
    """Returns the bytes of a user's stored memory, empty without one."""
    snapshot = (await host.export(owner)).snapshot
    return snapshot.blob if snapshot is not None else b""
