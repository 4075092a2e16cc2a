"""What came out of asking recorded decisions again: counts with examples, bounded whatever comes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from enhanced_agent_bus.admission.supposed import ERRORS, Supposed
from enhanced_agent_bus.authoring.questions import WHY, Decision, Law, Unasked

Json: TypeAlias = Any
SAMPLE: Final = 5  # examples of each kind
DIFFERENCES: Final = 20  # that are shown whole
NAMES_MAX: Final = 10_000  # rules or agents that are counted one by one; further ones together
OTHERS: Final = "(others)"


@dataclass(slots=True)
class Count:
    """How many, and the first few of them by seq."""

    count: int = 0
    sample: list[tuple[int, str]] = field(default_factory=list)

    def add(self, seq: int, message_id: str) -> None:
        self.count += 1
        if len(self.sample) < SAMPLE or seq < self.sample[-1][0]:
            self.sample = sorted([*self.sample, (seq, message_id)])[:SAMPLE]

    def document(self) -> dict[str, Json]:
        return {"count": self.count, "sample": [message_id for _, message_id in self.sample]}


class Counts:
    """Counts by names, at most so many of them."""

    def __init__(self, *columns: str) -> None:
        self._columns = columns
        self._counts: dict[tuple[str, ...], Count] = {}

    def add(self, names: tuple[str, ...], seq: int, message_id: str) -> None:
        count = self._counts.get(names)
        if count is None:
            if len(self._counts) >= NAMES_MAX:
                names = (OTHERS, *names[1:])
            count = self._counts.setdefault(names, Count())
        count.add(seq, message_id)

    def documents(self) -> list[dict[str, Json]]:
        """The largest first."""
        ordered = sorted(self._counts.items(), key=lambda item: (-item[1].count, item[0]))
        return [{**dict(zip(self._columns, names, strict=True)), **count.document()} for names, count in ordered]


class Tally:
    """What became of recorded decisions."""

    def __init__(self, new: Law, opa: str) -> None:
        self.new = new
        self.opa = opa  # the version that is asked
        self.decisions = 0
        self.again = 0  # came out as they are recorded
        self.same = 0  # and have the same verdict under the candidate
        self.evaluated = 0
        self.differences: list[dict[str, Json]] = []
        self.different = 0
        self._unasked = Counts("why")
        self._flips = Counts("from", "to")
        self._rules = Counts("rule", "from", "to")
        self._agents = Counts("agent", "from", "to")
        self._tenants = Counts("tenant", "from", "to")
        self._errors = Counts("code")
        self._other_reasons = Count()
        self._other_facts = Count()
        self._flipped: dict[str, int] = {}

    def unasked(self, one: Unasked) -> None:
        """A decision that cannot be asked again."""
        self.decisions += 1
        self._unasked.add((one.why,), one.seq, one.message_id)

    def replayed(self, decision: Decision, found: Supposed) -> bool:
        """True when a decision came out as it is recorded."""
        said = tuple((reason.rule, reason.code) for reason in found.reasons)
        same = (decision.verdict, decision.code, decision.reasons) == (found.verdict, found.code, said)
        if same and _same_words(decision, found):
            return True
        self.decisions += 1
        self.different += 1
        if len(self.differences) < DIFFERENCES:
            self.differences.append(
                {
                    "message_id": decision.message_id,
                    "decision_id": decision.decision_id,
                    "seq": decision.seq,
                    "constitution": decision.constitution,
                    "opa": decision.opa,
                    "recorded": _verdict(decision.verdict, decision.code, decision.reasons),
                    "replayed": _verdict(found.verdict, found.code, said),
                    "only_words": same,
                }
            )
        return False

    def compared(self, decision: Decision, before: Supposed, after: Supposed, *, other_facts: bool) -> None:
        """What a decision would have been under the candidate, and whether it would have remembered something else."""
        self.decisions += 1
        self.again += 1
        seq, message_id = decision.seq, decision.message_id
        if other_facts:
            self._other_facts.add(seq, message_id)
        if after.code in ERRORS:
            self._errors.add((str(after.code),), seq, message_id)
        if before.verdict == after.verdict:
            self.same += 1
            if _rules_and_codes(before) != _rules_and_codes(after):
                self._other_reasons.add(seq, message_id)
            return
        flip = (before.verdict, after.verdict)
        self._flipped[after.verdict] = self._flipped.get(after.verdict, 0) + 1
        self._flips.add(flip, seq, message_id)
        self._agents.add((decision.sender, *flip), seq, message_id)
        self._tenants.add((decision.tenant, *flip), seq, message_id)
        blamed = (after if after.verdict != "allow" else before).reasons
        for rule in sorted({reason.rule or reason.code for reason in blamed}):
            self._rules.add((rule, *flip), seq, message_id)

    @property
    def flipped(self) -> int:
        """Verdicts that would have been others."""
        return self.again - self.same

    def became(self, verdict: str) -> int:
        """How many would have got this verdict that did not."""
        return self._flipped.get(verdict, 0)

    @property
    def conclusive(self) -> bool:
        """Whether the flips mean anything: something was asked, and all of it came out as it is recorded."""
        return self.again > 0 and not self.different

    def document(self) -> dict[str, Json]:
        """All of it, as `--json` prints it."""
        unasked = self._unasked.documents()
        return {
            "decisions": self.decisions,
            "replayed": self.again,
            "not_replayed": [{**one, "means": WHY[one["why"]]} for one in unasked],
            "differences": {"count": self.different, "sample": self.differences},
            "conclusive": self.conclusive,
            "same": self.same,
            "flipped": self.flipped,
            "flips": self._flips.documents(),
            "by_rule": self._rules.documents(),
            "by_agent": self._agents.documents(),
            "by_tenant": self._tenants.documents(),
            "other_reasons": self._other_reasons.document(),
            "other_facts": self._other_facts.document(),
            "errors": self._errors.documents(),
            "evaluated": self.evaluated,
            "opa": self.opa,
        }


def _same_words(decision: Decision, found: Supposed) -> bool:
    """Whether the rules say the same; what the bus itself says may be said better by a later version."""
    if decision.words is None:
        return True
    said = zip(decision.words, found.reasons, strict=False)
    return all(words == (reason.message, reason.remedy) for words, reason in said if reason.rule)


def _rules_and_codes(supposed: Supposed) -> set[tuple[str, str]]:
    return {(reason.rule, reason.code) for reason in supposed.reasons}


def _verdict(verdict: str, code: str | None, reasons: Sequence[tuple[str, str]]) -> dict[str, Json]:
    return {"verdict": verdict, "code": code, "reasons": [{"rule": rule, "code": said} for rule, said in reasons]}
