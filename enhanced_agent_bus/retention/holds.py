"""Legal holds: which messages must be kept, whatever else would remove their content. Kept in the home, by record.

Not here: who removes content (erasing, endings).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import orjson

from enhanced_agent_bus.message import AGENT_ID, MESSAGE_ID, shown
from enhanced_agent_bus.outcome import END_STATES, LegalHold, instant_of
from enhanced_agent_bus.ports import Content

SETTING: Final = "legal_holds"
HOLDS_MAX: Final = 1000
_PATTERNS: Final = {"message": MESSAGE_ID, "conversation": MESSAGE_ID, "agent": AGENT_ID}


class Holds:
    """All legal holds of a home, from its setting. Changed by whoever records it."""

    def __init__(self, setting: str | None) -> None:
        self._held: dict[tuple[str, str], list[Any]] = {
            (of, name): rest for of, name, *rest in orjson.loads(setting or "[]")
        }

    def __iter__(self) -> Iterator[LegalHold]:
        for (of, name), (reason, by, since_us) in sorted(self._held.items()):
            yield LegalHold(of, name, reason, by, instant_of(since_us))

    def __len__(self) -> int:
        return len(self._held)

    def find(self, message_id: str, conversation: str, sender: str, recipient: str) -> str | None:
        """The hold that covers a message, in words; None without."""
        if not self._held:
            return None
        for key in (
            ("message", message_id),
            ("conversation", conversation),
            ("agent", sender),
            ("agent", recipient),
        ):
            if key in self._held:
                return f"legal hold on {key[0]} {key[1]}: {self._held[key][0]}"
        return None

    def why_left(self, content: Content) -> str | None:
        """Why what is stored of a message may not be erased; None when nothing speaks for keeping it."""
        held = self.find(content.message_id, content.conversation, content.sender, content.recipient)
        ended = content.state is None or (content.state in END_STATES and content.state != "dead_lettered")
        return held if held is not None or ended else f"it is {content.state}"

    def get(self, of: str, name: str) -> list[Any] | None:
        return self._held.get((of, name))

    def written(self, of: str, name: str, held: list[Any] | None) -> str:
        """The setting as it is to become, with this one added or (None) removed."""
        changed = {key: rest for key, rest in self._held.items() if key != (of, name)}
        if held is not None:
            changed[of, name] = held
        return orjson.dumps([[*key, *rest] for key, rest in changed.items()]).decode()

    def change(self, of: str, name: str, held: list[Any] | None) -> None:
        if held is None:
            self._held.pop((of, name), None)
        else:
            self._held[of, name] = held


def check_target(of: str, name: str) -> None:
    """Raises: ValueError, when this names nothing that could be held or erased."""
    pattern = _PATTERNS.get(of)
    if pattern is None:
        raise ValueError(f"it is a message, a conversation or an agent, not {shown(of)}")
    if not pattern.fullmatch(name):
        raise ValueError(f"{shown(name)} is no name of {'an' if of == 'agent' else 'a'} {of}")
