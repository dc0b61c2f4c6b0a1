"""What an operator may do on a home folder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from siltstone.config import SiltstoneConfig
from siltstone_services.night_desk import NightDesk
from siltstone_services.version_desk import VersionDesk


@dataclass(frozen=True, slots=True)
class OperatorDesk:
    """The nights and the versions of one home folder."""

    nights: NightDesk
    versions: VersionDesk


@asynccontextmanager
async def operator_desk(config: SiltstoneConfig) -> AsyncIterator[OperatorDesk]:
    """Gives the desk of a home folder. Nights begun at it outlive it."""
    versions = VersionDesk(config)
    try:
        yield OperatorDesk(NightDesk(config), versions)
    finally:
        versions.close()
