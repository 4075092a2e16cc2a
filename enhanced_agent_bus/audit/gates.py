"""The chain of gates as one decision's record shows it: which the message passed, in order, and which stopped it. Pure.

An allow passed all of them; a refusal's code says which one stopped it, and so which stand before that. Where a record
does not tell whether a gate was asked, the gate is left out: less is said then, and nothing that may be untrue.
Not here: reading records, and how gates are shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

Record: TypeAlias = Mapping[str, Any]
Document: TypeAlias = dict[str, Any]

#: What each gate asks, for people.
GATES: Final[Mapping[str, str]] = {
    "shape": "well formed, and within its bounds",
    "identity": "sender and recipient are who they are said to be, and the id is its own",
    "room": "the recipient has a place for it",
    "time": "it has time left, and is not too many hops from its beginning",
    "stops": "no operator has stopped it, and this node may decide",
    "constitution": "its sender agrees to the constitution that is active",
    "own": "a gate that the program plugged in",
    "policy": "the rules of the constitution",
}
#: Before the constitution's, in the order in which they are asked; what has waited is not asked all of them again.
_FIRST: Final[Mapping[str, tuple[str, ...]]] = {
    "send": ("shape", "identity", "room", "time", "stops"),
    "receive": ("shape", "identity", "time", "stops", "room"),
    "replay": ("shape", "identity", "stops", "room"),
}
_OF_REPLIES: Final = ("shape", "identity")  # a reply runs no handler
_AGAIN: Final = ("identity",)
_ANSWERS: Final = ("response", "task_response", "governance_response")
_STOPPED: Final = "stopped"  # the rule that a refusal names which an operator's stop gave
_CODES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("malformed", "too_large", "too_deep"), "shape"),
    **dict.fromkeys(("sender_unregistered", "recipient_unknown", "identity_unproven"), "identity"),
    **dict.fromkeys(("replayed", "reply_unexpected"), "identity"),
    "queue_full": "room",
    **dict.fromkeys(("expired", "hop_limit"), "time"),
    "constitution_mismatch": "constitution",
    **dict.fromkeys(("gate_refused", "gate_broken", "gate_silent"), "own"),
    **dict.fromkeys(("policy_denied", "policy_undefined", "policy_malformed", "policy_error"), "policy"),
    **dict.fromkeys(("policy_timeout", "policy_unavailable", "policy_revision_mismatch"), "policy"),
    **dict.fromkeys(("obligation_unknown", "facts_full"), "policy"),
}


def gates(record: Record) -> list[Document]:
    """Each gate with `said`: pass, hold or refuse; one of the program's own with its `name`, as far as it is recorded.

    The last one is what decided; empty for a refusal with a code that is not known here.
    """
    own = record.get("gates")
    if record["verdict"] != "refuse":
        said = "hold" if record["verdict"] == "hold" else "pass"
        return [*_passed(_first(record)), *_passed(["constitution"]), *_own(own), {"gate": "policy", "said": said}]
    stopped = _stopped(record)
    if stopped is None:
        return []
    if stopped == "own":
        return [*_passed(_first(record)), *_passed(["constitution"]), *_own(own or _told(record["reasons"]))]
    refused = {"gate": stopped, "said": "refuse"}
    if own is not None:  # it was asked for the constitution a second time, or for the rules
        before = _first(record) if stopped == "constitution" else [*_first(record), "constitution"]
        return [*_passed(before), *_own(own), refused]
    return [*_passed(_before(record, stopped)), refused]


def _first(record: Record) -> Sequence[str]:
    if record["type"] in _ANSWERS:
        return _OF_REPLIES
    return _FIRST.get(record["why"], _AGAIN)


def _stopped(record: Record) -> str | None:
    code = record["code"]
    if code == "gate_refused" and record.get("gates") is None and record["reasons"][0]["rule"] == _STOPPED:
        return "stops"
    if code == "expired" and record["why"] == "send":  # its time was up before it had a recipient, or a place there
        return "room" if record["recipient"] else "shape"
    return _CODES.get(code)


def _before(record: Record, stopped: str) -> Sequence[str]:
    """The gates that are known to stand before the one that stopped it."""
    if record["why"] == "receive" and not record.get("ticket"):
        return ()  # it was no message of this bus
    chain = [*_first(record), "constitution", "policy"]
    if stopped == "policy" and record["input"] is None:  # nobody may have been asked, since this node was cut off
        return [gate for gate in chain[: chain.index("constitution")] if gate in ("shape", "identity")]
    return chain[: chain.index(stopped)] if stopped in chain else ()


def _passed(names: Sequence[str]) -> Iterator[Document]:
    for name in names:
        yield {"gate": name, "said": "pass"}


def _own(asked: Mapping[str, Any] | None) -> Iterator[Document]:
    """The program's gates, in the order in which they were asked."""
    if asked is None:
        return
    for name in asked["names"]:
        yield {"gate": "own", "name": name, "said": "pass"}
    if asked["passed"] > len(asked["names"]):
        yield {"gate": "own", "name": f"{asked['passed'] - len(asked['names'])} more", "said": "pass"}
    if asked["refused"] is not None:
        yield {"gate": "own", "name": asked["refused"], "said": "refuse"}


def _told(reasons: Sequence[Mapping[str, Any]]) -> Document:
    """Of a record that does not say more: the gate that refused, where it gave a reason."""
    return {"passed": 0, "names": [], "refused": reasons[0]["rule"] if reasons else ""}
