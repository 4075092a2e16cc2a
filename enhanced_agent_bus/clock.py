"""Clocks: the system's, and one whose policy time stands still."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path


class SystemClock:
    """The machine's time; policies see it in UTC."""

    weakenings: tuple[str, ...] = ()

    def now_us(self) -> int:
        return time.time_ns() // 1000

    monotonic = staticmethod(time.monotonic)

    def policy_time(self) -> datetime:
        return datetime.now(UTC)

    def boot(self) -> str:
        try:
            return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            return ""


class FixedClock(SystemClock):
    """The machine's time for records and deadlines; policies see one fixed instant (weakening fixed_clock)."""

    weakenings = ("fixed_clock",)

    def __init__(self, at: datetime) -> None:
        self._at = at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)

    def policy_time(self) -> datetime:
        return self._at
