"""Writes messages.jsonl and sample.json: one working day of the travel desk, the same for every run of this script.

It is a program for whoever changes the sample, and no part of the bus. Each line is written together with how it
should end; the ends are counted into sample.json. What one sender does never depends on how far another has come:
budgets and labels are the sender's own, so the counts hold however the senders' lines interleave.

    python examples/travel_desk/make_messages.py
"""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
AT = "2026-03-04T10:30:00Z"  # a Wednesday
SEED = 20260304
HOUR_SECONDS = 3600
DAY_BUDGET = 5000  # of policies/bus/rules/daily_budget/data.json
CITIES = ("Lisbon", "Oslo", "Vienna", "Turin", "Gdansk", "Cork", "Basel", "Malmo", "Porto", "Lille")


class Day:
    """The lines in lanes, one a sender and theme, each in its order; and the count of how they should end."""

    def __init__(self) -> None:
        self.theme = ""
        self.lanes: dict[tuple[str, str], list[str]] = {}
        self.ends: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.rules: Counter[str] = Counter()

    def line(
        self,
        sender: str,
        target: dict[str, str],
        payload: dict[str, Any],
        end: str,
        **more: float | str | dict[str, str],
    ) -> None:
        """One line, and how it should end: a state, `refused:<code>` or, where a rule refuses it, `rule:<name>`."""
        text = json.dumps({"from": sender, **target, **more, "payload": payload})
        self.lanes.setdefault((self.theme, sender), []).append(text)
        self.count(end)

    def raw(self, text: str) -> None:
        """A line that is no message."""
        self.lanes.setdefault((self.theme, ""), []).append(text)
        self.count("bad_lines")

    def count(self, end: str, times: int = 1) -> None:
        kind, _, detail = end.partition(":")
        if kind == "rule":
            self.rules[detail] += times
            kind, detail = "refused", "policy_denied"
        if kind == "refused":
            self.refused[detail] += times
        self.ends[kind] += times


def ordinary_work(day: Day, dice: random.Random) -> None:
    """What a travel desk does all day: ask, book, note."""
    for trip in range(1, 91):
        sender = dice.choice(["desk", "desk", "groups"])
        conversation = f"trip-{trip:04d}"
        city = dice.choice(CITIES)
        if trip % 3 == 0:
            day.line(sender, {"to": "booker"}, {"trip": trip, "city": city}, "delivered", type="query",
                     conversation=conversation)  # fmt: skip
        tools = ["search.flights"] if trip % 4 == 0 else ["search.flights", "calendar.read"]
        target = {"capability": "flights"} if trip % 5 == 0 else {"to": "booker"}
        day.line(sender, target, {"trip": trip, "city": city, "tools": tools}, "delivered", type="command",
                 priority=2 if trip % 10 == 0 else 1, conversation=conversation)  # fmt: skip
        if trip % 4 == 1:
            day.line(sender, {"to": "trains"}, {"trip": trip, "leg": "airport"}, "delivered", type="task_request",
                     conversation=conversation)  # fmt: skip
        if trip % 6 == 1:
            day.line(sender, {"to": "notes"}, {"trip": trip, "note": f"window seat to {city}"}, "delivered",
                     type="event", conversation=conversation)  # fmt: skip
    for trip in range(201, 231):
        day.line("globex-desk", {"to": "globex-flights"}, {"trip": trip, "city": dice.choice(CITIES)}, "delivered",
                 type="query" if trip % 2 else "command")  # fmt: skip
    for number in range(1, 13):
        day.line("trains", {"to": "notes"}, {"beat": number}, "delivered", type="heartbeat", priority=0)
        day.line("guest", {"to": "booker"}, {"trip": 300 + number}, "delivered", type="query")
    for trip in range(401, 409):
        day.line("finance", {"to": "trains"}, {"trip": trip, "why": "audit"}, "delivered", type="query", priority=3)


def topics_and_capabilities(day: Day, _dice: random.Random) -> None:
    """Each subscriber gets a message of its own; a topic belongs to its tenant."""
    for number in range(1, 7):
        day.line("desk", {"topic": "trips"}, {"note": f"plan {number} changed"}, "delivered", type="event")
        day.count("delivered")  # notes and calendar
        day.line("groups", {"topic": "delays"}, {"note": f"train {number} is late"}, "delivered", type="event")
        day.line("globex-desk", {"topic": "trips"}, {"note": f"plan {number}"}, "delivered", type="event")
    for trip in range(501, 506):
        day.line("groups", {"capability": "trains"}, {"trip": trip}, "delivered", type="command")
    day.line("desk", {"topic": "strikes"}, {"note": "nobody listens"}, "no_subscriber", type="event")
    day.line("desk", {"capability": "ferries"}, {"trip": 506}, "refused:recipient_unknown")
    day.line("desk", {"to": "night-shift"}, {"trip": 507}, "refused:recipient_unknown")
    day.line("desk", {"to": "Night Desk"}, {"trip": 508}, "refused:malformed")


def tenants(day: Day, _dice: random.Random) -> None:
    """A grant lets acme ask globex; nothing else crosses."""
    for trip in range(601, 609):
        day.line("groups", {"to": "globex-flights"}, {"trip": trip}, "delivered", type="query")
    for trip in range(611, 616):
        day.line("groups", {"to": "globex-flights"}, {"trip": trip}, "rule:same_tenant", type="command")
    for trip in range(621, 625):
        day.line("globex-desk", {"to": "booker"}, {"trip": trip}, "rule:same_tenant", type="query")
    claims = {"tenant": "acme", "sender": "desk", "approved": True}
    day.line("globex-desk", {"to": "notes"}, claims, "rule:same_tenant", type="event", headers={"tenant": "acme"})


def payments(day: Day, dice: random.Random) -> None:
    """petty-cash runs out of budget; the large ones of buyer wait for finance."""
    spent = 0
    for trip in range(701, 721):
        amount = dice.choice([180, 240, 310, 420, 560])
        fits = spent + amount <= DAY_BUDGET
        spent += amount if fits else 0
        day.line("petty-cash", {"to": "payments"}, {"trip": trip, "amount": amount},
                 "delivered" if fits else "rule:daily_budget", type="command")  # fmt: skip
    for trip, asked, end in (
        (731, 300, "delivered"),
        (732, 1200, "held"),
        (733, 450, "delivered"),
        (734, 5200, "rule:daily_budget"),
        (735, 1500, "held"),
        (736, -50, "rule:daily_budget"),
        (737, "120", "rule:daily_budget"),
        (738, 300, "delivered"),
    ):
        day.line("buyer", {"capability": "payments"}, {"trip": trip, "amount": asked}, end, type="command")
    day.line("buyer", {"to": "payments"}, {"trip": 739}, "rule:daily_budget", type="command")
    # Saying so does not make it so.
    day.line("buyer", {"to": "payments"}, {"trip": 740, "amount": 1100, "approved": True}, "held", type="command",
             headers={"approved": "finance"})  # fmt: skip


def roles_tools_hours(day: Day, _dice: random.Random) -> None:
    """What a role may say, with which urgency and which tools; and what waits for the evening."""
    for trip in range(801, 805):
        day.line("guest", {"to": "booker"}, {"trip": trip}, "rule:message_types", type="command")
        day.line("desk", {"to": "booker"}, {"trip": trip}, "rule:priority_ceiling", type="command", priority=3)
    day.line("intern", {"to": "notes"}, {"note": "hello"}, "rule:message_types", type="notification")
    day.line("intern", {"to": "notes"}, {"beat": 1}, "delivered", type="heartbeat")
    for tools in (["shell.run"], ["search.flights", "ledger.write"], "search.flights", [["search.flights"]]):
        day.line("desk", {"to": "booker"}, {"trip": 811, "tools": tools}, "rule:tool_allow_list", type="command")
    for number in range(1, 5):
        contract = {"action": "sign_contract", "contract": f"C-{number:03d}"}
        day.line("groups", {"to": "contracts"}, contract, "delivered", type="command")
        day.line("groups", {"to": "contracts"}, {"action": "reprice_all"}, "rule:office_hours", type="command")
    day.line("groups", {"to": "contracts"}, {"action": ["reprice_all"]}, "rule:office_hours", type="command")


def personal_data(day: Day, _dice: random.Random) -> None:
    """The booker is cleared, notes is not; the numbers are made up and say so."""
    for trip in range(821, 829):
        traveller = {"passport": f"SAMPLE-{trip}", "birth_date": "1900-01-01"}
        day.line("desk", {"to": "booker"}, {"trip": trip, "traveller": traveller}, "delivered", type="command")
        if trip % 2:
            note = {"note": "passport on file", "traveller": traveller}
            day.line("desk", {"to": "notes"}, note, "rule:personal_data", type="event")
    day.line("desk", {"to": "trains"}, {"trip": 829, "Email": "traveller@example.org"}, "rule:personal_data")


def secrets(day: Day, _dice: random.Random) -> None:
    """The clerk mails as everybody does, reads a secret, and from then on nothing of it leaves."""
    outside = {"subject": "itinerary", "to": "traveller desk"}
    for number in range(1, 5):
        day.line("clerk", {"to": "mailer"}, {**outside, "number": number}, "delivered", type="command")
        day.line("desk", {"to": "mailer"}, {**outside, "number": number}, "delivered", type="command")
    day.line("clerk", {"to": "globex-flights"}, {"trip": 841}, "delivered", type="query")
    day.line("clerk", {"to": "vault"}, {"name": "supplier-key"}, "delivered", type="query", conversation="keys-1")
    day.line("clerk", {"to": "mailer"}, outside, "rule:secret_stays_home", type="command", conversation="keys-1")
    day.line("clerk", {"to": "mailer"}, outside, "rule:secret_stays_home", type="command", conversation="other-1")
    day.line("clerk", {"to": "globex-flights"}, {"trip": 842}, "rule:secret_stays_home", type="query")
    day.line("clerk", {"to": "notes"}, {"note": "key checked"}, "delivered", type="event", conversation="keys-1")


def broken_lines_and_agents(day: Day, _dice: random.Random) -> None:
    """Suppliers in trouble, messages that come too late or twice, and lines that are no messages."""
    for trip in range(901, 909):
        day.line("groups", {"to": "hotels"}, {"trip": trip, "nights": trip % 4 + 1}, "delivered", type="command")
        day.count("retried")
    for trip in range(911, 915):
        day.line("groups", {"to": "fax"}, {"trip": trip}, "dead_lettered", type="command")
        day.count("retried")
    for trip in range(921, 925):
        day.line("legacy", {"to": "booker"}, {"trip": trip}, "refused:constitution_mismatch", type="command")
    day.line("desk", {"to": "booker"}, {"trip": 931}, "refused:expired", type="command", expires_in=0)
    day.line("desk", {"to": "booker"}, {"trip": 932}, "refused:expired", type="command", expires_in=-HOUR_SECONDS)
    day.line("desk", {"to": "night-desk"}, {"trip": 933}, "parked", type="command")
    day.line("desk", {"to": "trains"}, {"trip": 941}, "delivered", type="command", id="order-941")
    day.line("desk", {"to": "trains"}, {"trip": 941}, "repeated", type="command", id="order-941")
    day.line("desk", {"to": "trains"}, {"trip": 942}, "refused:replayed", type="command", id="order-941")
    day.raw('{"from": "desk", "to": "booker", "payload": {"trip": 951}')
    day.raw('{"from": "desk", "to": "booker", "payload": {"trip": 952, "trip": 953}}')
    day.raw('{"to": "booker", "payload": {"trip": 954}}')
    day.raw('{"from": "desk", "payload": {"trip": 955}}')
    day.raw('{"from": "nobody-we-know", "to": "booker", "payload": {"trip": 956}}')
    day.raw('["desk", "booker", {"trip": 957}]')


THEMES = (
    ordinary_work,
    topics_and_capabilities,
    tenants,
    payments,
    roles_tools_hours,
    personal_data,
    secrets,
    broken_lines_and_agents,
)


def interleaved(lanes: dict[tuple[str, str], list[str]], dice: random.Random) -> list[str]:
    """All lines in one order, as a day would mix them; within a lane the order is kept."""
    left = {lane: lines[::-1] for lane, lines in lanes.items()}
    order = []
    while left:
        lane = dice.choices(list(left), weights=[len(lines) for lines in left.values()])[0]
        order.append(left[lane].pop())
        if not left[lane]:
            del left[lane]
    return order


def main() -> None:
    """Writes both files beside this one."""
    dice = random.Random(SEED)  # noqa: S311 - seeded, so that the sample is the same every time
    day = Day()
    for theme in THEMES:
        day.theme = theme.__name__
        theme(day, dice)
    lines = interleaved(day.lanes, dice)
    (HERE / "messages.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    expected = {
        **{end: day.ends[end] for end in sorted(day.ends)},
        "refused_by_code": dict(sorted(day.refused.items())),
        "refused_by_rule": dict(sorted(day.rules.items())),
    }
    sample = {"at": AT, "lines": len(lines), "expected": expected}
    (HERE / "sample.json").write_text(json.dumps(sample, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
