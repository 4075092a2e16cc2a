"""What an operator has stopped: agents, tenants, or everything. Kept in the home, by record.

Not here: who records it, and who brings it to other nodes (road).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import orjson

from enhanced_agent_bus.message import AGENT_ID, Envelope, shown
from enhanced_agent_bus.outcome import Stopped, instant_of
from enhanced_agent_bus.verdict import Reason, Refusal

SETTING: Final = "stops"
STOPS_MAX: Final = 1000
RULE: Final = "stopped"
ALL: Final = "all"

Key = tuple[str, str]  # agent, tenant or all, and its name


class Stop(NamedTuple):
    """Why it was stopped, by whom and since when."""

    reason: str
    by: str
    since_us: int


class Stops:
    """All that is stopped, from the setting of the home. Changed by whoever records it."""

    def __init__(self, setting: str | None) -> None:
        self._stopped: dict[Key, Stop] = {}
        self.pending: set[Key] = set()  # of them, those that the other nodes may not know of
        for of, name, reason, by, since_us, pending in orjson.loads(setting or "[]"):
            self._stopped[of, name] = Stop(reason, by, since_us)
            if pending:
                self.pending.add((of, name))

    def __iter__(self) -> Iterator[Stopped]:
        for (of, name), stop in sorted(self._stopped.items()):
            yield Stopped(of, name, stop.reason, stop.by, instant_of(stop.since_us))

    def __len__(self) -> int:
        return len(self._stopped)

    def all(self) -> dict[Key, Stop]:
        """As they are now."""
        return dict(self._stopped)

    def get(self, key: Key) -> Stop | None:
        return self._stopped.get(key)

    def set(self, key: Key, stop: Stop, *, pending: bool) -> None:
        self._stopped[key] = stop
        (self.pending.add if pending else self.pending.discard)(key)

    def remove(self, key: Key) -> None:
        self._stopped.pop(key, None)
        self.pending.discard(key)

    def written(self) -> str:
        """The setting, as it is now."""
        return orjson.dumps([[*key, *stop, key in self.pending] for key, stop in self._stopped.items()]).decode()

    def find(self, envelope: Envelope) -> Key | None:
        """What stops a message; None when nothing does."""
        if not self._stopped:
            return None
        for key in (
            (ALL, ""),
            ("agent", envelope.sender),
            ("agent", envelope.recipient),
            ("tenant", envelope.tenant),
            ("tenant", envelope.recipient_tenant),
        ):
            if key in self._stopped:
                return key
        return None

    def refusal(self, envelope: Envelope) -> Refusal | None:
        """What a new message is told that is from or to what is stopped."""
        key = self.find(envelope)
        stop = None if key is None else self._stopped.get(key)
        if key is None or stop is None:
            return None
        why = f"{in_words(*key)} is stopped: {stop.reason}"
        return Refusal("gate_refused", reasons=(Reason(RULE, RULE, why, "send it again once `eab resume` was called"),))


def in_words(of: str, name: str) -> str:
    """What is stopped, for a person."""
    return "the whole bus" if of == ALL else f"{of} {name}"


def check_target(of: str, name: str) -> None:
    """Raises: ValueError, when this names nothing that could be stopped."""
    if of == ALL:
        if name:
            raise ValueError(f"to stop all takes no name, and {shown(name)} was given")
        return
    if of not in ("agent", "tenant"):
        raise ValueError(f"it is an agent, a tenant or all that is stopped, not {shown(of)}")
    if not AGENT_ID.fullmatch(name):
        raise ValueError(f"{shown(name)} is no name of {'an agent' if of == 'agent' else 'a tenant'}")
