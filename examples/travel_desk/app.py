"""The agents of a travel desk: two tenants, handlers that do small honest work, and two that are in trouble.

They are only registered here; what they say to each other on one working day is in messages.jsonl. Nothing reaches
out to a network or looks at a clock, so the day ends the same whenever it is run:

    eab run examples/travel_desk/app.py:build --input examples/travel_desk/messages.jsonl --at 2026-03-04T10:30:00Z
"""

from __future__ import annotations

from typing import Any

from enhanced_agent_bus import AgentBus, Message, Retry

# A constitution that nobody activated: 64 digits of no bundle.
RETIRED_CONSTITUTION = "0" * 64
BUSY_ATTEMPTS = 2  # how often the hotel's line is busy before somebody answers
QUICK = Retry.exponential(attempts=4, base_seconds=0.02, cap_seconds=0.1)


async def build(bus: AgentBus) -> None:
    """Registers everybody; `eab run` calls this with the bus it has opened."""
    await register_senders(bus)
    await register_suppliers(bus)
    await register_back_office(bus)
    await register_other_tenant(bus)


async def register_senders(bus: AgentBus) -> None:
    """Agents that only send here: they need no handler."""
    for planner in ("desk", "groups", "buyer", "petty-cash", "clerk"):
        await bus.register(planner, tenant="acme", roles=["planner"])
    await bus.register("guest", tenant="acme", roles=["guest"])
    await bus.register("intern", tenant="acme")  # no role yet, so nothing but a heartbeat
    await bus.register("finance", tenant="acme", roles=["finance"])
    # It agreed to a constitution that is no longer the active one, and has to agree again before it may send.
    await bus.register("legacy", tenant="acme", roles=["planner"], constitution=RETIRED_CONSTITUTION)
    # Registered and not at work: what is sent to it is parked until it is, or expires.
    await bus.register("night-desk", tenant="acme", roles=["worker"])


async def register_suppliers(bus: AgentBus) -> None:
    """Those who book: one works, one needs three attempts, one never answers."""

    async def book_flight(message: Message) -> dict[str, Any]:
        trip = message.payload.get("trip", 0)
        if message.type == "query":
            return {"trip": trip, "amount": 80 + trip % 40, "seats": trip % 9}
        # A handler may send too: the note belongs to the same conversation and is decided like any other message.
        await booker.send("notes", {"trip": trip, "note": "flight booked"}, type="event")
        return {"trip": trip, "booking": f"F-{trip:04d}"}

    async def book_train(message: Message) -> dict[str, Any]:
        trip = message.payload.get("trip", 0)
        return {"trip": trip, "booking": f"R-{trip:04d}"}

    async def book_hotel(message: Message) -> dict[str, Any]:
        if message.attempt <= BUSY_ATTEMPTS:
            raise ConnectionError("the hotel's line is busy")
        trip = message.payload.get("trip", 0)
        return {"trip": trip, "booking": f"H-{trip:04d}"}

    async def send_fax(_message: Message) -> None:
        raise ConnectionError("nobody answers at the other end")

    booker = await bus.register(
        "booker", handler=book_flight, tenant="acme", roles=["worker", "records"], capabilities=["flights"]
    )
    await bus.register("trains", handler=book_train, tenant="acme", roles=["worker"], capabilities=["trains"])
    await bus.register("hotels", handler=book_hotel, tenant="acme", roles=["worker"], retry=QUICK)
    await bus.register("fax", handler=send_fax, tenant="acme", roles=["worker"], retry=QUICK)


async def register_back_office(bus: AgentBus) -> None:
    """Those who pay, write down, sign, keep secrets and send mail outside."""
    paid: dict[str, int] = {}
    notes: list[str] = []

    async def pay(message: Message) -> dict[str, Any]:
        amount = int(message.payload["amount"])
        paid[message.sender] = paid.get(message.sender, 0) + amount
        return {"receipt": f"P-{message.payload.get('trip', 0):04d}", "total": paid[message.sender]}

    async def write_down(message: Message) -> None:
        notes.append(f"{message.sender}: {message.payload.get('note', message.type)}")

    async def put_into_calendar(message: Message) -> None:
        notes.append(f"calendar: {message.topic or message.type}")

    async def sign(message: Message) -> dict[str, Any]:
        return {"signed": message.payload.get("contract", "")}

    async def hand_out_secret(message: Message) -> dict[str, Any]:
        return {"name": message.payload.get("name", ""), "secret": "not-a-real-key"}

    async def send_mail(message: Message) -> dict[str, Any]:
        return {"sent": message.payload.get("subject", "")}

    await bus.register("payments", handler=pay, tenant="acme", roles=["worker"], capabilities=["payments"])
    await bus.register("notes", handler=write_down, tenant="acme", roles=["worker"], topics=["trips", "delays"])
    await bus.register("calendar", handler=put_into_calendar, tenant="acme", roles=["worker"], topics=["trips"])
    await bus.register("contracts", handler=sign, tenant="acme", roles=["worker"])
    await bus.register("vault", handler=hand_out_secret, tenant="acme", roles=["vault"], capabilities=["secrets"])
    await bus.register("mailer", handler=send_mail, tenant="acme", roles=["worker"], capabilities=["outside_mail"])


async def register_other_tenant(bus: AgentBus) -> None:
    """The other tenant shares the bus and little else: acme may ask it, and that is all."""
    notes: list[str] = []

    async def quote(message: Message) -> dict[str, Any]:
        trip = message.payload.get("trip", 0)
        return {"trip": trip, "amount": 70 + trip % 50}

    async def write_down(message: Message) -> None:
        notes.append(message.id)

    await bus.register("globex-desk", tenant="globex", roles=["planner"])
    await bus.register("globex-flights", handler=quote, tenant="globex", roles=["worker"], capabilities=["flights"])
    await bus.register("globex-notes", handler=write_down, tenant="globex", roles=["worker"], topics=["trips"])
