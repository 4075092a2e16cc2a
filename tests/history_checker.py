"""An independent checker of a history: a log that was exported, or those of several nodes, against what its user saw.

`python history_checker.py LOG... NOTES [--status FILE] [--all-ended]`. LOG is what `eab audit export` wrote; FILE what
`eab --json status` printed when nothing was under way. NOTES are JSON lines that the user's program wrote, outside the
bus, each in the instant it says:

    {"told": "accepted" or "held", "id", "digest"}                                   a receipt that it was given
    {"ran": "<message id>", "what", "attempt", "digest", "constitution", "records"}  a handler that begins

With several logs each note has a `node` too, as the log's records have it: where it was told, or ran.

`what` is what the run does in the world, and `records` how many records anybody could read in the log at that moment.

It imports nothing but Python's standard library and knows the log by its documentation alone, so that it shares no
mistake with what it judges. What it does not look at: bytes, hashes and signatures, which `eab audit verify` does.
Exit status: 0 nothing wrong found, 1 something found (a line each), 2 it cannot be read.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ENDS = ("delivered", "refused", "expired", "dead_lettered", "discarded")
WAITING = ("queued", "in_flight", "retrying", "parked", "handed_over")  # one sum: records do not tell them apart
TOLD = {"accepted": "allow", "held": "hold"}  # receipt to verdict
MAY_RISE = ("dead_lettered", "discarded")  # by a replay, or sent again after a doubt

Record = Mapping[str, Any]


class Life:
    """One message, as its records tell it."""

    def __init__(self, first: Record) -> None:
        self.first = first
        self.decisions: list[Record] = []
        self.state = ""
        self.code: str | None = None
        self.attempts = 0  # the highest that an outcome has
        self.delivered: list[Record] = []


class History:
    """Reads a log from its first record on; `found` has a line for each thing that is wrong."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.lives: dict[str, Life] = {}
        self._size = 0
        self._decided: dict[str, Record] = {}  # by decision id
        self._counts: dict[str, int] = {}  # sender to its newest sender_n
        self.name = ""  # <bus>/<node>
        self.received: list[Record] = []  # what other nodes had admitted, and was taken in
        self.ends_elsewhere: list[Record] = []  # outcomes because of another node's record
        self.by_seq: dict[int, Record] = {}  # decisions and outcomes

    def read(self, lines: Iterable[str | bytes]) -> None:
        """Raises: ValueError, KeyError, for what is no record."""
        for line in lines:
            record = json.loads(line)
            if record["seq"] != self._size:
                self.found.append(f"record {record['seq']} stands where {self._size} belongs")
            self._size += 1
            self.name = self.name or f"{record.get('bus')}/{record.get('node')}"
            if record["kind"] in ("decision", "outcome"):
                self.by_seq[record["seq"]] = record
            if record["kind"] == "decision":
                self._decision(record)
            elif record["kind"] == "outcome":
                self._outcome(record)

    def _decision(self, record: Record) -> None:
        message_id, seq = record["message_id"], record["seq"]
        last = self._counts.get(record["sender"], -1)
        if record["sender_n"] not in (last, last + 1):
            self.found.append(f"seq {seq}: {record['sender']} counted from {last} to {record['sender_n']}")
        self._counts[record["sender"]] = record["sender_n"]
        if record["decision_id"] in self._decided:
            self.found.append(f"seq {seq}: a second decision {record['decision_id']}")
        self._decided[record["decision_id"]] = record
        life = self.lives.get(message_id)
        if record["verdict"] == "refuse":
            return  # ends nothing by itself: an outcome does
        if record["why"] == "receive":
            self.received.append(record)
        if life is None:
            life = self.lives[message_id] = Life(record)
        elif record["why"] == "send" or (record["why"] == "receive" and life.state not in MAY_RISE):
            self.found.append(f"seq {seq}: {message_id} was opened before")
        elif life.state in ENDS and not (life.state in MAY_RISE and record["why"] in ("replay", "receive")):
            self.found.append(f"seq {seq}: {message_id} is {life.state} and is decided again ({record['why']})")
        if record["digest"] != life.first["digest"]:
            self.found.append(f"seq {seq}: {message_id} has another digest than it had first")
        if record["attempt"] <= life.attempts:
            self.found.append(f"seq {seq}: {message_id} is at attempt {record['attempt']}, and had {life.attempts}")
        life.decisions.append(record)
        life.state = "held" if record["verdict"] == "hold" else "waiting"

    def _outcome(self, record: Record) -> None:
        message_id, seq, state = record["message_id"], record["seq"], record["state"]
        life, decision = self.lives.get(message_id), self._decided.get(record["decision_id"])
        if life is None or decision is None or decision["message_id"] != message_id:
            self.found.append(f"seq {seq}: {state}, and no decision {record['decision_id']} on {message_id}")
            return
        risen = life.state == "dead_lettered" and record.get("by") is not None  # replayed on the other node
        if life.state in ENDS and not risen:
            self.found.append(f"seq {seq}: {message_id} ends as {state} and had ended as {life.state}")
        if state in ("delivered", "failed") and decision["verdict"] != "allow":
            self.found.append(f"seq {seq}: {state} on a decision that says {decision['verdict']}")
        if record["attempt"] < life.attempts:
            self.found.append(f"seq {seq}: {message_id} ends attempt {record['attempt']} after {life.attempts}")
        life.attempts, life.code = max(life.attempts, record["attempt"]), record["code"]
        life.state = state if state in ENDS else "waiting"
        if record.get("by") is not None:
            self.ends_elsewhere.append(record)  # it ran there, if it did
        elif state == "delivered":
            life.delivered.append(record)

    # --- against what was seen ---------------------------------------------------------------------------------------

    def compare(self, notes: Iterable[Record], *, all_ended: bool = False) -> None:
        """Against what the user's program has noted. Raises: KeyError, for a note that is none."""
        runs: dict[str, list[Record]] = {}
        known_as: dict[str, str] = {}
        used: set[str] = set()
        for note in notes:
            if "told" in note:
                self._told(note, all_ended=all_ended)
                continue
            message_id = note["ran"]
            self._ran(note, used)
            before = runs.setdefault(message_id, [])
            if before and note["attempt"] < before[-1]["attempt"]:
                self.found.append(f"{message_id} ran attempt {note['attempt']} after {before[-1]['attempt']}")
            before.append(note)
            if known_as.setdefault(note["what"], message_id) != message_id:
                self.found.append(f"{note['what']} was done as {known_as[note['what']]} and as {message_id}")
        for message_id, life in self.lives.items():
            self._delivered(message_id, life, runs.get(message_id, []))
            if all_ended and life.state not in ENDS:
                self.found.append(f"{message_id} has not ended: {life.state}")

    def _told(self, note: Record, *, all_ended: bool) -> None:
        life = self.lives.get(note["id"])
        if life is None:
            self.found.append(f"{note['id']} was {note['told']} and is not in the log")
        elif life.first["digest"] != note["digest"]:
            self.found.append(f"{note['id']} was {note['told']} with another digest than is in the log")
        elif life.first["verdict"] != TOLD[note["told"]]:
            self.found.append(f"{note['id']} was {note['told']}, and the log says {life.first['verdict']}")
        elif all_ended and (life.state, life.code) == ("discarded", "audit_unavailable"):
            self.found.append(f"{note['id']} was {note['told']} and is discarded as not recorded")

    def _ran(self, note: Record, used: set[str]) -> None:
        """The newest decision on a message that anybody could read as its handler began is an allow for this run."""
        message_id = note["ran"]
        if note["records"] > self._size:
            self.found.append(f"{note['records']} records could be read as {message_id} ran, {self._size} are left")
        life = self.lives.get(message_id)
        earlier = [one for one in life.decisions if one["seq"] < note["records"]] if life is not None else []
        if not earlier:
            self.found.append(f"{message_id} ran (attempt {note['attempt']}) with no decision before it")
            return
        allow = earlier[-1]
        if allow["verdict"] != "allow":
            self.found.append(f"{message_id} ran (attempt {note['attempt']}) on a decision that says hold")
        for name in ("attempt", "digest", "constitution"):
            if allow[name] != note[name]:
                self.found.append(f"{message_id} ran with {name} {note[name]}; its allow has {allow[name]}")
        if allow["decision_id"] in used:
            self.found.append(f"{message_id} ran twice on {allow['decision_id']}")
        used.add(allow["decision_id"])

    def _delivered(self, message_id: str, life: Life, runs: list[Record]) -> None:
        """No success is made up: what was delivered to a handler has run, in that attempt."""
        if life.first["cause"] is not None:
            return  # a reply goes to whoever asked, not to a handler
        for outcome in life.delivered:
            if all(run["attempt"] != outcome["attempt"] for run in runs):
                self.found.append(f"{message_id} is delivered in attempt {outcome['attempt']}, which never ran")

    # --- accounting --------------------------------------------------------------------------------------------------

    def accounting(self) -> dict[str, int]:
        """How many messages are in each state, as far as records tell; `waiting` is the sum of WAITING."""
        counts = {"accepted": len(self.lives), **dict.fromkeys(("waiting", "held", *ENDS), 0)}
        for life in self.lives.values():
            counts[life.state] += 1
        return counts

    def compare_accounting(self, said: Mapping[str, int]) -> None:
        """Against the `accounting` of `eab status`."""
        if said["accepted"] != sum(count for state, count in said.items() if state != "accepted"):
            self.found.append(f"the accounting does not add up: {dict(said)}")
        theirs = {name: said[name] for name in ("accepted", "held", *ENDS)}
        theirs["waiting"] = sum(said[name] for name in WAITING)
        ours = self.accounting()
        if theirs != ours:
            apart = {name: (theirs[name], ours[name]) for name in ours if theirs[name] != ours[name]}
            self.found.append(f"the accounting says, and the records tell: {apart}")


def check_nodes(
    logs: Iterable[Iterable[str | bytes]], notes: Iterable[str | bytes], *, all_ended: bool = False
) -> list[str]:
    """What is wrong with the histories of several nodes and between them. Raises: as `check`."""
    histories: dict[str, History] = {}
    for log in logs:
        history = History()
        history.read(log)
        histories[history.name] = history
    said = [json.loads(line) for line in notes]
    found = []
    for name, history in histories.items():
        ours = [note for note in said if note["node"] == name.rpartition("/")[2]]
        history.compare(ours, all_ended=all_ended)
        found += [f"{name}: {line}" for line in (*history.found, *_between(history, histories))]
    nodes = {name.rpartition("/")[2] for name in histories}
    found += [f"nobody gave the log of {note['node']}" for note in said if note["node"] not in nodes]
    return found


def _between(history: History, others: Mapping[str, History]) -> Iterable[str]:
    """What one log says of others, and they do not."""
    for record in history.received:
        ticket = record.get("ticket") or {"origin": "", "seq": -1, "decision_id": ""}
        sender = others.get(ticket["origin"])
        allow = sender.by_seq.get(ticket["seq"], {}) if sender is not None else {}
        same = all(allow.get(name) == record[name] for name in ("message_id", "digest"))
        if allow.get("verdict") != "allow" or allow.get("decision_id") != ticket["decision_id"] or not same:
            yield f"seq {record['seq']}: {record['message_id']} was taken in without an allow on its sender's node"
    for record in history.ends_elsewhere:
        message_id, by, state = record["message_id"], record["by"], record["state"]
        there = others.get(by["origin"])
        end = there.by_seq.get(by["seq"], {}) if there is not None and by["seq"] is not None else {}
        life = there.lives.get(message_id) if there is not None else None
        if by["seq"] is None or end.get("verdict") == "allow":  # the message is named, and not the record of its end
            same = life is not None and life.state == state
        else:
            same = end.get("message_id") == message_id and state in (end.get("state"), _refused(end))
        if not same:
            yield f"seq {record['seq']}: {message_id} is {state}, and {by['origin']} has no such end"


def _refused(record: Record) -> str | None:
    return "refused" if record.get("verdict") == "refuse" else None


def check(
    log: Iterable[str | bytes],
    notes: Iterable[str | bytes],
    accounting: Mapping[str, int] | None = None,
    *,
    all_ended: bool = False,
) -> list[str]:
    """What is wrong, a line each. Raises: ValueError, KeyError, TypeError, for what cannot be read."""
    history = History()
    history.read(log)
    history.compare((json.loads(line) for line in notes), all_ended=all_ended)
    if accounting is not None:
        history.compare_accounting(accounting)
    return history.found


def main() -> int:
    """Reads the files and prints what is wrong."""
    parser = argparse.ArgumentParser(description="Checks an exported log against what its user saw.")
    parser.add_argument("log", type=Path, nargs="+")
    parser.add_argument("notes", type=Path)
    parser.add_argument("--status", type=Path, help="what `eab --json status` printed")
    parser.add_argument("--all-ended", action="store_true", help="nothing may still be open")
    given = parser.parse_args()
    try:
        accounting = json.loads(given.status.read_bytes())["accounting"] if given.status else None
        logs, notes = [file.read_bytes().splitlines() for file in given.log], given.notes.read_bytes().splitlines()
        if len(logs) > 1 and accounting is not None:
            parser.error("--status is of one node: give one log")
        if len(logs) > 1:
            found = check_nodes(logs, notes, all_ended=given.all_ended)
        else:
            found = check(logs[0], notes, accounting, all_ended=given.all_ended)
    except (OSError, ValueError, KeyError, TypeError) as error:
        parser.error(f"this cannot be read: {error!r}")
    sys.stdout.writelines(f"{line}\n" for line in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
