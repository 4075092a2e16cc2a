"""What the independent checker makes of several nodes: real traffic is fine, and what it must find it finds."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from enhanced_agent_bus import Message, Retry
from tests import history_checker
from tests.acceptance.test_nodes import nodes, seen
from tests.developer import log, until

Record = dict[str, Any]


async def lived(folder: Path) -> tuple[list[list[Record]], list[Record]]:
    """The logs of two nodes and the notes of a program: messages that ran, failed, were replayed on either side."""
    notes: list[Record] = []
    fail = {"again-a", "again-b"}

    def handler(home: Path) -> Callable[[Message], Any]:
        node = log(home)[0]["node"]

        async def handle(message: Message) -> dict[str, Any] | None:
            seen_there = {"digest": message.digest, "constitution": message.constitution, "records": len(log(home))}
            what = message.id.rpartition("/")[2]
            notes.append({"ran": message.id, "what": what, "attempt": message.attempt, "node": node, **seen_there})
            if what in fail:
                fail.remove(what)
                raise ValueError(what)
            return {"booked": 1} if message.type == "query" else None

        return handle

    where = {"url": f"memory://{folder.name}"}
    async with nodes(folder, where, "a", "b") as (a, b):
        desk = await a.register("desk", tenant="acme")
        await b.register("booker", handler(folder / "b"), tenant="acme", retry=Retry.immediate(1))
        await seen(a, "booker")
        node = log(folder / "a")[0]["node"]
        for name in ("plain", "again-a", "again-b"):
            receipt = await desk.send("booker", id=name)
            notes.append({"told": "accepted", "id": receipt.message_id, "digest": receipt.digest, "node": node})
            outcome = await receipt.outcome(timeout=10)
            if outcome.state == "dead_lettered":
                assert (await (a if name == "again-a" else b).replay(receipt.message_id)).ok
                await until(lambda: not a.status().accounting["dead_lettered"])
        await desk.request("booker", timeout=10)
        await a.wait_idle(timeout=10)
        await b.wait_idle(timeout=10)
        await until(lambda: not b.status().accounting["handed_over"])
    return [log(folder / "a"), log(folder / "b")], notes


def found(logs: list[list[Record]], notes: list[Record]) -> str:
    """What the checker says, in one text."""
    lines = [[json.dumps(record) for record in one] for one in logs]
    return "\n".join(history_checker.check_nodes(lines, map(json.dumps, notes), all_ended=True))


def one(records: list[Record], **fields: object) -> Record:
    """The first record with these values."""
    return next(record for record in records if all(record.get(key) == value for key, value in fields.items()))


def test_the_history_of_two_nodes_is_judged(tmp_path: Path) -> None:
    """Nothing is lost, and nothing runs without an allow where it ran and where it was sent; each lie is a line."""
    logs, notes = asyncio.run(lived(tmp_path))
    assert found(logs, notes) == ""
    files = [tmp_path / name for name in ("a.jsonl", "b.jsonl", "notes.jsonl")]
    for file, records in zip(files, (*logs, notes), strict=True):
        file.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    words = [sys.executable, "-I", history_checker.__file__, *map(str, files), "--all-ended"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def lie(change: Callable[[list[Record], list[Record]], None]) -> str:
        copies = json.loads(json.dumps(logs))
        change(*copies)
        return found(copies, notes)

    def refused(a: list[Record], _b: list[Record]) -> None:
        one(a, kind="decision", message_id="desk/plain")["verdict"] = "hold"

    def other_bytes(_a: list[Record], b: list[Record]) -> None:
        one(b, kind="decision", message_id="desk/plain")["digest"] = "0" * 64

    def no_ticket(_a: list[Record], b: list[Record]) -> None:
        del one(b, kind="decision", message_id="desk/plain")["ticket"]

    def other_end(a: list[Record], _b: list[Record]) -> None:
        one(a, kind="outcome", message_id="desk/plain")["state"] = "expired"

    for change in (refused, other_bytes, no_ticket):
        assert "desk/plain was taken in without an allow on its sender's node" in lie(change)
    assert "desk/plain is expired, and" in lie(other_end)
    assert "nobody gave the log of" in found(logs[:1], notes)
    never = [note for note in notes if note.get("ran") != "desk/plain"]
    assert "desk/plain is delivered in attempt 1, which never ran" in found(logs, never)
