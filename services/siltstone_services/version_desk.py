"""What an operator may do with the versions of a home folder, off the event loop and only where sleep is installed."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from siltstone.config import SiltstoneConfig
from siltstone.errors import NotFound
from siltstone.sleep_values import Champion, VersionCard, VersionComparison, VersionReport
from siltstone_services.night_desk import without_extra

if TYPE_CHECKING:
    from siltstone_services.version_records import VersionPage, VersionRecords

T = TypeVar("T")


class VersionDesk:
    """Lists, explains and moves versions.

    Every method raises ConfigInvalid where this installation cannot sleep, NotFound without a home folder, Corrupt, and
    Unavailable.
    """

    def __init__(self, config: SiltstoneConfig) -> None:
        self._config = config
        # A thread of its own: the registry waits for its writers, and is not to make anybody else wait.
        self._thread = ThreadPoolExecutor(1, "siltstone-versions")
        self._records: VersionRecords | None = None

    async def page(self, page_size: int, page_token: str) -> VersionPage:
        """Returns a page of the versions.

        Raises: InvalidInput.
        """
        return await self._ask(lambda records: records.list(page_size, page_token))

    async def list(self) -> tuple[tuple[VersionCard, ...], Champion | None]:
        """Returns every version, by number, and the champion."""
        versions: list[VersionCard] = []
        token = ""
        while True:
            page = await self.page(0, token)
            versions += page.versions
            if not (token := page.next_page_token):
                return tuple(versions), page.champion

    async def get(self, number: int) -> VersionReport:
        """Returns a version with its evidence in short and its verdict.

        Raises: NotFound.
        """
        return await self._ask(lambda records: records.get(number))

    async def explain(self, number: int) -> tuple[str, ...]:
        """Returns the verdict in lines for a person; nothing when the gate has not judged it.

        Raises: NotFound.
        """
        return await self._ask(lambda records: records.explain(number))

    async def compare(self, number: int, other: int) -> VersionComparison:
        """Returns two versions side by side.

        Raises: NotFound.
        """
        return await self._ask(lambda records: records.compare(number, other))

    async def champion(self) -> Champion:
        """Returns which version serves.

        Raises: NotFound before the first promotion.
        """
        return await self._ask(lambda records: records.champion())

    async def promote(self, number: int, expected_epoch: int) -> Champion:
        """Makes a version the champion; see `ports.VersionRegistry.promote`."""
        return await self._ask(lambda records: records.promote(number, expected_epoch))

    async def roll_back(self, expected_epoch: int) -> Champion:
        """Makes the champion before champion again; see `ports.VersionRegistry.rollback`."""
        return await self._ask(lambda records: records.roll_back(expected_epoch))

    def close(self) -> None:
        """Ends the thread once what it does is done."""
        self._thread.shutdown()

    async def _ask(self, question: Callable[[VersionRecords], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: question(self._opened()))

    def _opened(self) -> VersionRecords:
        if self._records is None:
            if not self._config.home_path.is_dir():
                raise NotFound("home folder", str(self._config.home_path))
            # Not before somebody asks: MLflow takes seconds to import, and may not be there.
            try:
                module = importlib.import_module("siltstone_services.version_records")
            except ModuleNotFoundError as error:
                raise without_extra(error.name) from error
            self._records = module.VersionRecords(self._config)
        return self._records
