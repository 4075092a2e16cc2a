"""`eab status`: how the bus stands, with a running process or without."""

from __future__ import annotations

from typing import Any

import typer

from enhanced_agent_bus.cli.program import named
from enhanced_agent_bus.cli.render import echo, print_json, print_pairs, print_table
from enhanced_agent_bus.cli.session import Session, ask_running, held_up, session_of
from enhanced_agent_bus.cli.stop import in_words


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("status")(status)


def status(context: typer.Context) -> None:
    """Show messages, constitution and weakenings.

    Asks a running bus, or reads the home; changes nothing.

    Example: eab status
    """
    from enhanced_agent_bus.cli.reading.home import status_at_rest

    session = session_of(context)
    home = session.existing_home()
    blocked = held_up(home)
    document = ask_running(home, "status", timeout=0.5 if blocked else 5.0)
    if document is None:
        document = status_at_rest(home)
        if blocked is not None:
            document |= {"running": True, "blocked": [blocked], "answers": False}
    if session.json:
        print_json(document)
    else:
        _show_status(session, document)


def _show_status(session: Session, document: dict[str, Any]) -> None:
    from enhanced_agent_bus.cli.reading.home import not_taken

    engine = document.get("engine") or {}
    refused = not_taken(session.home)
    print_pairs(
        [
            ("home", document["home"]),
            ("running", _running(document)),
            ("bus", f"{document['bus']}, node {document['node']}"),
            *_others(document),
            ("constitution", f"{document['constitution']} (revision {document['revision']})"),
            *([("not taken", refused)] if refused is not None else []),
            *_tried(document),
            ("engine", " ".join(str(engine[key]) for key in ("name", "opa") if engine.get(key))),
            ("agents", document["agents"]),
            ("records", document["records"]),
            *_stopped(document),
            *_recovering(document),
            *_weaker(document["security_state"]),
            *_witnessed(document),
        ]
    )
    echo()
    accounting = dict(document["accounting"])
    accepted = accounting.pop("accepted", 0)
    rows = [("accepted", accepted), *((f"  {_label(state)}", count) for state, count in accounting.items())]
    print_table(("messages", "count"), rows)
    echo()
    echo(f"what was refused at once is not among these: {session.command('audit search verdict:refuse')}")
    if accepted != sum(accounting.values()):
        total = sum(accounting.values())
        echo(f"these do not add up: {accepted} accepted, {total} in some state; {session.command('audit verify')}")


def _running(document: dict[str, Any]) -> str:
    if document.get("answers") is False:
        return "yes, and cannot answer just now: these figures are those of the home"
    return "yes" if document["running"] else "no"


def _others(document: dict[str, Any]) -> list[tuple[str, str]]:
    """The nodes of a bus of several, and their leases."""
    return [("node", _node(one, document["node"])) for one in document.get("nodes") or []]


def _node(node: dict[str, Any], own: str) -> str:
    which = f"{node['node']} (this one)" if node["node"] == own else node["node"]
    heard = f"{node['heard_seconds']:.1f} s ago"
    if node["alive"]:
        return f"{which}: its lease holds, renewed {heard}"
    return f"{which}: gone or cut off, last heard of {heard}; its agents can be taken over"


def _tried(document: dict[str, Any]) -> list[tuple[str, str]]:
    """What decides a share, and what only looks on."""
    found = []
    candidate = document.get("candidate")
    if candidate:
        share = f"in {candidate['percent']} percent of the conversations"
        found.append(("candidate", f"{candidate['digest']} (revision {candidate['revision']}), {share}"))
        if document["running"]:
            newest = f"{candidate['refusals']} refusals and {candidate['errors']} errors in the newest"
            found.append(("", f"{candidate['decisions']} decisions, {newest} {candidate['newest']}"))
    if document.get("shadow"):
        found.append(("shadow", document["shadow"]))
    return found


def _stopped(document: dict[str, Any]) -> list[tuple[str, str]]:
    """From or to what no message goes."""
    return [
        ("STOPPED", f"{in_words(one['of'], one['name'])}, by {one['by']} since {one['since']}: {one['reason']}")
        for one in document.get("stopped") or []
    ]


def _recovering(document: dict[str, Any]) -> list[tuple[str, str]]:
    """What holds messages back that failed, or may fail."""
    found = [("recovery", named("paused: `eab recovery resume` goes on"))] if document.get("recovery_paused") else []
    breakers = document.get("breakers") or {}
    if breakers:
        shown = ", ".join(f"{agent} ({state.replace('_', ' ')})" for agent, state in sorted(breakers.items()))
        found.append(("breakers", shown))
    for blocked in (document.get("blocked") or [])[-3:]:
        who = f"the handler of {blocked['agent']}" if blocked["agent"] else "something"
        for_how_long = f"for {blocked['seconds']:.1f} s" if blocked["over"] else f"since {blocked['at']}, still"
        found.append(("loop blocked", f"by {who} at {blocked['where']}, {for_how_long}"))
    return found


def _weaker(names: list[str]) -> list[tuple[str, str]]:
    """What is weaker than it could be, each with what that means."""
    from enhanced_agent_bus.weakenings import WEAKENINGS

    said = [f"{name}: {WEAKENINGS[name].meaning}" if name in WEAKENINGS else name for name in names]
    return [("weakenings" if not place else "", text) for place, text in enumerate(said or ["none"])]


def _witnessed(document: dict[str, Any]) -> list[tuple[str, str]]:
    """How far each witness has the log, and why not further."""
    return [("witness", told(one)) for one in document.get("witnesses") or []]


def told(witness: dict[str, Any]) -> str:
    """One witness, in a line."""
    size, at, behind = witness["size"], witness["at"], witness["behind_seconds"]
    has = f"has the first {size} records, since {at}" if size is not None else "has nothing yet"
    late = f", behind for {behind:.0f} s" if behind >= 1 else ""
    wrong = "CONTRADICTS this log: " if witness["contradicts"] else ""
    why = f": {wrong}{witness['error']}" if witness["error"] else ""
    return f"{witness['witness']} {has}{late}{why}"


def _label(state: str) -> str:
    """A message that was accepted and is refused was refused by a later decision: of a retry, an activation, ..."""
    return "refused later" if state == "refused" else state.replace("_", " ").replace("dead lettered", "dead-lettered")
