"""Named places where a test can make this process die, fail or dawdle (contract §10).

`EAB_FAULTPOINT=<name>:<nth>:kill|raise|delay`, several joined by commas; nth counts hits in this process from 1.
`raise` behaves like an I/O error, `delay` takes one second. Without the variable a hit costs one dictionary look-up.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from typing import Final

from enhanced_agent_bus.errors import ConfigInvalid

VARIABLE: Final = "EAB_FAULTPOINT"
DELAY_SECONDS: Final = 1.0
NAMES: Final = (
    "audit.before_commit",
    "audit.after_commit",
    "dispatch.before_handler",
    "handler.after_return",
    "outcome.before_commit",
    "outcome.after_commit",
    "policy.before_swap",
    "policy.after_swap",
    "retry.before_decide",
    "erasure.before_commit",
    "erasure.after_commit",
    "erasure.before_overwrite",
    "erasure.after_overwrite",
)
ACTIONS: Final = ("kill", "raise", "delay")


class FaultPoints:
    """What this process does at its named places; nothing, until it is armed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hits: dict[str, int] = {}
        self._plan: dict[str, dict[int, str]] = {}

    def arm(self, plan: str) -> None:
        """Takes a plan; hits count on from where they are. Raises: ConfigInvalid, when it cannot be read."""
        self._plan = {}
        for part in filter(None, plan.split(",")):
            name, _, rest = part.partition(":")
            nth, _, action = rest.partition(":")
            if name not in NAMES or not nth.isdecimal() or int(nth) < 1 or action not in ACTIONS:
                raise ConfigInvalid(
                    f"{VARIABLE} has {part!r}",
                    remedy=f"write NAME:NTH:ACTION with a name of {', '.join(NAMES)} and one of {', '.join(ACTIONS)}",
                )
            self._plan.setdefault(name, {})[int(nth)] = action

    def hits(self, name: str) -> int:
        """How often an armed point was passed so far."""
        return self._hits.get(name, 0)

    def hit(self, name: str) -> None:
        """Does what the plan says for this hit. Raises: OSError (EIO), where the plan says raise."""
        if name not in self._plan:
            return
        with self._lock:
            count = self._hits[name] = self._hits.get(name, 0) + 1
        action = self._plan[name].get(count)
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif action == "raise":
            raise OSError(errno.EIO, f"fault point {name}")
        elif action == "delay":
            time.sleep(DELAY_SECONDS)


#: The plan of this process: `open_bus` arms it from the environment.
points: Final = FaultPoints()
hit: Final = points.hit
