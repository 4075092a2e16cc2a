"""What is tried beside the active constitution: a candidate that decides a share, and one that only looks on.

The chain asks here while something is tried, and not at all otherwise.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from enhanced_agent_bus.admission.supposed import ERRORS

if TYPE_CHECKING:
    from enhanced_agent_bus.admission.chain import Active, Decided
    from enhanced_agent_bus.admission.shadow import Shadow
    from enhanced_agent_bus.admission.sight import Sight

WHOLE: Final = 100  # percent
OVER_MAX: Final = 100_000  # decisions whose outcome is remembered
_PLACE_BYTES: Final = 8
#: Codes of refusals that are a constitution's own; the bus's and the gates' say nothing about a candidate.
OF_POLICY: Final = ERRORS | {"policy_denied", "facts_full", "constitution_mismatch"}


def checked_percent(percent: object) -> int:
    """Raises: ValueError, for what is no share of anything."""
    if isinstance(percent, bool) or not isinstance(percent, int) or not 1 <= percent <= WHOLE:
        raise ValueError(f"percent is a whole number from 1 to {WHOLE}, not {percent!r}")
    return percent


def is_among(conversation: str, percent: int, salt: str) -> bool:
    """Whether a conversation is among so many percent of all, the same ones for every constitution.

    The first 8 bytes of sha256(salt, a newline, conversation), as a big-endian number, are under that share of 2^64.
    So who is among 10 percent is among 50, too.
    """
    place = int.from_bytes(sha256(f"{salt}\n{conversation}".encode()).digest()[:_PLACE_BYTES], "big")
    return place * WHOLE < percent << (8 * _PLACE_BYTES)


@dataclass(frozen=True, slots=True)
class Limits:
    """When a roll-out is taken back: shares of the newest `over` decisions under the candidate. None: never."""

    max_refusals: float | None = None
    max_errors: float | None = 0.01
    over: int = 100

    def checked(self) -> Limits:
        """Raises: ValueError, for what is no limit."""
        for name in ("max_refusals", "max_errors"):
            share = getattr(self, name)
            if share is not None and not (isinstance(share, int | float) and 0 <= share <= 1):
                raise ValueError(f"{name} is a share from 0 to 1, not {share!r}")
        over: object = self.over
        if isinstance(over, bool) or not isinstance(over, int) or not 1 <= over <= OVER_MAX:
            raise ValueError(f"over is a number of decisions from 1 to {OVER_MAX}, not {over!r}")
        return self


class Rollout:
    """A candidate that decides in some conversations, and how it has decided there so far."""

    def __init__(
        self, candidate: Active, *, percent: int, salt: str, limits: Limits, passed: Callable[[Rollout, str], None]
    ) -> None:
        """`passed` is called at each decision that finds a limit passed; it is told which one."""
        self.candidate = candidate
        self.percent = percent
        self.limits = limits
        self.decisions = 0
        self._salt = salt
        self._passed = passed
        self._newest: deque[tuple[bool, bool]] = deque(maxlen=limits.over)  # refused, with an error
        self.refusals = 0  # among the newest
        self.errors = 0

    def decides(self, conversation: str) -> bool:
        return is_among(conversation, self.percent, self._salt)

    @property
    def newest(self) -> int:
        """Over how many decisions refusals and errors are counted."""
        return len(self._newest)

    def count(self, decided: Decided) -> None:
        """One decision under the candidate."""
        self._add(decided.verdict, decided.code)
        if (what := self.passed) is not None:
            self._passed(self, what)

    def recall(self, recorded: Iterable[tuple[str, str | None]]) -> None:
        """After a restart: verdict and code of each recorded decision under the candidate, the oldest first."""
        for verdict, code in recorded:
            if verdict != "refuse" or code in OF_POLICY:
                self._add(verdict, code)

    def _add(self, verdict: str, code: str | None) -> None:
        self.decisions += 1
        if len(self._newest) == self.limits.over:
            refused, failed = self._newest[0]
            self.refusals -= refused
            self.errors -= failed
        refused, failed = verdict == "refuse", code in ERRORS
        self._newest.append((refused, failed))
        self.refusals += refused
        self.errors += failed

    @property
    def passed(self) -> str | None:
        """The limit that is passed; None before there are so many decisions."""
        if len(self._newest) < self.limits.over:
            return None
        for what, count, most in (
            ("errors", self.errors, self.limits.max_errors),
            ("refusals", self.refusals, self.limits.max_refusals),
        ):
            if most is not None and count > most * self.limits.over:
                return what
        return None


class Trial:
    """A roll-out, a shadow, or both."""

    __slots__ = ("_active", "rollout", "shadow")

    def __init__(self, active: Active, rollout: Rollout | None, shadow: Shadow | None) -> None:
        self._active = active
        self.rollout = rollout
        self.shadow = shadow

    def decides(self, conversation: str) -> Active:
        """Which constitution decides in this conversation."""
        rollout = self.rollout
        return rollout.candidate if rollout is not None and rollout.decides(conversation) else self._active

    def saw(self, decided: Decided, sight: Sight | None) -> None:
        """What was decided, and on which look; None where the policy was not asked."""
        rollout, shadow = self.rollout, self.shadow
        if rollout is not None and decided.constitution == rollout.candidate.digest:
            rollout.count(decided)
        if shadow is not None and sight is not None:
            shadow.see(decided, sight)
