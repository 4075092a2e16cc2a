"""The checker of histories: what it must find. A checker that finds nothing proves nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import history_checker

Records = list[dict[str, Any]]


def decided(n: int, *, verdict: str = "allow", attempt: int = 1, why: str = "send", what: int = 1) -> dict[str, Any]:
    """Decision `n` of desk's, on message `what`."""
    return {
        "kind": "decision", "message_id": f"desk/{what}", "sender": "desk", "sender_n": n, "digest": f"d{what}",
        "decision_id": f"desk/{what}#{n}", "verdict": verdict, "attempt": attempt, "why": why, "constitution": "c",
        "cause": None,
    }  # fmt: skip


def ended(n: int, state: str, *, attempt: int = 1, what: int = 1, code: str | None = None) -> dict[str, Any]:
    """An outcome on decision `n`."""
    ids = {"message_id": f"desk/{what}", "decision_id": f"desk/{what}#{n}"}
    return {"kind": "outcome", "state": state, "attempt": attempt, "code": code, **ids}


def ran(records: int, *, attempt: int = 1, what: int = 1, effect: str = "booked") -> dict[str, Any]:
    """The run of a handler that saw so many records."""
    seen = {"attempt": attempt, "digest": f"d{what}", "constitution": "c", "records": records}
    return {"ran": f"desk/{what}", "what": effect, **seen}


TOLD = {"told": "accepted", "id": "desk/1", "digest": "d1"}
COUNTS = dict.fromkeys(("accepted", *history_checker.WAITING, "held", *history_checker.ENDS), 0)


def found(records: Records, notes: Records, accounting: dict[str, int] | None = None, **options: bool) -> str:
    """What the checker says, in one text."""
    log = [json.dumps({"seq": seq, **record}) for seq, record in enumerate(records)]
    return "\n".join(history_checker.check(log, map(json.dumps, notes), accounting, **options))


def test_a_good_history_is_good() -> None:
    """A message that failed once, one that was held, one refused, and a dead letter that was replayed."""
    records = [
        decided(0), ended(0, "failed"), decided(1, attempt=2, why="retry"), ended(1, "delivered", attempt=2),
        decided(2, what=2, verdict="hold"), decided(3, what=3, verdict="refuse"),
        decided(4, what=4), ended(4, "dead_lettered", what=4), decided(5, what=4, attempt=2, why="replay"),
        ended(5, "delivered", what=4, attempt=2),
    ]  # fmt: skip
    notes = [
        TOLD, ran(1), ran(3, attempt=2), {"told": "held", "id": "desk/2", "digest": "d2"},
        ran(7, what=4, effect="other"), ran(9, what=4, attempt=2, effect="other"),
    ]  # fmt: skip
    assert found(records, notes, COUNTS | {"accepted": 3, "held": 1, "delivered": 2}) == ""
    assert "has not ended: held" in found(records, notes, all_ended=True)


GOOD: Records = [decided(0), ended(0, "delivered")]
BAD: dict[str, tuple[Records, Records]] = {
    "ran (attempt 1) with no decision before it": (GOOD, [ran(0)]),
    "ran (attempt 1) with no decision before": ([decided(0, verdict="refuse")], [ran(1)]),
    "on a decision that says hold": ([decided(0, verdict="hold")], [ran(1)]),
    "ran twice on desk/1#0": (GOOD, [ran(1), ran(1)]),
    "ran with attempt 2; its allow has 1": (GOOD, [ran(1), ran(1, attempt=2)]),
    "9 records could be read as desk/1 ran, 2 are left": (GOOD, [ran(9)]),
    "ran attempt 1 after 2": (
        [decided(0), ended(0, "failed"), decided(1, attempt=2, why="retry"), ended(1, "delivered", attempt=2)],
        [ran(3, attempt=2), ran(1)],
    ),
    "booked was done as desk/1 and as desk/2": ([decided(0), decided(1, what=2)], [ran(1), ran(2, what=2)]),
    "desk/1 was accepted and is not in the log": ([], [TOLD]),
    "desk/1 was accepted with another digest": (GOOD, [TOLD | {"digest": "d9"}, ran(1)]),
    "desk/1 was accepted, and the log says hold": ([decided(0, verdict="hold")], [TOLD]),
    "desk/1 is delivered in attempt 1, which never ran": (GOOD, []),
    "record 3 stands where 2 belongs": ([*GOOD, {"kind": "closed", "seq": 3}], [ran(1)]),
    "desk counted from 0 to 2": ([decided(0), decided(2, what=2)], []),
    "a second decision desk/1#0": ([decided(0), decided(0, why="retry")], []),
    "desk/1 was opened before": ([decided(0), decided(1)], []),
    "is delivered and is decided again (retry)": ([*GOOD, decided(1, attempt=2, why="retry")], [ran(1)]),
    "is at attempt 1, and had 1": ([decided(0), ended(0, "failed"), decided(1, why="retry")], []),
    "another digest than it had first": ([decided(0), decided(1, why="restart") | {"digest": "other"}], []),
    "no decision desk/1#7 on desk/1": ([decided(0), ended(7, "delivered")], []),
    "ends as delivered and had ended as delivered": ([*GOOD, ended(0, "delivered")], [ran(1)]),
    "delivered on a decision that says hold": ([decided(0, verdict="hold"), ended(0, "delivered")], [ran(1)]),
}


@pytest.mark.parametrize("words", BAD)
def test_what_is_wrong_is_found(words: str) -> None:
    """Each rule has a history that breaks it."""
    assert words in found(*BAD[words])


def test_what_was_acknowledged_and_taken_back_is_found() -> None:
    """Whoever was told `accepted` is not told later that nothing was recorded."""
    records = [decided(0), ended(0, "discarded", attempt=0, code="audit_unavailable")]
    assert "is discarded as not recorded" in found(records, [TOLD], all_ended=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"delivered": 2}, "does not add up"), ({"delivered": 0, "parked": 1}, "'delivered': (0, 1)")],
)
def test_accounting_is_recomputed(change: dict[str, int], words: str) -> None:
    """What status says is held against the records alone."""
    assert words in found(GOOD, [ran(1)], COUNTS | {"accepted": 1, "delivered": 1} | change)


@pytest.mark.parametrize(
    ("log", "status", "says"),
    [("".join, 0, ""), (lambda lines: lines[1], 1, "stands where 0 belongs"), (lambda _: "{", 2, "")],
    ids=["good", "bad", "unreadable"],
)
def test_it_runs_alone(tmp_path: Path, log: Callable[[list[str]], str], status: int, says: str) -> None:
    """As a program, without the package, it says what it found with its exit status."""
    lines = [json.dumps({"seq": seq, **record}) + "\n" for seq, record in enumerate(GOOD)]
    (tmp_path / "log").write_text(log(lines))
    (tmp_path / "notes").write_text(json.dumps(ran(1)))
    program = [sys.executable, "-I", "-S", str(history_checker.__file__), "log", "notes", "--all-ended"]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert says in done.stdout
