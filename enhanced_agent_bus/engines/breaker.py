"""When a server that is away is not asked: pure, time is handed in."""

from __future__ import annotations

from typing import Final

FAILURES_MAX: Final = 5  # in a row; with the next it is not asked any more
PAUSE_SECONDS: Final = 0.25  # before the first probe, doubled after each that fails
PAUSE_SECONDS_MAX: Final = 2.0


class Breaker:
    """Closed until FAILURES_MAX failures in a row; then, after a pause, one question at a time goes out as a probe.

    Who was let through tells how it went: `answered`, `failed`, or `left` where it says nothing about the server.
    """

    def __init__(self) -> None:
        self._failures = 0
        self._pause_seconds = PAUSE_SECONDS
        self._open_until = 0.0
        self._probing = False

    @property
    def open(self) -> bool:
        return self._failures >= FAILURES_MAX

    def may_ask(self, now: float) -> bool:
        """Whether this question may go out; where the breaker is open, as the one probe."""
        if not self.open:
            return True
        if self._probing or now < self._open_until:
            return False
        self._probing = True
        return True

    def answered(self) -> None:
        self._failures = 0
        self._pause_seconds = PAUSE_SECONDS
        self._probing = False

    def failed(self, now: float) -> None:
        """A late failure of a question that went out before the breaker opened counts no more."""
        if self.open and not self._probing:
            return
        if self.open:
            self._pause_seconds = min(self._pause_seconds * 2, PAUSE_SECONDS_MAX)
        else:
            self._failures += 1
        self._probing = False
        self._open_until = now + self._pause_seconds

    def left(self) -> None:
        self._probing = False
