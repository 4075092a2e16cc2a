"""One recipient's breaker: when its handler is left in peace. Pure; time is handed in.

Closed; open after so many failed runs in a row; half open after a pause, when one run is tried: it closes the breaker,
or opens it for another pause (M. Nygard, "Release It!").
"""

from __future__ import annotations

from typing import Final, Literal

State = Literal["closed", "open", "half_open"]
BURST_SECONDS: Final = 0.5  # runs of several messages that fail within this are what retries are for


class Breaker:
    """`limit` failed runs in a row open it for `seconds`.

    In a row are: the runs of one message that is still retried; messages that were given up, each once; the runs of
    any messages, where the row has lasted longer than a burst. So neither one message that cannot be handled opens it,
    nor many that fail together once.
    """

    def __init__(self, limit: int, seconds: float) -> None:
        self._limit = limit
        self._seconds = seconds
        self.failures = 0  # runs in a row
        self._since = 0.0  # when the row began
        self._given_up = 0  # messages in the row
        self._until = 0.0
        self._probing = False
        self.shut = False  # not closed: a run has to ask `may_start` first

    def state(self, now: float) -> State:
        if not self.shut:
            return "closed"
        return "open" if now < self._until and not self._probing else "half_open"

    def seconds_left(self, now: float) -> float:
        """How long until a run is tried; 0 when one may, or is being tried."""
        return max(0.0, self._until - now) if self.shut and not self._probing else 0.0

    def may_start(self, now: float) -> bool:
        """Whether a handler may run; where the breaker is half open, as the one that is tried."""
        if not self.shut:
            return True
        if self._probing or now < self._until:
            return False
        self._probing = True
        return True

    def try_now(self) -> None:
        """Somebody wants to know at once (a replay): the pause is over."""
        self._until = 0.0

    def worked(self) -> None:
        self.failures = self._given_up = 0
        self._probing = self.shut = False

    def left(self) -> None:
        """The run that was to be tried has not come about, or says nothing about the recipient."""
        self._probing = False

    def failed(self, now: float, attempts: int, *, gave_up: bool) -> bool:
        """One more failed run, of a message that has failed so often; True when that has opened the breaker."""
        if self.shut:
            if not self._probing:  # a run that started before it opened
                return False
            self._probing = False
            self._until = now + self._seconds
            return True
        if self.failures == 0:
            self._since = now
        self.failures += 1
        self._given_up += gave_up
        of_messages = self._given_up if gave_up else min(attempts, self.failures)
        lasting = self.failures >= self._limit and now - self._since >= BURST_SECONDS and self.failures > attempts
        if of_messages < self._limit and not lasting:
            return False
        self.shut = True
        self._until = now + self._seconds
        return True
