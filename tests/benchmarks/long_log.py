"""A home with a long log: `python -m tests.benchmarks.long_log make HOME RECORDS`, then `... measure HOME`.

The rows are those of messages that are decided, delivered and now and then refused, written by the ledger's own writer,
many to a commit. `measure` prints how long look-ups and searches take, and how much memory they need. No test runs it:
ten million records are some 15 GB.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from enhanced_agent_bus.cli.reading.home import BY_SEQ, OF_MESSAGE, ROW_OF_MESSAGE, database
from enhanced_agent_bus.cli.render import echo
from enhanced_agent_bus.clock import SystemClock
from enhanced_agent_bus.ledger import rows
from enhanced_agent_bus.ledger.home import open_home
from enhanced_agent_bus.ledger.store import Queued, Store
from enhanced_agent_bus.message import Envelope
from enhanced_agent_bus.ports import Entry, Move, Opening

BATCH_MESSAGES: Final = 5000
AGENTS: Final = 1000
TENANTS: Final = 10
REFUSED_EVERY: Final = 50
NAMED_EVERY: Final = 10
LOOK_UPS: Final = 1000
TOLD_SECONDS: Final = 30
DIGEST: Final = hashlib.sha256(b"a constitution").hexdigest()
ENGINE: Final = {"name": "embedded", "opa": "1.22.2", "capabilities": DIGEST}


class Clock(SystemClock):
    """Put forward by hand: two records a millisecond, so that a log made in minutes tells of hours."""

    def __init__(self, start_us: int) -> None:
        self.at_us = start_us

    def now_us(self) -> int:
        return self.at_us


class Maker:
    """Makes messages and their records, the same for the same number."""

    def __init__(self, start_us: int) -> None:
        self._start_us = start_us
        self._body = b'{"trip":"%s"}' % (b"x" * 60)
        self._salt = bytes(32)
        self._commitment = hashlib.sha256(self._salt + self._body).hexdigest()
        self._random = random.Random(7)

    def name(self, number: int) -> str:
        """As the bus makes ids, ordered by time; some as callers give them, behind the sender."""
        if number % NAMED_EVERY == 0:
            return f"agent-{number % AGENTS:04d}/order-{number}"
        at_ms = (self._start_us + number * 1000) // 1000
        return f"{at_ms >> 16:08x}-{at_ms & 0xFFFF:04x}-7{number & 0xFFF:03x}-8{self._random.getrandbits(60):015x}"

    def decision(self, number: int, seq: int) -> tuple[Entry, Move | None]:
        """The decision on a message, and what becomes of the message."""
        name, sender, recipient = self.name(number), f"agent-{number % AGENTS:04d}", f"agent-{number * 7 % AGENTS:04d}"
        tenant = f"tenant-{number % TENANTS}"
        decision_id, refused = f"{name}#{self._start_us + number:x}", number % REFUSED_EVERY == 0
        envelope = Envelope(
            name, "command", 1, sender, tenant, recipient, tenant, None, name, None, 0, 0, 0, {}, self._body,
            self._salt, self._commitment, None, self._commitment,
        )  # fmt: skip
        party = {"id": sender, "tenant": tenant, "roles": ["planner"], "capabilities": []}
        fields: dict[str, Any] = {
            "message_id": name, "sender_n": number // AGENTS, "digest": envelope.digest, "conversation": name,
            "cause": None, "sender": sender, "tenant": tenant, "recipient": recipient, "recipient_tenant": tenant,
            "topic": None, "type": "command", "priority": 1, "hops": 0, "attempt": 1, "created_us": 0, "expires_us": 0,
            "verdict": "refuse" if refused else "allow", "code": "policy_denied" if refused else None,
            "reasons": [{"rule": "daily_budget", "code": "over_day_budget"}] if refused else [],
            "decision_id": decision_id, "constitution": DIGEST, "revision": 3, "engine": ENGINE, "cached_from": None,
            "why": "send", "previous": None,
            "input": {"message": {"id": name, "type": "command", "priority": 1}, "sender": party, "recipient": party},
            "payload": envelope.commitment, "headers": None, "eval_us": 290,
        }  # fmt: skip
        opening = None if refused else Opening(envelope, "queued", decision_id, b"", b"", 0)
        entry = Entry("decision", fields, name, opening=opening)
        if refused:
            return entry, None
        return entry, Move(seq, "queued", "delivered", 1, 0, 0, None, None, decision_id, b"", 0, None, forget=False)


def make(home: Path, records: int) -> None:
    """Writes so many records, and now and then how far it is."""
    start_us = 1_790_000_000_000_000
    clock, place = Clock(start_us), open_home(home)
    store = Store.open(place, clock)
    maker, done, told = Maker(start_us), 0, time.monotonic()
    while store.head.size < records:
        batch: list[Queued] = []
        seq = store.head.size
        for number in range(done, done + BATCH_MESSAGES):
            entry, move = maker.decision(number, seq)
            batch.append((entry, rows.rest_of_record(entry), False))
            seq += 1
            if move is not None:
                fields: dict[str, Any] = {
                    "message_id": entry.message_id,
                    "decision_id": move.decision_id,
                    "state": "delivered",
                }
                fields |= {"code": None, "attempt": 1, "duration_us": 42, "error": None}
                outcome = Entry("outcome", fields, entry.message_id, move=move)
                batch.append((outcome, rows.rest_of_record(outcome), False))
                seq += 1
        done += BATCH_MESSAGES
        clock.at_us = start_us + done * 1000
        store.write(batch, checkpoint=True)
        store.file_checkpoint()
        if time.monotonic() - told > TOLD_SECONDS:
            told = time.monotonic()
            echo(f"{store.head.size:,} records")
    size = store.head.size
    store.close()
    place.release()
    echo(f"{size:,} records, {(home / 'bus.db').stat().st_size / 1e9:.1f} GB")


def timed(home: Path, query: str, values: list[object]) -> list[float]:
    """Milliseconds of each look-up, its connection included, as a command makes one."""
    took = []
    for value in values:
        start = time.perf_counter()
        with database(home) as connection:
            found = connection.execute(query, (value,)).fetchall()
        took.append((time.perf_counter() - start) * 1000)
        assert found, value
    return sorted(took)


def measure(home: Path) -> None:
    """Look-ups by the package's own SQL, then commands as processes of their own."""
    draw = random.Random(3)
    with database(home) as connection:
        (size,) = connection.execute("SELECT size FROM head").fetchone()
        seqs = [draw.randrange(size) for _ in range(LOOK_UPS)]
        bodies = [connection.execute(BY_SEQ, (seq,)).fetchone()[0] for seq in seqs]
    names = [name for body in bodies if (name := json.loads(body).get("message_id"))]
    delivered = [r["message_id"] for r in map(json.loads, bodies) if r.get("state") == "delivered"]
    echo(f"{size:,} records, {(home / 'bus.db').stat().st_size / 1e9:.1f} GB")
    for what, query, values in (
        ("by seq", BY_SEQ, seqs),
        ("by message or decision", OF_MESSAGE, names),
        ("state of a message", ROW_OF_MESSAGE, delivered),
    ):
        took = timed(home, query, list(values))
        p50, p99 = statistics.median(took), took[int(len(took) * 0.99)]
        echo(f"{what}: p50 {p50:.2f} ms, p99 {p99:.2f} ms, max {took[-1]:.2f} ms ({len(took)} look-ups)")
    name = draw.choice(delivered)
    for words in (
        ["audit", "show", name],
        ["audit", "search", f"message:{name}"],
        ["audit", "search", "verdict:refuse", "agent:agent-0050", "-n", "5"],
        ["audit", "search", "--count", "verdict:refuse agent:agent-0050"],
        ["audit", "population", "verdict:refuse"],
        ["audit", "sample", "verdict:refuse", "--n", "40", "--seed", "7"],
        ["audit", "export", "-o", "/dev/null"],
    ):
        command(home, size, words)


def command(home: Path, size: int, words: list[str]) -> None:
    """One command: seconds, records a second, and the most memory that it had."""
    start, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    run = [sys.executable, "-c", CHILD, "--home", str(home), *words]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    took, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    resident = done.stderr.splitlines()[-1] if done.stderr else "?"
    echo(f"{' '.join(words)}: exit {done.returncode}, {took:.2f} s ({cpu:.2f} s of a core), {resident}")
    echo(f"    {size / took:,.0f} records/s; {len(done.stdout.splitlines())} lines")


CHILD: Final = """
import resource, sys
from enhanced_agent_bus.cli.app import run_command
status = run_command(sys.argv[1:])
print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB", file=sys.stderr)
sys.exit(status)
"""


def main() -> None:
    """Makes or measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["make", "measure"])
    parser.add_argument("home", type=Path)
    parser.add_argument("records", type=int, nargs="?", default=1_000_000)
    chosen = parser.parse_args()
    if chosen.what == "make":
        make(chosen.home, chosen.records)
    else:
        measure(chosen.home)


if __name__ == "__main__":
    main()
