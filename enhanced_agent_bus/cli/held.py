"""`eab held`: messages that wait for an approval, and the yes or no of those who may decide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from enhanced_agent_bus.cli import faults
from enhanced_agent_bus.cli.faults import CliError, unknown_id
from enhanced_agent_bus.cli.render import (
    compact,
    counted,
    echo,
    print_json,
    print_json_lines,
    print_pairs,
    print_table,
    quoted,
    safe,
)
from enhanced_agent_bus.cli.session import Session, change, note_access, session_of

MessageId = Annotated[str, typer.Argument(metavar="ID", help="The message's id, as `eab held list` shows it.")]
Approver = Annotated[
    str, typer.Option("--as", metavar="AGENT", help="Who decides: a registered agent with a role that the rule names.")
]
LIST_REMEDY = "`eab held list` shows what is held"

app = typer.Typer(help="Messages that wait for an approval: list, show, approve, reject.", rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Messages that wait for an approval."""


@app.command("list")
def list_(context: typer.Context) -> None:
    """List what is held; reads only.

    By which rule, whose approval it wants, and who has given it.

    Example: eab held list
    """
    from enhanced_agent_bus.cli.reading.messages import held

    session = session_of(context)
    rows = held(session.existing_home())
    if session.json:
        print_json_lines(rows)
        return
    print_table(
        ("message id", "sender", "recipient", "type", "since", "until", "held by", "wants", "has"),
        [
            (
                row["message_id"],
                row["sender"],
                row["recipient"],
                row["type"],
                row["since"],
                row["hold_expires"],
                ", ".join(hold["rule"] for hold in row["hold"]),
                ", ".join(f"{hold['approvers']} of {'/'.join(hold['roles'])}" for hold in row["hold"]),
                ", ".join(dict.fromkeys(given["approver"] for given in row["approvals"])),
            )
            for row in rows
        ],
        empty="nothing is held",
    )


@app.command()
def show(
    context: typer.Context,
    message_id: MessageId,
    *,
    payload: Annotated[
        bool, typer.Option("--payload", help="Show payload, headers and the words of reasons; recorded.")
    ] = False,
) -> None:
    """Show what an approver decides about.

    Reads only, but for --payload, which is recorded.

    Example: eab held show desk/order-7
    """
    from enhanced_agent_bus.cli.reading.messages import content, held_view

    session = session_of(context)
    home = session.existing_home()
    found = held_view(home, message_id)
    if found is None:
        raise unknown_id(f"no message {message_id!r} is held", LIST_REMEDY)
    shown: dict[str, Any] = dict(found)
    if not payload:  # what a rule says in words may hold what the message holds
        shown["reasons"] = [{name: reason[name] for name in ("rule", "code")} for reason in shown["reasons"]]
    else:
        note_access(session, "held show", message_id)
        shown |= {f"{name}_content": value for name, value in content(home, message_id).items()}
    if session.json:
        print_json(shown)
        return
    print_pairs((name.replace("_", " "), _cell(value)) for name, value in shown.items())
    echo()
    if not payload:
        echo(f"in words:     {session.command(f'held show {quoted(message_id)} --payload')}, which is recorded")
    echo(f"its records:  {session.command(f'audit show {quoted(message_id)}')}")
    echo(f"say yes:      {session.command(f'held approve {quoted(message_id)} --as AGENT')}")
    echo(f"say no:       {session.command(f'held reject {quoted(message_id)} --as AGENT --reason TEXT')}")


def _cell(value: object) -> object:
    return compact(value) if isinstance(value, dict | list) else value


@app.command()
def approve(
    context: typer.Context,
    message_id: MessageId,
    *,
    approver: Approver,
    comment: Annotated[str | None, typer.Option(metavar="TEXT", help="Why; recorded.")] = None,
) -> int:
    """Approve a held message.

    With the last approval it is decided anew, and goes on where that allows it.

    Example: eab held approve desk/order-7 --as boss --comment "asked the customer"
    """
    session = session_of(context)
    return _decide(session, "approve", message_id, {"as": approver, "id": message_id, "comment": comment})


@app.command()
def reject(
    context: typer.Context,
    message_id: MessageId,
    *,
    approver: Approver,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; recorded.")],
) -> int:
    """Reject a held message.

    It ends as refused (approval_rejected).

    Example: eab held reject desk/order-7 --as boss --reason "too dear"
    """
    if not reason.strip():
        raise CliError("--reason is empty", remedy="say why in a few words: the log keeps it")
    session = session_of(context)
    return _decide(session, "reject", message_id, {"as": approver, "id": message_id, "reason": reason})


def _decide(session: Session, act: str, message_id: str, args: Mapping[str, Any]) -> int:
    from enhanced_agent_bus.errors import BusError

    approver = args["as"]
    try:
        result = change(session, act, args)
    except KeyError as error:
        if error.args and str(error.args[0]) == approver:
            raise unknown_id(f"nobody is registered as {approver!r}", "`eab agents` shows who is") from None
        raise unknown_id(f"no message {message_id!r} is held", LIST_REMEDY) from None
    except BusError as error:
        if error.code != "approval_refused":
            raise
        raise CliError(error.message, remedy=error.remedy, code=error.code, status=faults.FOUND) from None
    if session.json:
        print_json(result)
    else:
        echo(_said(act, message_id, result))
    refused = act == "approve" and result["state"] == "refused"
    return faults.FOUND if refused else faults.DONE


def _said(act: str, message_id: str, result: Mapping[str, Any]) -> str:
    name = safe(message_id)
    if act == "reject":
        return f"rejected {name}: it has ended as refused (approval_rejected)"
    if result["state"] == "accepted":
        return f"approved {name}: it was decided anew and goes on"
    if result["state"] == "refused":
        return f"approved {name}, and refused when it was decided anew ({result['code']})"
    if not result["missing"]:
        return f"approved {name}: it could not be decided anew just now, and is asked again"
    missing = ", ".join(f"{counted(left, 'approval')} for {safe(rule)}" for rule, left in result["missing"])
    return f"approved {name}: it waits for {missing}"
