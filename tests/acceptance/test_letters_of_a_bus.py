"""Whatever a real bus has decided and ended can be written as a letter; what a remote agent has signed can be sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from enhanced_agent_bus import Message, Priority
from enhanced_agent_bus.ledger.home import open_home
from enhanced_agent_bus.letters.envelopes import open_envelope, sign_envelope
from enhanced_agent_bus.letters.joining import Challenges, Wants, open_join, seal_join
from enhanced_agent_bus.letters.notices import Notice, open_notice, seal_notice
from enhanced_agent_bus.letters.tickets import Ended, Ticket, open_ticket, seal_ticket
from tests.developer import log, small_bus
from tests.entries import open_ledger
from tests.vectors import AGENT

NONCE = "0" * 32


Odd = type("F\N{LATIN SMALL LETTER E WITH ACUTE}hler" + "r" * 300, (Exception,), {})


async def busy(folder: Path) -> None:
    """Messages of every shape: ids as long as they can be, replies, topics, failures, and what is refused later."""
    long = "x" * 128

    async def answers(message: Message) -> dict[str, Any]:
        return {"heard": message.payload, "price": 5.0}

    async def breaks(_: Message) -> None:
        raise Odd

    async with small_bus(folder, recovery={"strategy": "immediate", "attempts": 2}) as bus:
        desk = await bus.register("d" * 128, tenant="acme")
        await bus.register("booker", answers, tenant="acme", topics=["trips"], capabilities=["flights"])
        await bus.register("broken", breaks, tenant="acme")
        headers = {"trace": "\N{SNOWMAN}\x00\t"}
        text = {"text": '\N{SNOWMAN} "quoted"\\ \x01', "n": [1, 1.0, 1.5e-7, None, True], "\ufb33\U0001f600": {}}
        receipts = [
            await desk.send("booker", {"trip": 7}),
            await desk.send("booker", text, id=long, headers=headers, priority=Priority.CRITICAL, type="query"),
            await desk.send(capability="flights", conversation=long, cause=long, expires_in=1e12),
            await desk.send("broken", {"a": 1.0}),
            *await desk.publish("trips", {"note": "delay"}, id="note"),
        ]
        for receipt in receipts:
            receipt.raise_for_refusal()
            await receipt.outcome(timeout=10)
        await desk.request("booker", {"trip": 8}, timeout=10)


async def test_every_message_of_a_bus_travels(tmp_path: Path) -> None:
    """With the ticket of its own decision, as it lies in the ledger; and its end as a notice of its own record."""
    await busy(tmp_path)
    path = tmp_path / "home"
    home = open_home(path)
    signer = home.node_signer
    home.release()
    keys = {signer.name: signer.key.public_key()}
    ledger = await open_ledger(path)
    allows = log(path, "decision", verdict="allow", why="send")
    replies = 0
    for allow in allows:
        stored = ledger.find(allow["message_id"])
        assert stored is not None
        envelope = stored.envelope
        assert envelope.digest == allow["digest"]
        (ended,) = [one for one in log(path, "outcome", message_id=envelope.id) if one["state"] == stored.state]
        answers = None
        if envelope.type == "response":
            replies += 1
            request = ledger.find(str(envelope.cause))
            assert request is not None
            answers = Ended(request.envelope.id, request.envelope.digest, request.state, None, 1, 0, None)
        ticket = Ticket(
            f"{allow['bus']}/{allow['node']}",
            allow["seq"],
            allow["decision_id"],
            allow["digest"],
            allow["constitution"],
            allow["revision"],
            envelope.created_us,
            envelope.expires_us,
            NONCE,
            answers,
        )
        assert open_ticket(seal_ticket(signer, envelope, ticket), keys) == (envelope, ticket)
        notice = Notice(
            signer.name,
            ended["seq"],
            envelope.id,
            envelope.digest,
            stored.state,
            stored.code,
            stored.attempts,
            stored.error,
            stored.reply_id,
            ended["decision_id"],
            envelope.created_us,
            NONCE,
        )
        read = open_notice(seal_notice(signer, notice), keys)
        assert read._replace(error=None) == notice._replace(error=None)
        assert (read.error is None) == (stored.error is None)
    await ledger.close()
    assert len(allows) == 11
    assert replies == 5


async def test_what_a_remote_agent_signed_is_sent_as_any_message(tmp_path: Path) -> None:
    """It joins, its envelope is opened, and what it asks for goes down the road, as any sender's would."""
    challenges = Challenges("bus-1/node-a", b"s" * 32)
    keys = {AGENT.name: AGENT.key.public_key()}
    answer = seal_join(AGENT, challenges.issue(b"r" * 16, 0), Wants(roles=("planner",)))
    session, wants = open_join(answer, challenges, keys, 1)
    async with small_bus(tmp_path) as bus:
        got: list[Message] = []
        await bus.register("booker", got.append, tenant="acme")
        desk = await bus.register(session.agent, tenant=session.tenant, roles=wants.roles)
        codes = []
        messages: list[dict[str, Any]] = [
            {"to": "booker", "payload": {"price": 5.0}, "headers": {"trace": "1"}, "id": "order-7"},
            {"to": "booker", "priority": 9},
            {"to": "booker", "type": "order"},
            {"to": "booker", "expires_us": 1},
            {"to": "nobody"},
            {"to": "booker", "payload": {"price": 5.0}, "headers": {"trace": "1"}, "id": "order-7"},
        ]
        for n, message in enumerate(messages):
            letter = sign_envelope(AGENT, session.bus, session.nonce, n + 1, message)
            request, session = open_envelope(letter, session, 1)
            asked = request._asdict()
            del asked["topic"]
            receipt = await desk.send(**{**asked, "type": request.type or "command"})
            codes.append(receipt.code)
            if receipt.ok:
                await receipt.outcome(timeout=10)
        assert codes == [None, "malformed", "malformed", "expired", "recipient_unknown", None]
        assert [(one.id, one.sender, one.payload, one.headers) for one in got] == [
            ("desk/order-7", "desk", {"price": 5.0}, {"trace": "1"})
        ]
        assert isinstance(got[0].payload["price"], float)
