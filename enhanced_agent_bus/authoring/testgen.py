"""A recorded decision as a Rego test that passes in the constitution that made it.

It asks the recorded input and expects what was answered: whether it is allowed, by which rules it is not, who has to
approve. In the words of a rule, in facts to remember and in obligations it lets the policy change.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from enhanced_agent_bus.admission.answer import ruling
from enhanced_agent_bus.admission.supposed import suppose
from enhanced_agent_bus.authoring.questions import Decision
from enhanced_agent_bus.engines.worker import WorkerEngine
from enhanced_agent_bus.verdict import Answer

Json: TypeAlias = Any
MAIN_PACKAGE: Final = "bus.main_test"
NAME_CHARS_MAX: Final = 60


class NoTest(ValueError):
    """No test can be made of this decision; the message says why, `remedy` what to do."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Generated:
    """A test file; `place` is where it belongs in the constitution."""

    package: str
    name: str
    place: str
    text: str


async def generate(engine: WorkerEngine, path: Path, decision: Decision, rule: str | None = None) -> Generated:
    """The test of the whole decision, or of what one rule said.

    Raises: NoTest; ConstitutionRejected, when the constitution cannot be used.
    """
    question = decision.question(decision.document)
    explained = await engine.explain(path, question)
    _require_the_same(decision, explained)
    name = _name(decision)
    if rule is None:
        package, place = MAIN_PACKAGE, f"bus/{name}_test.rego"
        body = list(_of_decision(name, explained["decision"]))
    else:
        package, place = f"bus.rules.{rule}_test", f"bus/rules/{rule}/{name}_test.rego"
        body = list(_of_rule(name, rule, explained["rules"]))
    said = decision.code or decision.verdict
    text = "\n".join(
        [
            f"package {package}",
            "",
            f"# The decision {decision.decision_id}, recorded as seq {decision.seq}: {said},",
            f"# under the constitution {decision.constitution}.",
            f"test_{name} if {{",
            *body,
            "}",
            "",
            f"{name} := {literal(question)}",
            "",
        ]
    )
    return Generated(package, f"test_{name}", place, await engine.format(text))


def _require_the_same(decision: Decision, explained: Json) -> None:
    """Raises: NoTest, when the policy does not answer as it did, or in no way that a test can expect."""
    if explained.get("error"):
        raise NoTest(
            f"a built-in failed while {decision.decision_id} was decided, and no test can expect that",
            "stock `opa test` drops the rule instead: guard the built-in that `eab policy explain` shows",
        )
    document = explained["decision"]
    answer = Answer(None, b"" if document is None else json.dumps(document).encode())
    found = suppose(decision.document, ruling(answer))
    said = tuple((reason.rule, reason.code) for reason in found.reasons)
    if (decision.verdict, decision.code, decision.reasons) != (found.verdict, found.code, said):
        raise NoTest(
            f"{decision.decision_id} is recorded as {decision.code or decision.verdict}, and asked again it is "
            f"{found.code or found.verdict}",
            "`eab policy backtest` tells whether that is so for others, `eab audit verify` whether the log is whole",
        )


def _of_decision(name: str, document: Json) -> Iterator[str]:
    """What the whole decision has to be; only of what it says, since a test may not ask for what is never there."""
    if document is None:
        yield f"\tnot data.bus.decision with input as {name}"
        return
    yield f"\tdecision := data.bus.decision with input as {name}"
    yield f"\tdecision.allow == {_json(document.get('allow'))}"
    reasons = document.get("reasons")
    if isinstance(reasons, list):
        if all(isinstance(reason, dict) and "code" in reason for reason in reasons):
            pairs = _set([_json([reason["rule"], reason["code"]]) for reason in reasons])
            yield f"\t{{[reason.rule, reason.code] | some reason in decision.reasons}} == {pairs}"
        else:
            rules = _set([_json(reason["rule"]) for reason in reasons])
            yield f"\t{{reason.rule | some reason in decision.reasons}} == {rules}"
    holds = document.get("hold")
    if isinstance(holds, list):
        yield f"\t{{hold.rule | some hold in decision.hold}} == {_set([_json(hold['rule']) for hold in holds])}"


def _of_rule(name: str, rule: str, answers: Sequence[Json]) -> Iterator[str]:
    answer = next((one for one in answers if one["name"] == rule), None)
    if answer is None:
        listed = ", ".join(one["name"] for one in answers)
        raise NoTest(f"the constitution has no rule {rule}", f"its rules are {listed}")
    yield f"\tdata.bus.rules.{rule}.admit == {_json(answer['admit'])} with input as {name}"
    if not answer["admit"] and answer["code"] != rule:  # a code of its own
        yield f"\tdata.bus.rules.{rule}.code == {_json(answer['code'])} with input as {name}"


def _set(texts: Sequence[str]) -> str:
    return "{" + ", ".join(sorted(set(texts))) + "}" if texts else "set()"


def _name(decision: Decision) -> str:
    """One that no other decision has: the end of a decision's id is its time."""
    message, _, instant = decision.decision_id.rpartition("#")
    slug = re.sub(r"[^a-z0-9]+", "_", message.lower()).strip("_")[:NAME_CHARS_MAX]
    return f"recorded_{slug}_{instant}"


def _json(value: Json) -> str:
    """JSON is Rego; ASCII only, so that nothing in a message can drive a terminal or an editor."""
    return json.dumps(value)


class _Number(str):
    """As it was written: `1.0` and `1e22` are not other numbers, but they print otherwise."""

    __slots__ = ()


def literal(document: bytes) -> str:
    """A JSON document as Rego, an entry a line."""
    return _literal(json.loads(document, parse_float=_Number, parse_int=_Number), "")


def _literal(value: Json, indent: str) -> str:
    if isinstance(value, _Number):
        return str(value)
    if isinstance(value, dict) and value:
        lines = [f"{indent}\t{_json(key)}: {_literal(item, indent + chr(9))},\n" for key, item in value.items()]
        return "{\n" + "".join(lines) + indent + "}"
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        lines = [f"{indent}\t{_literal(item, indent + chr(9))},\n" for item in value]
        return "[\n" + "".join(lines) + indent + "]"
    if isinstance(value, list):
        return "[" + ", ".join(_literal(item, indent) for item in value) + "]"
    return _json(value)
