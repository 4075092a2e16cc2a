"""A recorded decision asked again, of the constitution that made it: the same answer, or what differs.

Not here: where decisions are kept (cli), and asking many of them (backtest).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from enhanced_agent_bus.admission.supposed import UNDECIDED, Supposed
from enhanced_agent_bus.authoring.backtest import Asking, Laws, Question
from enhanced_agent_bus.authoring.questions import WHY, Decision
from enhanced_agent_bus.authoring.tally import Json, Tally
from enhanced_agent_bus.engines.worker import WorkerEngine


@dataclass(frozen=True, slots=True)
class Reproduced:
    """What came of it; `why` says why nothing did."""

    decision: Decision
    opa: str  # the version that was asked
    found: Supposed | None = None
    difference: dict[str, Json] | None = None
    why: str = ""

    @property
    def same(self) -> bool:
        """Verdict, code, and the reasons with their words are those of the record."""
        return self.found is not None and self.difference is None

    def document(self) -> dict[str, Json]:
        """As `--json` prints it."""
        decision = self.decision
        told = {
            "decision_id": decision.decision_id,
            "message_id": decision.message_id,
            "seq": decision.seq,
            "constitution": decision.constitution,
            "reproduced": None if self.found is None else self.same,
            "verdict": decision.verdict,
            "code": decision.code,
            "reasons": [{"rule": rule, "code": code} for rule, code in decision.reasons],
            "opa": {"recorded": decision.opa, "asked": self.opa},
        }
        if self.why:
            told["why"] = self.why
        if self.difference is not None:
            told["asked_again"] = self.difference["replayed"]
            told["only_words"] = self.difference["only_words"]
        return told


async def reproduce(decision: Decision, kept: Callable[[str], Path | None]) -> Reproduced:
    """Asks once more; `kept` finds the constitution of a digest. Raises: EngineMissing."""
    engine = await WorkerEngine.start(workers=1)
    try:
        opa = str(engine.label.get("opa", ""))
        law = await Laws(engine, kept).find(decision.constitution)
        if isinstance(law, str):
            return Reproduced(decision, opa, why=WHY[law])
        found, _ = await Asking(engine).ask(Question.of(law, decision))
        if found.code in UNDECIDED and decision.code != found.code:
            return Reproduced(decision, opa, why=f"the policy gave no answer just now ({found.code})")
        tally = Tally(law, opa)
        if tally.replayed(decision, found):
            return Reproduced(decision, opa, found)
        return Reproduced(decision, opa, found, tally.differences[0])
    finally:
        await engine.close()
