"""The machine's own clock."""

from __future__ import annotations

import time


class SystemClock:
    """See `Clock`."""

    def now_ms(self) -> int:
        """See `Clock.now_ms`."""
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        """See `Clock.monotonic_s`."""
        return time.monotonic()
