"""`eab send`: one message, by any registered id; with an application also how it ended."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from enhanced_agent_bus.cli import faults
from enhanced_agent_bus.cli.faults import CliError
from enhanced_agent_bus.cli.render import compact, counted, echo, print_json_lines, print_pairs, quoted, safe
from enhanced_agent_bus.cli.session import Json, Session, beside_answers, note_access, session_of

PAYLOAD_BYTES_MAX: Final = 16 * 1024 * 1024 + 1  # of a payload's text; what is longer is refused as too_large
OUTCOME_SECONDS: Final = 60.0


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("send")(send)


def send(
    context: typer.Context,
    payload: Annotated[str, typer.Argument(metavar="PAYLOAD|-|@FILE", help="A JSON object.")] = "{}",
    *,
    sender: Annotated[
        str | None, typer.Option("--from", metavar="AGENT", help="Who sends it: any registered id.")
    ] = None,
    to: Annotated[str | None, typer.Option(metavar="AGENT", help="To this agent.")] = None,
    capability: Annotated[str | None, typer.Option(metavar="NAME", help="To the least loaded that has it.")] = None,
    topic: Annotated[str | None, typer.Option(metavar="NAME", help="To everyone who subscribed.")] = None,
    kind: Annotated[str | None, typer.Option("--type", metavar="TYPE", help="command, query, event, ...")] = None,
    priority: Annotated[str, typer.Option(metavar="P", help="LOW, NORMAL, HIGH or CRITICAL.")] = "NORMAL",
    id: Annotated[str | None, typer.Option("--id", metavar="ID", help="A repeated id is answered, not run.")] = None,
    conversation: Annotated[str | None, typer.Option(metavar="ID", help="The conversation it belongs to.")] = None,
    header: Annotated[list[str] | None, typer.Option(metavar="NAME=TEXT", help="May be given several times.")] = None,
    expires_in: Annotated[float | None, typer.Option(metavar="SECONDS", help="How long it may wait.")] = None,
    app: Annotated[str | None, typer.Option(metavar="APP", help="Run these agents' handlers for it.")] = None,
    constitution: Annotated[Path | None, typer.Option(metavar="PATH", help="For a new home.")] = None,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="Wait for its end.")] = OUTCOME_SECONDS,
    show_payload: Annotated[bool, typer.Option("--payload", help="Show the reply's payload; recorded.")] = False,
    envelope: Annotated[
        str | None, typer.Option(metavar="FILE|-", help="What an agent that has joined has signed, and nothing else.")
    ] = None,
) -> int:
    """Send one message and print its receipt.

    With --app the agents of an application run for it, and its outcome is printed too.

    Example: eab send --from desk --to booker --app app.py:build '{"trip": 7}'
    """
    import asyncio

    from enhanced_agent_bus.admission.canonical import NotJson
    from enhanced_agent_bus.cli.runs.lines import read_payload, read_priority

    if envelope is not None:
        given = (sender, to, capability, topic, kind, id, conversation, header, expires_in, app, constitution)
        if payload != "{}" or show_payload or priority != "NORMAL" or any(word is not None for word in given):
            raise CliError("--envelope stands alone: an envelope says itself who sends what to whom")
        return _carry(session_of(context), envelope)
    if sender is None:
        raise CliError("--from says who sends it", remedy="name a registered agent; `eab agents` lists them")
    if sum(way is not None for way in (to, capability, topic)) != 1:
        raise CliError("exactly one of --to, --capability and --topic says where it goes")
    level = read_priority(priority)
    if level is None:
        raise CliError(f"--priority {priority!r} is none", remedy="LOW, NORMAL, HIGH or CRITICAL, or 0 to 3")
    session = session_of(context)
    content = read_payload(_payload_bytes(payload))
    args: dict[str, Any] = {
        "from": sender,
        "to": to,
        "capability": capability,
        "topic": topic,
        "type": kind,
        "priority": int(level),
        "id": id,
        "conversation": conversation,
        "headers": _headers(header or []),
        "expires_in": expires_in,
    }
    if isinstance(content, NotJson):
        args["unreadable"] = {"code": content.code, "message": str(content)}
    else:
        args["payload"] = content
    where = to or (f"the capability {capability}" if capability else f"the topic {topic}")
    if show_payload and app is not None:
        note_access(session, "send", "the reply's payload")
    results = asyncio.run(_send(session, args, app, constitution, timeout, content=show_payload))
    if isinstance(content, NotJson) and content.code == "malformed":
        _say_in_json(results)
    _show(session, results, where, with_app=app is not None)
    return faults.DONE if results and all(_is_fine(result) for result in results) else faults.FOUND


def _carry(session: Session, source: str) -> int:
    """Sends an envelope as it is."""
    from enhanced_agent_bus.cli.envelopes import ask, read_letter

    results: list[dict[str, Json]] = [
        {"receipt": receipt} for receipt in ask(session, "send_envelope", {"envelope": read_letter(source)})
    ]
    _show(session, results, "the topic", with_app=False)
    return faults.DONE if results and all(_is_fine(result) for result in results) else faults.FOUND


def _payload_bytes(text: str) -> bytes:
    if text == "-":
        return sys.stdin.buffer.read(PAYLOAD_BYTES_MAX)
    if not text.startswith("@"):
        return text.encode("utf-8", "surrogateescape")
    with Path(text[1:]).open("rb") as file:
        return file.read(PAYLOAD_BYTES_MAX)


def _headers(words: list[str]) -> dict[str, str]:
    pairs = [word.partition("=") for word in words]
    for word, (name, separator, _) in zip(words, pairs, strict=True):
        if not name or not separator:
            raise CliError(f"--header {word!r} is none", remedy="write it as NAME=TEXT")
    return {name: text for name, _, text in pairs}


async def _send(
    session: Session, args: Mapping[str, Any], name: str | None, given: Path | None, timeout: float, *, content: bool
) -> list[dict[str, Json]]:
    """What became of each message: {receipt} and, with an application, {outcome}."""
    from enhanced_agent_bus import open_bus
    from enhanced_agent_bus.cli.runs.loading import App, choose_constitution
    from enhanced_agent_bus.control.client import call
    from enhanced_agent_bus.control.operations import perform
    from enhanced_agent_bus.errors import StoreLocked
    from enhanced_agent_bus.ledger.lock import control_socket

    app = None if name is None else App(name)
    home = session.home if app is not None else session.existing_home()
    question = {"timeout": timeout, "content": content}
    async with AsyncExitStack() as stack:
        try:
            chosen = choose_constitution(home, given, app)
            bus = await stack.enter_async_context(open_bus(home, constitution=chosen, **beside_answers(home)))
        except StoreLocked:
            socket = control_socket(home)
            if socket is None:
                raise
            with _known_sender(session, args):
                results = [{"receipt": receipt} for receipt in call(socket, "send", args)]
            if app is not None:  # the bus that runs has agents of its own: it is asked how this ended
                for result in results:
                    if result["receipt"]["state"] == "accepted":
                        result["outcome"] = call(socket, "outcome", question | {"id": result["receipt"]["message_id"]})
            return results
        if app is not None:
            await app.build(bus)
        with _known_sender(session, args):
            await bus.agent(args["from"])
        results = [{"receipt": receipt} for receipt in await perform(bus, "send", args)]
        if app is not None:
            with suppress(TimeoutError):  # then the outcome is null
                await bus.wait_idle(timeout)
            for result in results:
                if result["receipt"]["state"] == "accepted":
                    ask = question | {"id": result["receipt"]["message_id"], "timeout": 0}
                    result["outcome"] = await perform(bus, "outcome", ask)
        return results


@contextmanager
def _known_sender(session: Session, args: Mapping[str, Any]) -> Iterator[None]:
    """The bus has no handle for an id that nobody registered. Raises: CliError."""
    try:
        yield
    except KeyError:
        raise CliError(
            f"no agent {args['from']!r} is registered in {session.home}",
            remedy="`eab agents` lists them; one is registered by the application that has its handler",
            code="sender_unregistered",
            status=faults.FOUND,
        ) from None


def _is_fine(result: Mapping[str, Json]) -> bool:
    outcome = result.get("outcome")
    return result["receipt"]["state"] != "refused" and (outcome is None or outcome["state"] == "delivered")


def _say_in_json(results: list[dict[str, Json]]) -> None:
    """Who typed a payload wrote JSON; the library's remedy speaks of Python's types."""
    for result in results:
        for reason in result["receipt"]["reasons"]:
            reason["remedy"] = 'write one JSON object, like {"trip": 7}'


def _show(session: Session, results: list[dict[str, Json]], where: str, *, with_app: bool) -> None:
    for result in results:
        result.setdefault("outcome", None)
    if session.json:
        print_json_lines(results)
        return
    if not results:
        echo(f"nobody subscribed to {safe(where)}; that is recorded")
    for result in results:
        _show_one(session, result, where, with_app=with_app)


def _show_one(session: Session, result: Mapping[str, Json], where: str, *, with_app: bool) -> None:
    receipt, outcome = result["receipt"], result["outcome"]
    code = f" ({receipt['code']})" if receipt["code"] else ""
    echo(f"{receipt['state']}{code}: {safe(receipt['message_id'])} to {safe(receipt['recipient'] or where)}")
    for reason in receipt["reasons"]:
        what = ": ".join(part for part in (reason["rule"], reason["message"] or reason["code"]) if part)
        echo(f"  {safe(what)}")
        if reason["remedy"]:
            echo(f"    {safe(session.named(reason['remedy']))}")
    pairs = [
        ("audit seq", f"{receipt['audit_seq']} of {receipt['origin']}"),
        ("decision", receipt["decision_id"]),
        ("constitution", f"{receipt['constitution']} (revision {receipt['revision']})"),
    ]
    if outcome is not None:
        code = f" ({outcome['code']})" if outcome["code"] else ""
        pairs.append(("outcome", f"{outcome['state']}{code} after {counted(outcome['attempts'], 'attempt')}"))
        if outcome["reply"] is not None:
            pairs.append(("reply", outcome["reply"]["id"]))
            if "payload" in outcome["reply"]:
                pairs.append(("payload", compact(outcome["reply"]["payload"])))
    elif receipt["state"] == "accepted":
        known = "it has not ended yet" if with_app else "not waited for (--app APP does)"
        pairs.append(("outcome", f"{known}; what waits: {session.command('queue list')}"))
    elif receipt["state"] == "held":
        pairs.append(("held", f"who is asked: {session.command('held list')}"))
    if outcome is not None and outcome["state"] == "dead_lettered":
        pairs.append(("why", session.command(f"dlq show {quoted(receipt['message_id'])}")))
    print_pairs(pairs)
