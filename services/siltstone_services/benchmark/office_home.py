"""A home in which the demo's office was taught, and copies of it to sleep in."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from siltstone.adapters.core_store import CoreStore
from siltstone.adapters.system_clock import SystemClock
from siltstone.config import SiltstoneConfig, load_config
from siltstone.evaluation.office_material import load_office
from siltstone_services.client import SiltstoneClient
from siltstone_services.demo_home import give_back, make_home, provide_core
from siltstone_services.demo_outcome import CoursePlan, Teaching
from siltstone_services.demo_screen import DemoScreen
from siltstone_services.demo_setting import Setting
from siltstone_services.demo_teaching import teach
from siltstone_services.gateway import Gateway
from siltstone_services.home import exclusive
from siltstone_services.wiring import embedded_host

_CONFIGURATION = "siltstone.toml"


def provide_office(home: Path, config: SiltstoneConfig, plan: CoursePlan, say: Callable[[str], None]) -> None:
    """Teaches the office in a home, if there is none yet.

    It is there once everything is learned: what is left of a teaching that was broken off is taught anew.
    Raises: NotFound without the core; what the host raises.
    """
    if (home / _CONFIGURATION).exists():
        return
    say("the core")
    provide_core(config, say)
    begun = home.parent / f".{home.name}-begun"
    shutil.rmtree(begun, ignore_errors=True)
    say("teaching the office")
    here = make_home(begun, config)
    asyncio.run(_teach(here, plan))
    give_back(here, config)
    begun.replace(home)


async def _teach(config: SiltstoneConfig, plan: CoursePlan) -> Teaching:
    clock, quiet = SystemClock(), Console(quiet=True)
    gateway_config = replace(config.gateway, host="127.0.0.1", port=0)
    async with (
        embedded_host(config) as host,
        Gateway(host, gateway_config, config.admission, clock) as gateway,
        SiltstoneClient(gateway.address, max_message_bytes=gateway_config.max_message_bytes) as client,
    ):
        return await teach(Setting(client, load_office(), plan, clock, DemoScreen(quiet, quiet, clock)))


def copy_office(home: Path, copy: Path, config: SiltstoneConfig) -> SiltstoneConfig:
    """Copies what the office was taught to a home of its own, and returns the configuration of a night there.

    The core is borrowed: it is the one that the memories were learned on.
    Raises: Unavailable while a server uses the home.
    """
    core = load_config(home / _CONFIGURATION, {"home": str(home)}, environment={}).core
    digest = CoreStore(home).resolve(core)
    with exclusive(home):
        (copy / "cores").mkdir(mode=0o700, parents=True)
        (copy / "cores" / digest).symlink_to((home / "cores" / digest).resolve(), target_is_directory=True)
        # The bases are copied: a night clears up those that its own home does not need.
        shutil.copytree(home / "bases", copy / "bases")
        for part in home.glob("siltstone.db*"):
            if part.suffix != ".db-shm":
                shutil.copy2(part, copy / part.name)
    return replace(config, home=str(copy.resolve()), core=digest)
