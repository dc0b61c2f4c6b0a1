"""Shows, exports and forgets what is kept about a user."""

from __future__ import annotations

from pathlib import Path

from siltstone.errors import Corrupt, InvalidInput
from siltstone.values import MemoryCard, UserKey
from siltstone_services.cli.options import Reach
from siltstone_services.commands.connection import ask
from siltstone_services.commands.screen import counted, out, size_text, table
from siltstone_services.export_archive import write_archive


def show(reach: Reach, tenant: str, user: str) -> None:
    """Prints a user's memory card."""
    owner = UserKey(tenant, user)
    card: MemoryCard = ask(reach, lambda client: client.memory(owner))
    console = out()
    console.print(f"[bold]{owner}[/bold] under core {card.core[:12]}", soft_wrap=True)
    facts = table("", "")
    facts.add_row("snapshot", str(card.sequence) if card.sequence else "none yet")
    facts.add_row("interactions", f"{card.num_interactions:,}")
    facts.add_row("tokens", f"{card.position_tokens:,}")
    facts.add_row("size", size_text(card.size_bytes) if card.sequence else "nothing stored")
    facts.add_row("kept for recall", counted(card.reservoir_entries, "interaction"))
    facts.show_header = False
    console.print(facts)
    if card.levels:
        levels = table("level", "#period", "#updates", "#open", "#drift from core")
        for level in card.levels:
            levels.add_row(
                level.name,
                f"{level.period_tokens:,} tokens",
                f"{level.num_updates:,}",
                f"{level.open_tokens:,} tokens",
                f"{level.drift:.4g}",
            )
        console.print(levels)


def export(reach: Reach, tenant: str, user: str, output: Path | None, is_forced: bool) -> None:
    """Writes everything kept about a user to a zip file.

    Raises: Corrupt, once it is written, when the user's snapshot is damaged.
    """
    path = output or Path(f"{user}.zip")
    if path.exists() and not is_forced:
        raise InvalidInput("--output", "a file that is not there yet (or --force)", str(path))
    if output is not None and not output.parent.is_dir():
        raise InvalidInput("--output", "a file in a folder that is there", str(output))
    exported = ask(reach, lambda client: client.export(UserKey(tenant, user)))
    write_archive(path, exported, overwrite=is_forced)
    snapshot = f"snapshot {exported.snapshot.sequence}" if exported.snapshot else "no snapshot"
    damage = exported.damage
    out().print(
        f"wrote {path} ({size_text(path.stat().st_size)}): {snapshot}{' (damaged)' if damage else ''}, "
        f"{counted(len(exported.journal), 'journal record')}, {len(exported.parked):,} parked",
        soft_wrap=True,
    )
    if damage is not None:
        # What is left is written; that something is missing must not be overlooked.
        raise Corrupt(damage.what, damage.expected, damage.found)


def forget(reach: Reach, tenant: str, user: str) -> None:
    """Removes everything kept about a user."""
    erasure = ask(reach, lambda client: client.forget(UserKey(tenant, user)))
    memory = "the memory" if erasure.had_memory else "no memory"
    out().print(
        f"forgot {erasure.owner}: {memory} and {counted(erasure.num_interactions, 'interaction')}", soft_wrap=True
    )
