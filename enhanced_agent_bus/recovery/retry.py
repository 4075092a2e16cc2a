"""What follows a failed attempt: a pure table, without clock or loop.

The defaults suit a handler that calls something which is briefly away: five runs within about two seconds, jitter over
the whole interval so that many that failed together do not come back together (AWS, "Exponential backoff and jitter").
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a handler is run for one message, and how long to wait between runs."""

    attempts: int  # handler runs in all
    base_seconds: float
    cap_seconds: float

    @classmethod
    def exponential(cls, attempts: int = 5, base_seconds: float = 0.1, cap_seconds: float = 5) -> Retry:
        """Waits a random time up to base, 2 base, 4 base … cap. Raises: ValueError."""
        if attempts < 1 or base_seconds < 0 or cap_seconds < 0:
            raise ValueError("attempts must be at least 1, base_seconds and cap_seconds not negative")
        return cls(attempts, float(base_seconds), float(cap_seconds))


@dataclass(frozen=True, slots=True)
class RetryAfter:
    """Try again, after this long."""

    seconds: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """No more attempts; `code` goes with the dead letter."""

    code: str


def next_step(retry: Retry, attempts: int, chance: float, *, never: str | None = None) -> RetryAfter | GiveUp:
    """After `attempts` failed runs since the last replay; `chance` in [0, 1) is the jitter.

    `never` is the code of an error that is the same each time: a payload that the recipient's model does not take.
    """
    if never is not None:
        return GiveUp(never)
    if attempts >= retry.attempts:
        return GiveUp("attempts_exhausted")
    return RetryAfter(min(retry.cap_seconds, retry.base_seconds * 2.0 ** min(attempts - 1, 60)) * chance)
