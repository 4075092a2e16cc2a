"""What the bus makes of an answer of the policy, for `eab policy explain`: the verdict, and what is wrong.

It reads inputs that people have written too: what is missing in one is as if nobody had any facts.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from enhanced_agent_bus.cli.policy.author import HIDDEN
from enhanced_agent_bus.cli.render import counted

if TYPE_CHECKING:
    from enhanced_agent_bus.authoring.answers import Explained
    from enhanced_agent_bus.authoring.workbench import Workbench
    from enhanced_agent_bus.verdict import Refusal, Ruling

SCOPES: Final = ("sender", "recipient", "conversation", "tenant")
#: What a decision document is made of; whatever else stands in a path may be made of a payload.
WORDS: Final = frozenset(
    (
        *("allow", "reasons", "hold", "remember", "obligations", "rule", "code", "message", "remedy"),
        *("approvers", "roles", "expires_in", "scope", "key", "value", "add"),
        *("type", "seconds", "agent", "path", "handler_timeout", "deliver_only_to", "redact"),
    )
)
_MALFORMED: Final = re.compile(r"data\.bus\.decision (?P<place>[^:]+): (?P<words>.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Problem:
    """Which part of an answer the bus does not take; `plain` says why without a word of the message."""

    place: str  # remember.0.key
    message: str
    plain: str
    rules: tuple[str, ...] = ()  # that may have written it

    @property
    def part(self) -> str:
        """remember, of remember.0.key."""
        return self.place.partition(".")[0]

    def shown_place(self, *, hide: bool) -> str:
        """The path in the decision document, without keys that a payload may have given."""
        steps = self.place.split(".")
        known = [step if not hide or step in WORDS or step.isdigit() else HIDDEN for step in steps]
        return ".".join(known)

    def text(self, *, hide: bool) -> str:
        """In one line."""
        words = self.plain if hide else self.message
        whose = f", from the rule {self.rules[0]}" if len(self.rules) == 1 else ""
        if len(self.rules) > 1:
            whose = f", from one of the rules {', '.join(self.rules)}"
        return f"data.bus.decision {self.shown_place(hide=hide)}: {words}{whose}"

    def document(self, *, hide: bool) -> dict[str, Any]:
        """As `--json` prints it."""
        message = self.plain if hide else self.message
        return {"place": self.shown_place(hide=hide), "message": message, "rules": list(self.rules)}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the bus makes of a decision: allow, hold or refuse, with its code and what that means."""

    word: str
    code: str | None = None
    why: str = ""
    waits: tuple[str, ...] = ()  # for whose approvals
    problem: Problem | None = None


def verdict_of(explained: Explained, document: Mapping[str, Any]) -> Verdict:
    """The bus's reading of the answer, as it would be for this input."""
    from enhanced_agent_bus.admission.answer import ruling
    from enhanced_agent_bus.verdict import Answer, Refusal

    if explained.broken is not None:
        return Verdict("refuse", explained.broken.code, explained.broken.message)
    body = b"" if explained.decision is None else json.dumps(explained.decision).encode()
    ruled = ruling(Answer(None, body))
    if isinstance(ruled, Refusal):
        return Verdict("refuse", ruled.code, ruled.message, problem=_shape(ruled, explained.decision))
    if not ruled.allow:
        return Verdict("refuse", "policy_denied")
    recipient = _at(document, "recipient", "id")
    for obligation in ruled.obligations:
        if obligation["type"] == "deliver_only_to" and obligation["agent"] != recipient:
            return Verdict("refuse", "policy_denied", f"it may be delivered to {obligation['agent']} only")
    approvals = _approvals(document)
    waits = tuple(
        f"{hold.rule}: {counted(missing, 'approval')} by {' or '.join(hold.roles)}, within {hold.expires_seconds:g} s"
        for hold in ruled.hold
        if (missing := hold.missing(approvals))
    )
    if waits:
        return Verdict("hold", waits=waits)
    return _remembered(document, ruled) if ruled.remember else Verdict("allow")


async def rules_that_write(bench: Workbench, constitution: Path, part: str) -> tuple[str, ...]:
    """The rules whose files define this part of an answer: none where it is written elsewhere."""
    import tempfile

    from enhanced_agent_bus.authoring.differences import RULES_FOLDER, files_of

    with tempfile.TemporaryDirectory(prefix="eab-") as folder:
        bundle = Path(folder) / "bundle.tar.gz"
        await bench.pack(constitution, bundle)
        files = files_of(bundle)
    head = re.compile(rf"^(default\s+)?{re.escape(part)}\b".encode(), re.MULTILINE)
    found = {
        name.removeprefix(RULES_FOLDER).partition("/")[0]
        for name, text in files.items()
        if name.startswith(RULES_FOLDER) and name.endswith(".rego") and not name.endswith("_test.rego")
        if head.search(text)
    }
    return tuple(sorted(found))


def _shape(refusal: Refusal, decision: Any) -> Problem | None:
    """Where an answer has not the declared shape."""
    found = _MALFORMED.fullmatch(refusal.message)
    if refusal.code != "policy_malformed" or found is None:
        return None
    place = found["place"].replace(" ", ".")
    return Problem(place, found["words"], found["words"], _rule_at(decision, place))


def _rule_at(decision: Any, place: str) -> tuple[str, ...]:
    """The rule that an entry of a list names itself: reasons and holds do."""
    part, _, rest = place.partition(".")
    number = rest.partition(".")[0]
    entries = decision.get(part) if isinstance(decision, dict) else None
    if not isinstance(entries, list) or not number.isdigit() or int(number) >= len(entries):
        return ()
    entry = entries[int(number)]
    rule = entry.get("rule") if isinstance(entry, dict) else None
    return (rule,) if isinstance(rule, str) else ()


def _remembered(document: Mapping[str, Any], ruled: Ruling) -> Verdict:
    """Whether the bus can keep the facts."""
    from enhanced_agent_bus.admission.supposed import suppose

    whole = _padded(document)
    for number in range(len(ruled.remember)):
        found = suppose(whole, dataclasses.replace(ruled, hold=(), remember=ruled.remember[: number + 1]))
        if found.verdict == "refuse":
            message = found.reasons[0].message
            plain = _plain(ruled.remember[number].key, str(found.code))
            problem = Problem(f"remember.{number}", message, plain)
            return Verdict("refuse", found.code, message, problem=problem)
    return Verdict("allow")


def _plain(key: str, code: str) -> str:
    from enhanced_agent_bus.admission.facts import RESERVED

    if key in RESERVED:
        return f"the key {key} is one that the bus itself keeps"
    if code == "facts_full":
        return "there is no room for it"
    return "its key or its value cannot be kept: it is empty or too long, too large, or not of the kind that is there"


def _padded(document: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of an input that facts depend on, whatever is missing or written wrongly."""
    parties = {
        side: {name: str(_at(document, side, name) or side) for name in ("id", "tenant")}
        for side in ("sender", "recipient")
    }
    message = {name: str(_at(document, "message", name) or "") for name in ("id", "conversation")}
    facts: dict[str, dict[str, Any]] = {}
    for scope in SCOPES:
        known = _at(document, "facts", scope)
        items = known.items() if isinstance(known, dict) else ()
        facts[scope] = {key: value for key, value in items if _is_fact(value)}
    return {**parties, "message": message, "facts": facts, "approvals": []}


def _is_fact(value: object) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, str) for item in value)
    return isinstance(value, int | float) and not isinstance(value, bool)


def _at(document: Mapping[str, Any], *keys: str) -> Any:
    value: Any = document
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _approvals(document: Mapping[str, Any]) -> list[Any]:
    from enhanced_agent_bus.verdict import Approval

    given = document.get("approvals")
    found = []
    for one in given if isinstance(given, list) else ():
        if isinstance(one, dict) and isinstance(one.get("roles"), list):
            plain = {key: str(one.get(key, "")) for key in ("approver", "rule", "at")}
            found.append(Approval.of(plain | {"roles": [str(role) for role in one["roles"]]}))
    return found
