"""The queue of recoveries: what failed and is to be tried again, in which order, and how that went.

A view beside the messages' own states (contract §2): it says when a failed message goes back to admission, never that
it may be delivered. Pure: time is handed in, and whoever owns it acts on what `ready` gives.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from enhanced_agent_bus.recovery.budget import Budget

State = Literal["pending", "waiting", "retrying", "succeeded", "failed", "cancelled"]
ENDED: Final = frozenset({"succeeded", "failed", "cancelled"})
ENDED_KEPT: Final = 1000  # how many that are over stay in the view


class Failure(NamedTuple):
    """What failed, and how."""

    message_id: str
    sender: str
    recipient: str
    priority: int
    attempts: int  # handler runs so far
    code: str
    error: str  # the error's type


@dataclass(slots=True)
class Case:
    """One failed message."""

    failure: Failure
    due: float  # monotonic seconds
    state: State = "waiting"
    turn: int = 0  # which entry of the queue is this one's newest


class Recoveries:
    """Failed messages by id."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.paused = False
        self._cases: dict[str, Case] = {}
        self._over: OrderedDict[str, Case] = OrderedDict()
        self._waiting: list[tuple[float, int, str]] = []  # heap: due, turn, id
        self._pending: list[tuple[int, float, int, str]] = []  # heap: -priority, due, turn, id
        self._turns = 0

    def failed(self, failure: Failure, due: float) -> None:
        """An attempt failed, and another is due at this time."""
        case = self._noted(failure, due, "waiting")
        heapq.heappush(self._waiting, (due, case.turn, failure.message_id))

    def parked(self, failure: Failure) -> None:
        """An attempt failed, and somebody has to say what is to be done."""
        self._noted(failure, 0.0, "pending")

    def _noted(self, failure: Failure, due: float, state: State) -> Case:
        self._turns += 1
        self._over.pop(failure.message_id, None)
        case = self._cases[failure.message_id] = Case(failure, due, state, self._turns)
        return case

    def ready(self, now: float) -> list[str]:
        """Which go back to admission now: what is due, higher priorities first, as far as the budget goes."""
        while self._waiting and self._waiting[0][0] <= now:
            due, turn, message_id = heapq.heappop(self._waiting)
            case = self._cases.get(message_id)
            if case is not None and case.turn == turn and case.state == "waiting":
                case.state = "pending"
                heapq.heappush(self._pending, (-case.failure.priority, due, turn, message_id))
        found: list[str] = []
        while self._pending and not self.paused:
            _, _, turn, message_id = self._pending[0]
            case = self._cases.get(message_id)
            if case is None or case.turn != turn or case.state != "pending":
                heapq.heappop(self._pending)
            elif self.budget.take(now):
                heapq.heappop(self._pending)
                case.state = "retrying"
                found.append(message_id)
            else:
                break
        return found

    def seconds_left(self, now: float) -> float | None:
        """How long until `ready` may have something; None when only a resume or another failure changes that."""
        found = [max(0.0, self._waiting[0][0] - now)] if self._waiting else []
        if self._pending and not self.paused:
            found.append(self.budget.seconds_left())
        return min(found, default=None)

    def retrying(self, message_id: str) -> None:
        """It goes on, whatever it waited for."""
        case = self._cases.get(message_id)
        if case is not None:
            case.state = "retrying"

    def ended(self, message_id: str, state: State) -> None:
        """It is over, if it was a recovery."""
        case = self._cases.pop(message_id, None)
        if case is None:
            return
        case.state = state
        self._over[message_id] = case
        if len(self._over) > ENDED_KEPT:
            self._over.popitem(last=False)

    def find(self, message_id: str) -> Case | None:
        """One that is not over."""
        return self._cases.get(message_id)

    def all(self) -> list[Case]:
        """The newest that are over, then what is under way by priority and time."""
        return [
            *self._over.values(),
            *sorted(self._cases.values(), key=lambda case: (-case.failure.priority, case.due)),
        ]
