"""The life of one message for `eab audit show`: gathered from the home, and told on a screen.

Not here: what the records say (`audit/timeline.py`).
"""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final

from enhanced_agent_bus.audit.query import Query, Term
from enhanced_agent_bus.audit.timeline import Place, rule_place, timeline
from enhanced_agent_bus.authoring.differences import files_of
from enhanced_agent_bus.cli.reading.home import OF_MESSAGE, STATE_OF_MESSAGE, database, one
from enhanced_agent_bus.cli.reading.log import Search, records_named
from enhanced_agent_bus.cli.reading.recorded import kept_constitution
from enhanced_agent_bus.cli.render import compact, counted, echo, print_pairs, quoted, safe
from enhanced_agent_bus.cli.session import Json, Session

#: How far behind the last record of a message its effects are looked for: a handler's sends stand before its outcome,
#: its reply right behind it.
BEHIND_RECORDS: Final = 20_000
#: And in how many records at most, from the first one on: about half a second's worth.
LOOKED_RECORDS_MAX: Final = 300_000
CAUSES_MAX: Final = 64
#: How many of the rules that admitted a message a person is shown.
RULES_SHOWN_MAX: Final = 20


def timeline_of(home: Path, message_id: str, *, content: bool) -> dict[str, Json]:
    """All that a home knows of a message; with `content` also what stands apart from its records."""
    records = records_named(home, message_id, content=content)
    with database(home) as connection:
        state = one(connection, STATE_OF_MESSAGE, (message_id,))
    constitutions = {
        str(record["constitution"]): int(record["revision"]) for record in records if record["kind"] == "decision"
    }
    files = {digest: kept_files(home, digest) for digest in constitutions}
    rules = {digest: rules_of(kept) for digest, kept in files.items() if kept is not None}
    first, last = records[0]["seq"], min(records[-1]["seq"] + BEHIND_RECORDS, records[0]["seq"] + LOOKED_RECORDS_MAX)
    terms = [
        *(Term("seq", str(seq), negated=False, quoted=False, compare=how) for seq, how in ((first, ">"), (last, "<="))),
        Term("kind", "decision", negated=False, quoted=True),
        Term("cause", message_id, negated=False, quoted=True),
    ]
    looked = Search(home, Query(terms))
    document = timeline(
        [{name: value for name, value in record.items() if name != "content"} for record in records],
        state=state,
        causes=_causes(home, records),
        effects=looked.oldest(),
        places=_places(records, files, rules),
        rules=rules,
    )
    document["looked_to"] = min(last, looked.size - 1)
    document["size"] = looked.size
    document["constitutions"] = [
        {
            "digest": digest,
            "name": name_of(files[digest] or {}),
            "revision": revision,
            "kept": files[digest] is not None,
            "file": str(home / "constitutions" / f"{digest}.tar.gz") if files[digest] is not None else None,
        }
        for digest, revision in constitutions.items()
    ]
    for step, record in zip(document["steps"], records, strict=True):
        if "content" in record:
            step["content"] = record["content"]
    return document


def _causes(home: Path, records: Sequence[Mapping[str, Json]]) -> Iterator[dict[str, Json]]:
    """The first decision on the message that caused it, on the one that caused that, and so on."""
    name = next((record["cause"] for record in records if record.get("cause")), None)
    seen: set[str] = set()
    while name is not None and name not in seen and len(seen) < CAUSES_MAX:
        seen.add(name)
        with database(home) as connection:
            found = (json.loads(body) for (body,) in connection.execute(OF_MESSAGE, (name,)))
            decision = next((record for record in found if record["kind"] == "decision"), None)
        if decision is None:
            return
        yield decision
        name = decision["cause"]


def kept_files(home: Path, digest: str) -> Mapping[str, bytes] | None:
    """The constitution with this digest; None when the home does not keep it, or keeps something else there."""
    path = kept_constitution(home, digest)
    if path is None:
        return None
    try:
        files = files_of(path)
    except (OSError, EOFError, tarfile.TarError, zlib.error):
        return None
    lines = (f"{sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files, key=str.encode))
    return files if sha256("".join(lines).encode()).hexdigest() == digest else None


def name_of(files: Mapping[str, bytes]) -> str:
    """What a constitution is called; "" where it has no name."""
    manifest = json.loads(files.get(".manifest", b"{}"))
    named = (manifest.get("metadata") or {}).get("eab", {}) if isinstance(manifest, dict) else {}
    return str(named.get("name", ""))


def rules_of(files: Mapping[str, bytes]) -> list[str]:
    """The rules that a constitution lists, each of which has to admit a message."""
    listed = json.loads(files.get("bus/manifest/data.json", b"{}"))
    return [str(rule) for rule in listed.get("rules", [])] if isinstance(listed, dict) else []


def _places(
    records: Sequence[Mapping[str, Json]],
    files: Mapping[str, Mapping[str, bytes] | None],
    rules: Mapping[str, Sequence[str]],
) -> dict[Place, dict[str, Json]]:
    """Where the rules stand that refused or held a message, and those that all admitted it."""
    places: dict[Place, dict[str, Json]] = {}
    for record in records:
        if record["kind"] != "decision" or (kept := files.get(record["constitution"])) is None:
            continue
        digest, verdict = record["constitution"], record["verdict"]
        said = [(reason["rule"], "hold" if verdict == "hold" else "admit") for reason in record["reasons"]]
        admitted = [] if verdict == "refuse" else [(rule, "admit") for rule in rules[digest]]
        for rule, did in (*said, *admitted):
            place = rule_place(kept, rule, did) if rule else None
            if place is not None:
                places[digest, rule, did] = place
    return places


# --- for people ----------------------------------------------------------------------------------------------------


def show_timeline(session: Session, document: Mapping[str, Json]) -> None:
    """The message, its steps one below the other, and what led to it and came of it."""
    print_pairs(_about(document))
    echo()
    width = max(len(str(step["seq"])) for step in document["steps"])
    for step in document["steps"]:
        first, *more = _told(session, step)
        echo(safe(f"{step['seq']:>{width}}  {_after(step['after_us']):>12}  {first}"))
        for line in more:
            echo(safe(f"{'':>{width}}  {'':>12}    {line}"))
    for title, others in (("caused by", document["caused_by"]), ("caused", document["caused"])):
        if others:
            echo()
            echo(f"{title}:")
            for other in others:
                echo(safe(f"  {other['seq']:>{width}}  {_other(other)}"))
    if document["looked_to"] < document["size"] - 1:
        echo()
        echo(f"what it caused was looked for up to seq {document['looked_to']}; in the whole log by")
        echo(f"  {session.command('audit search ' + quoted('cause:' + json.dumps(document['message_id'])))}")


def _about(document: Mapping[str, Json]) -> Iterator[tuple[str, Json]]:
    yield "message", document["message_id"]
    if "sender" in document:
        to = document["recipient"] or (f"topic {document['topic']}" if document["topic"] else "nobody")
        here = f" of {document['recipient_tenant']}" if document["recipient_tenant"] else ""
        yield "from", f"{document['sender']} of {document['tenant']}"
        yield "to", f"{to}{here}"
        yield "is a", f"{document['type']}, priority {document['priority']}"
        yield "sent at", document["sent_at"]
        if document["conversation"] != document["message_id"]:
            yield "in", f"conversation {document['conversation']}"
    yield "state", document["state"]
    for one_ in document["constitutions"]:
        kept = "" if one_["kept"] else "; its files are not in the home"
        name = f"{one_['name']}, " if one_["name"] else ""
        yield "constitution", f"{name}revision {one_['revision']}, {one_['digest']}{kept}"


def _after(us: int) -> str:
    """Since it was sent."""
    seconds = us / 1e6
    return f"{seconds:+.3f} s" if abs(seconds) < 1000 else f"{seconds / 3600:+.2f} h"  # noqa: PLR2004


def _told(session: Session, step: Mapping[str, Json]) -> Iterator[str]:
    """What a step says, its first line first."""
    if step["what"] == "decision":
        yield from _decided(session, step)
    elif step["what"] == "outcome":
        yield from _ended(step)
    elif step["what"] == "approval":
        yield from told_approval(step)
    else:
        said = [f"{name} {compact(value)}" for name, value in step.items() if name not in _SHOWN and value is not None]
        yield " ".join([step["what"], *([step["event"]] if step.get("event") else [])])
        yield from said
    yield from _apart(step.get("content") or {})


def told_approval(step: Mapping[str, Json]) -> Iterator[str]:
    """What an approver did, or tried to: what is refused then is the attempt, and not the message."""
    who = f"by {step['approver']} ({', '.join(step['roles']) or 'no roles'})"
    yield f"{step['act']} {who}, not taken" if step["event"] == "refused" else f"{step['event']} {who}"
    if step.get("rules"):
        yield f"for {', '.join(step['rules'])}"
    if step.get("why"):
        yield str(step["why"])


_SHOWN: Final = frozenset(("seq", "at", "what", "after_us", "event", "content"))


def _decided(session: Session, step: Mapping[str, Json]) -> Iterator[str]:
    code = f" {step['code']}" if step["code"] else ""
    again = "" if step["why"] == "send" else f", again ({step['why']})"
    way = (
        ", from the cache"
        if step["cached_from"]
        else f", in {step['eval_us'] / 1000:.2f} ms"
        if step["eval_us"]
        else ""
    )
    yield f"{step['verdict']}{code}{again}, under revision {step['revision']}{way}"
    yield from _gates(step["gates"])
    yield from _admitted(step.get("admitted_by", ()), again=step["previous"] is not None)
    rules = False
    for reason in step["reasons"]:
        rules = rules or "file" in reason
        if "file" in reason:
            yield f"rule {reason['rule']}: {reason['code']}, {reason['file']}:{','.join(map(str, reason['lines']))}"
        elif (step["code"] or "").startswith("gate_"):
            yield f"gate {reason['rule']}: {reason['code']}"
        elif reason["rule"]:
            yield f"rule {reason['rule']}: {reason['code']}"
    if rules:
        yield f"which expression: {session.command('policy explain ' + quoted(step['decision_id']))}"
    if rules and "content" not in step:  # words may hold what the message holds, and stand apart as payloads do
        shown = f"audit show {step['seq']} --payload"
        yield f"in its words: {session.command(shown)}, which is recorded"


def _admitted(rules: Sequence[Mapping[str, Json]], *, again: bool) -> Iterator[str]:
    """The rules that all admitted it, and where each says what it admits."""
    if again:
        if rules:
            yield f"admitted by {counted(len(rules), 'rule')}"
        return
    for rule in rules[:RULES_SHOWN_MAX]:
        where = f", {rule['file']}:{','.join(map(str, rule['lines']))}" if "file" in rule else ""
        yield f"rule {rule['rule']} admits it{where}"
    if len(rules) > RULES_SHOWN_MAX:
        yield f"and {counted(len(rules) - RULES_SHOWN_MAX, 'more rule')}; --json has them all"


def _gates(gates: Sequence[Mapping[str, Json]]) -> Iterator[str]:
    """What it passed, in order, and what stopped it."""
    passed = [_gate(gate) for gate in gates if gate["said"] == "pass"]
    if passed:
        yield f"passed {', '.join(passed)}"
    for gate in gates:
        if gate["said"] != "pass":
            yield f"{'held' if gate['said'] == 'hold' else 'stopped'} by {_gate(gate)}"


def _gate(gate: Mapping[str, Json]) -> str:
    return f"gate {gate['name']}".rstrip() if gate["gate"] == "own" else str(gate["gate"])


def _ended(step: Mapping[str, Json]) -> Iterator[str]:
    code = f" {step['code']}" if step["code"] else ""
    run = f", attempt {step['attempt']}" if step["attempt"] else ""
    took = f", {step['duration_us'] / 1000:.3f} ms" if step["duration_us"] else ""
    yield f"{step['state']}{code}{run}{took}"
    if step["error"]:
        yield f"error {step['error']['type']}"
    if step["redacted"]:
        yield "the payload was redacted before"


def _apart(content: Mapping[str, Json]) -> Iterator[str]:
    """What stands apart from a record."""
    for name, value in content.items():
        if value not in ({}, None):
            yield f"{name} {compact(value)}"


def _other(other: Mapping[str, Json]) -> str:
    code = f" {other['code']}" if other["code"] else ""
    what = f"{other['type']}, the answer" if other["answer"] else other["type"]
    return f"{other['verdict']}{code}: {other['sender']} to {other['recipient']}, {what} {other['message_id']}"
