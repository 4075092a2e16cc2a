"""What follows a failed attempt: a pure table, without clock or loop.

The defaults suit a handler that calls something which is briefly away: five runs within about two seconds, jitter over
the whole interval so that many that failed together do not come back together (AWS, "Exponential backoff and jitter").
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["exponential", "linear", "immediate", "manual"]
Never = Sequence[type[BaseException] | str]


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a handler is run for one message, and how long to wait between runs. Raises: TypeError; ValueError.

    `never` names the errors after which it is not run again, as classes (with those below them) or by their names: the
    message is a dead letter at once, with the code handler_failed.
    """

    attempts: int  # handler runs in all
    base_seconds: float = 0.0
    cap_seconds: float = 0.0
    kind: Kind = "exponential"
    never: tuple[type[BaseException] | str, ...] = ()

    def __post_init__(self) -> None:
        if type(self.attempts) is not int:
            raise TypeError(f"attempts is a whole number, not {self.attempts!r}")
        seconds = (self.base_seconds, self.cap_seconds)
        for each in seconds:
            if type(each) not in (int, float):
                raise TypeError(f"base_seconds and cap_seconds are numbers, not {each!r}")
        if self.attempts < 1 or not all(math.isfinite(each) and each >= 0 for each in seconds):
            raise ValueError("attempts must be at least 1, base_seconds and cap_seconds finite and not negative")
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind is one of {', '.join(get_args(Kind))}, not {self.kind!r}")

    @classmethod
    def exponential(
        cls, attempts: int = 5, base_seconds: float = 0.1, cap_seconds: float = 5, *, never: Never = ()
    ) -> Retry:
        """Waits a random time up to base, 2 base, 4 base … cap. Raises: TypeError; ValueError."""
        return cls(attempts, base_seconds, cap_seconds, "exponential", _errors(never))

    @classmethod
    def linear(
        cls, attempts: int = 5, base_seconds: float = 0.1, cap_seconds: float = 5, *, never: Never = ()
    ) -> Retry:
        """Waits base, 2 base, 3 base … cap, without chance. Raises: TypeError; ValueError."""
        return cls(attempts, base_seconds, cap_seconds, "linear", _errors(never))

    @classmethod
    def immediate(cls, attempts: int = 3, *, never: Never = ()) -> Retry:
        """Does not wait between runs. Raises: TypeError; ValueError."""
        return cls(attempts, 0.0, 0.0, "immediate", _errors(never))

    @classmethod
    def manual(cls, *, never: Never = ()) -> Retry:
        """Parks a message whose handler failed, until somebody replays or discards it."""
        return cls(1, 0.0, 0.0, "manual", _errors(never))

    def gives_up_on(self, error: BaseException | None) -> bool:
        """Whether this is one of the errors that are never retried."""
        if error is None or not self.never:
            return False
        names = {kind.__name__ for kind in type(error).__mro__}
        return any(kind in names if isinstance(kind, str) else isinstance(error, kind) for kind in self.never)


def _errors(never: object) -> tuple[type[BaseException] | str, ...]:
    """The errors, checked. Raises: TypeError."""
    found: tuple[object, ...] = tuple(never) if isinstance(never, Iterable) and not isinstance(never, str) else (None,)
    names = tuple(kind for kind in found if isinstance(kind, str))
    kinds = tuple(kind for kind in found if isinstance(kind, type) and issubclass(kind, BaseException))
    if len(names) + len(kinds) < len(found):
        raise TypeError(f"never is a list of error classes or of their names, not {never!r}")
    return (*kinds, *names)


@dataclass(frozen=True, slots=True)
class RetryAfter:
    """Try again, after this long."""

    seconds: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """No more attempts; `code` goes with the dead letter."""

    code: str


@dataclass(frozen=True, slots=True)
class Park:
    """Wait for somebody who decides what to do."""


def next_step(retry: Retry, attempts: int, chance: float, *, never: str | None = None) -> RetryAfter | GiveUp | Park:
    """After `attempts` failed runs since the last replay; `chance` in [0, 1) is the jitter.

    `never` is the code of an error that is not retried: one that is the same each time (a payload that the recipient's
    model does not take), or that the registration names.
    """
    if never is not None:
        return GiveUp(never)
    if retry.kind == "manual":
        return Park()
    if attempts >= retry.attempts:
        return GiveUp("attempts_exhausted")
    if retry.kind == "linear":
        return RetryAfter(min(retry.cap_seconds, retry.base_seconds * attempts))
    return RetryAfter(min(retry.cap_seconds, retry.base_seconds * 2.0 ** min(attempts - 1, 60)) * chance)
