"""`eab audit erase` and `eab audit retention`: what goes from beside the records, and what is kept for how long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Annotated

import typer

from enhanced_agent_bus.cli import faults
from enhanced_agent_bus.cli.faults import CliError, unknown_id
from enhanced_agent_bus.cli.render import counted, echo, print_json, print_pairs, print_table, safe
from enhanced_agent_bus.cli.session import Json, ask_running, change, operator, session_of

SEARCH_REMEDY = "`eab audit search` finds ids"
LISTED_MAX = 5  # messages with one reason; as JSON each is there
REPORT_SECONDS = 60.0  # a bus that has much to look through may take so long to answer
Conversation = Annotated[str | None, typer.Option("--conversation", metavar="ID", help="All of a conversation.")]
AgentId = Annotated[str | None, typer.Option("--agent", metavar="ID", help="All that this agent sent or was sent.")]
Reason = Annotated[str, typer.Option(metavar="TEXT", help="Why; recorded for good, so name nobody.")]


def target(message_id: str | None, conversation: str | None, agent: str | None) -> tuple[str, str]:
    """What is meant, and its name. Raises: CliError, when that is not exactly one."""
    kinds = (("message", message_id), ("conversation", conversation), ("agent", agent))
    given = [(of, name) for of, name in kinds if name is not None]
    if len(given) == 1:
        return given[0]
    raise CliError("give a message's id, or --conversation, or --agent, and one of them only", remedy=SEARCH_REMEDY)


def require_reason(reason: str) -> None:
    """Raises: CliError."""
    if not reason.strip():
        raise CliError("--reason is empty", remedy="say why in a few words: the log keeps it")


def erase(
    context: typer.Context,
    message_id: Annotated[
        str | None, typer.Argument(metavar="[MESSAGE_ID]", show_default=False, help="One message.")
    ] = None,
    *,
    reason: Reason,
    conversation: Conversation = None,
    agent: AgentId = None,
) -> int:
    """Remove payloads, headers, salts and texts from every byte of the home; recorded.

    Records stay, and every proof holds. What has not ended, or is under a legal hold, is left: exit 1 says which. Other
    nodes erase their own: this says which of them may keep it too.

    Example: eab audit erase desk/order-7 --reason "request 4711"
    """
    of, name = target(message_id, conversation, agent)
    require_reason(reason)
    session = session_of(context)
    try:
        done = change(session, "erase", {"of": of, "name": name, "reason": reason, "by": operator()})
    except KeyError:
        raise unknown_id(f"nothing is recorded of {of} {name!r}", SEARCH_REMEDY) from None
    except ValueError as error:
        raise CliError(str(error), remedy=SEARCH_REMEDY) from None
    left = done["left"]
    if session.json:
        print_json(done)
        return faults.FOUND if left else faults.DONE
    if done["messages"]:
        what = f"{counted(done['payloads'], 'payload')} and {counted(done['texts'], 'text')}"
        echo(f"erased {what} of {counted(done['messages'], 'message')}: no byte of them is left in the home")
    elif not left:
        echo(safe(f"nothing of {of} {name} is kept beside its records: it was erased before, or never kept"))
    if done["elsewhere"]:
        echo(safe(f"other nodes may keep it in their own homes; erase it on each: {', '.join(done['elsewhere'])}"))
    if left:
        print_table(("not erased", "because"), list(_by_reason(left)))
        echo(session.named(_what_now(left)))
        return faults.FOUND
    return faults.DONE


def _by_reason(left: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """A line for each message, or for all that are left for the same reason where these are many."""
    reasons = Counter(left.values())
    for why, count in reasons.items():
        if count > LISTED_MAX:
            yield counted(count, "message"), why
    yield from ((name, why) for name, why in left.items() if reasons[why] <= LISTED_MAX)


def _what_now(left: Mapping[str, str]) -> str:
    held = [why for why in left.values() if why.startswith("legal hold")]
    steps = ["`eab audit hold remove` ends a legal hold"] if held else []
    if len(held) < len(left):
        steps.append("`eab dlq discard ID --reason TEXT` ends a dead letter, or a message that waits")
    return f"{'; '.join(steps)}; then erase again"


def retention(context: typer.Context) -> None:
    """Show for how long content is kept, and what is past its time.

    Reads only. A bus erases what is past its time when it is opened, and every hour.

    Example: eab audit retention
    """
    session = session_of(context)
    home = session.existing_home()
    found: Json = ask_running(home, "retention", timeout=REPORT_SECONDS)
    if found is None:
        from enhanced_agent_bus.cli.reading.retained import retained

        found = retained(home)
    if session.json:
        print_json(found)
        return
    print_pairs(
        [
            ("payloads are kept", _days(found["keep_payloads_days"])),
            ("texts are kept", _days(found["keep_texts_days"])),
            ("no setting under", _days(found["keep_floor_days"])),
            ("payloads due", found["due_payloads"]),
            ("texts due", found["due_texts"]),
            ("past their time, and left", found["left"]),
        ]
    )


def _days(days: float) -> str:
    return f"{days:g} days" if days else "for good"
