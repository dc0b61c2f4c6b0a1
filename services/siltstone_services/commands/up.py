"""Starts the server."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from siltstone.config import load_config
from siltstone.errors import InvalidInput
from siltstone_services.allocator import keep_freed_memory
from siltstone_services.cli.later import Later
from siltstone_services.commands.screen import err, out
from siltstone_services.home import holder_of
from siltstone_services.logs import log_to_stderr
from siltstone_services.serve import serve

_wiring = Later("siltstone_services.wiring")  # a home that is in use is told before a model is imported
_LEVELS = ("debug", "info", "warning", "error")
_THIS_MACHINE = ("127.0.0.1", "localhost", "[::1]")


def run(overrides: Mapping[str, Any], path: Path | None, log_level: str) -> None:
    """Serves until told to stop."""
    if log_level not in _LEVELS:
        raise InvalidInput("--log-level", ", ".join(_LEVELS), repr(log_level))
    config = load_config(path, overrides)
    if (holder := holder_of(config.home_path)) is not None:
        raise holder.in_use(config.home_path)
    keep_freed_memory()
    log_to_stderr(log_level)
    if config.gateway.host not in _THIS_MACHINE:
        err().print(f"Anybody who reaches {config.gateway.host} can speak for any user: nobody is asked who they are.")
    err().print(f"loading the core {config.core} ...")

    def tell(address: str) -> None:
        out().print(f"siltstone listens at {address} (home {config.home_path}); Ctrl-C stops it", soft_wrap=True)

    open_host = _wiring.cluster_host if config.cluster.is_on else _wiring.embedded_host
    asyncio.run(serve(config, open_host, tell))
