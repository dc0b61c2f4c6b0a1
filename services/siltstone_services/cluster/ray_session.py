"""The Ray that shards live on: one that is joined, or one of our own, whose death ends the server."""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import ray
import ray.exceptions
import torch

from siltstone.errors import Unavailable
from siltstone.placement.settings import ClusterConfig
from siltstone_services.gently import apart

_LOG = logging.getLogger(__name__)
_NICENESS_VARIABLE: Final = "RAY_worker_niceness"
_WANTS_TOKEN: Final = "it asks for a token: set RAY_AUTH_MODE=token, and see that Ray finds the right one"
_LOOKS_EVERY_S: Final = 2.0
_LOOK_BUDGET_S: Final = 5.0
_LOOKS_IN_VAIN: Final = 3
"""Times in a row after which it is dead: on a busy machine Ray may fail to answer once."""


class RaySession:
    """This process's place in a Ray cluster."""

    def __init__(self, config: ClusterConfig) -> None:
        """Joins the cluster, or starts one on this machine, unless this process is in one already.

        Raises: Unavailable.
        """
        self._is_joined = not ray.is_initialized()
        self._is_own = self._is_joined and config.ray_address == "local"
        if not self._is_joined:
            return
        options: dict[str, Any] = {"namespace": config.ray_namespace, "logging_level": logging.WARNING}
        if config.ray_address == "local":
            # Ray lets its workers give way to every other process, which here are the gateway and what is beside it.
            os.environ.setdefault(_NICENESS_VARIABLE, "0")
            options |= {
                # All of this machine, so that the cluster may grow into it; or more, where that is what it begins with.
                "num_cpus": max(os.cpu_count() or 1, math.ceil(config.cpus_per_shard * config.num_shards)),
                "num_gpus": _num_gpus(config),
                "include_dashboard": False,
            }
        try:
            ray.init(address=config.ray_address, **options)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            reason = _WANTS_TOKEN if "InvalidAuthToken" in str(error.__cause__) else first_line(error)
            raise Unavailable(f"Ray at {config.ray_address}", reason) from error

    def close(self) -> None:
        """Leaves the cluster; one that was started here ends."""
        if self._is_joined:
            ray.shutdown()

    async def death(self) -> None:
        """Never returns. Of a cluster that is not ours, whoever runs it sees to it.

        Raises: Unavailable once no node of a cluster that was started here lives. This process cannot start another.
        """
        num_in_vain = 0
        while num_in_vain < _LOOKS_IN_VAIN:
            await asyncio.sleep(_LOOKS_EVERY_S)
            num_in_vain = 0 if await self._is_seen() else num_in_vain + 1
        _LOG.error("Ray has died")
        raise Unavailable("Ray", "its node on this machine has died; start the server again")

    async def _is_seen(self) -> bool:
        if not self._is_own:
            return True
        try:
            # Where Ray's own book has died, who asks it waits.
            async with asyncio.timeout(_LOOK_BUDGET_S):
                return any(node["Alive"] for node in await apart(ray.nodes))
        except (TimeoutError, ConnectionError, RuntimeError, ray.exceptions.RayError):
            return False


@contextmanager
def joined(config: ClusterConfig) -> Iterator[RaySession]:
    """Joins a Ray cluster, or starts one on this machine, for as long as the block runs.

    A cluster that asks for a token is shown the one that Ray finds by itself ($RAY_AUTH_TOKEN, or its file).
    Raises: Unavailable.
    """
    session = RaySession(config)
    try:
        yield session
    finally:
        session.close()


def _num_gpus(config: ClusterConfig) -> int:
    wanted = math.ceil(config.gpus_per_shard * config.num_shards)
    return max(wanted, torch.cuda.device_count()) if wanted else 0


def first_line(error: BaseException) -> str:
    """Returns what an error of Ray says first; what follows are its own lines of code."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
