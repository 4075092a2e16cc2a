"""`eab policy explain`: why a message may travel or not, rule by rule."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from enhanced_agent_bus.cli import faults
from enhanced_agent_bus.cli.policy.author import HIDDEN, at_workbench, place, short, show_step
from enhanced_agent_bus.cli.policy.verdicts import Verdict, rules_that_write, verdict_of
from enhanced_agent_bus.cli.render import compact, echo, print_json, print_table, safe
from enhanced_agent_bus.cli.session import Session, session_of

if TYPE_CHECKING:
    from enhanced_agent_bus.authoring.answers import Explained, RuleAnswer, Step

#: What a decision says beside yes and no.
PARTS: Final = ("hold", "obligations", "remember")


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("explain")(explain)


def explain(
    context: typer.Context,
    message: Annotated[str, typer.Argument(metavar="MESSAGE.json|ID", help="A file, or a recorded decision.")],
    *,
    constitution: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Under this one instead of the home's.")
    ] = None,
    payload: Annotated[bool, typer.Option("--payload", help="Show values of a recorded payload; recorded.")] = False,
) -> int:
    """Say rule by rule why a message may travel or not.

    Shows the first expression that failed in each rule (of several ways to admit, the one that came nearest), the
    values that it saw, and what is held, asked for and remembered.

    MESSAGE.json is an input document, or one line as `eab run` takes it, with the agents of the home.

    Example: eab policy explain message.json --constitution policies
    """
    from enhanced_agent_bus.cli.policy.questions import find_question

    session = session_of(context)
    question = find_question(session, message, constitution, payload=payload)
    limit = _live_limit(session)
    explained = at_workbench(lambda bench: bench.explain(question.constitution, question.document, limit))
    verdict = verdict_of(explained, json.loads(question.document))
    if (problem := verdict.problem) is not None and not problem.rules:
        written = at_workbench(lambda bench: rules_that_write(bench, question.constitution, problem.part))
        verdict = dataclasses.replace(verdict, problem=dataclasses.replace(problem, rules=written))
    hide = question.hide_content
    if session.json:
        print_json(_document(explained, verdict, hide=hide) | {"message": message} | _timing(explained, limit))
    else:
        _show(explained, verdict, hide=hide)
        if late := _late(explained, limit):
            echo(late)
        for note in question.notes:
            echo(f"note: {safe(note)}")
    return faults.DONE if verdict.word != "refuse" else faults.FOUND


def _live_limit(session: Session) -> float:
    """Seconds that the bus of this home gives a decision."""
    from enhanced_agent_bus.settings import load_settings

    return load_settings(session.home).policy.timeout_seconds


def _timing(explained: Explained, limit: float) -> dict[str, Any]:
    return {"took_us": explained.took_us, "timeout_seconds": limit, "too_slow": explained.took_us > limit * 1e6}


def _late(explained: Explained, limit: float) -> str:
    """What becomes of a decision that takes so long, where it would not be waited for."""
    if explained.took_us <= limit * 1e6:
        return ""
    took = f"the decision took {explained.took_us / 1e6:.2g} s here"
    return f"note: {took}; a live one is refused after {limit:g} s (policy.timeout_seconds)"


# --- as JSON -------------------------------------------------------------------------------------------------------


def _document(explained: Explained, verdict: Verdict, *, hide: bool) -> dict[str, Any]:
    decision = explained.decision or {}
    document: dict[str, Any] = {
        "verdict": verdict.word,
        "code": verdict.code,
        "problem": None if verdict.problem is None else verdict.problem.document(hide=hide),
        "allow": explained.allow,
        "decision": explained.decision,
        "rules": [_rule(rule, hide=hide) for rule in explained.rules],
        "broken": None if explained.broken is None else _broken(dataclasses.asdict(explained.broken), hide=hide),
    } | {part: list(decision.get(part) or ()) for part in PARTS}
    if hide:  # texts, keys and values may have been made of the payload
        document["obligations"] = [{"type": item.get("type")} for item in document["obligations"]]
        document["remember"] = [{"scope": item.get("scope")} for item in document["remember"]]
        if explained.decision is not None:
            document["decision"] = {"allow": explained.allow, "hold": document["hold"]}
    return document


def _rule(rule: RuleAnswer, *, hide: bool) -> dict[str, Any]:
    document = dataclasses.asdict(rule)
    if hide:
        _hide(document["failing"])
        for way in document["ways"]:
            _hide(way)
    if document["broken"] is not None:
        document["broken"] = _broken(document["broken"], hide=hide)
    return document


def _broken(document: dict[str, Any], *, hide: bool) -> dict[str, Any]:
    if hide:  # what a built-in says when it fails may quote what it got
        document["message"] = HIDDEN
        _hide(document["at"])
    return document


def _hide(step: dict[str, Any] | None) -> None:
    """Values that may quote a recorded payload stay hidden until they are asked for."""
    if step is None:
        return
    step["values"] = {name: HIDDEN if name in step["private"] else value for name, value in step["values"].items()}
    step["missing"] = [name for name in step["missing"] if name not in step["private"]]
    _hide(step["because"])
    _hide(step["inside"])


# --- for people ----------------------------------------------------------------------------------------------------


def _show(explained: Explained, verdict: Verdict, *, hide: bool) -> None:
    print_table(
        ("rule", "says", "at", "first expression that failed"),
        [(rule.name, _says(rule), _place(rule), rule.failing.text if rule.failing else "") for rule in explained.rules],
    )
    for rule in explained.rules:
        if rule.failing is not None:
            _show_rule(rule, rule.failing, hide=hide)
        elif rule.broken is not None and rule.broken.at is not None:
            echo()
            said = HIDDEN if hide else rule.broken.message
            echo(f"{safe(rule.name)}: {safe(said)}, at {safe(place(rule.broken.at))}")
            show_step(rule.broken.at, indent="  ", hide=hide)
    echo()
    _show_verdict(explained, verdict, hide=hide)


def _says(rule: RuleAnswer) -> str:
    if rule.broken is not None:
        return {"policy_timeout": "too slow", "not_asked": "not asked"}.get(rule.broken.code, "broke")
    return "admits" if rule.admit else "no"


def _place(rule: RuleAnswer) -> str:
    step = rule.failing or (rule.broken.at if rule.broken is not None else None)
    return place(step) if step is not None else f"{rule.file}:{rule.row}" if rule.row else rule.file


def _show_rule(rule: RuleAnswer, failing: Step, *, hide: bool) -> None:
    echo()
    echo(f"{safe(rule.name)}: no, at {safe(place(failing) + _via(failing))}")
    show_step(failing, indent="  ", hide=hide)
    others = [way for way in rule.ways if place(way) != place(failing)]
    if others:
        echo("  other ways to admit ended at")
    for way in others:
        echo(f"    {safe(f'{place(way)}{_via(way)}: {way.text}')}")


def _via(step: Step) -> str:
    return f", in {', '.join(short(name, step) for name in step.via)}" if step.via else ""


def _show_verdict(explained: Explained, verdict: Verdict, *, hide: bool) -> None:
    decision = explained.decision or {}
    word = {"allow": "allowed", "hold": "held", "refuse": f"refused ({verdict.code})"}[verdict.word]
    if explained.decision is None and explained.broken is None:
        word = f"undefined: data.bus.decision has no value for this input, so it is {word}"
    elif verdict.problem is not None:
        word += f": {safe(verdict.problem.text(hide=hide))}"
    elif verdict.why and not hide:
        word += f": {safe(verdict.why)}"
    echo(word)
    if explained.broken is not None and explained.broken.at is not None:
        echo(f"  at {safe(place(explained.broken.at))}")
        show_step(explained.broken.at, indent="    ", hide=hide)
    for wait in verdict.waits:
        echo(f"  waits for {safe(wait)}")
    if explained.allow:
        _show_parts(decision, hide=hide)
    reasons: Sequence[Mapping[str, Any]] = decision.get("reasons") or ()
    if hide and reasons:
        echo("  what the rules say about it may quote the payload: --payload shows it")
    for reason in () if hide else reasons:
        echo(safe(f"  {reason.get('rule')}: {reason.get('message', '')}"))
        if reason.get("remedy"):
            echo(safe(f"    {reason['remedy']}"))


def _show_parts(decision: Mapping[str, Any], *, hide: bool) -> None:
    for item in decision.get("obligations") or ():
        rest = {key: value for key, value in item.items() if key != "type"}
        echo(safe(f"  obligation {item.get('type')}: {HIDDEN if hide else compact(rest)}"))
    for item in decision.get("remember") or ():
        what = HIDDEN if hide else compact({key: value for key, value in item.items() if key != "scope"})
        echo(safe(f"  remembers for the {item.get('scope')}: {what}"))
