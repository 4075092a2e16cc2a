"""The retry budget of the whole bus: when much fails at once, retries must not become most of the work. Pure.

A token bucket as in Finagle and linkerd: each first run pays in a part of a retry, and some come for free each second.
Without a token a retry waits; it is never dropped for that.
"""

from __future__ import annotations

from typing import Final

SAVED_SECONDS: Final = 10.0  # so much of the free retries can be saved up


class Budget:
    """`ratio` retries for each first run, and `per_second` besides."""

    def __init__(self, ratio: float, per_second: float, now: float) -> None:
        self._ratio = ratio
        self._per_second = per_second
        self._most = max(1.0, per_second * SAVED_SECONDS)
        self._tokens = self._most
        self._at = now

    def pay_in(self) -> None:
        """A message runs for the first time."""
        if self._tokens < self._most:
            self._tokens += self._ratio

    def take(self, now: float) -> bool:
        """Takes the token of one retry; False when there is none yet."""
        self._tokens = min(self._most, self._tokens + (now - self._at) * self._per_second)
        self._at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def seconds_left(self) -> float:
        """How long until there is a token, if nobody pays in; as of the last `take`."""
        return max(0.0, 1.0 - self._tokens) / self._per_second
