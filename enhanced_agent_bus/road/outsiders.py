"""Agents of other processes: whom an operator lets join, who has joined, and what they ask to be sent.

What one sends goes the road of every message, with the party that the registry has of it. Sessions and challenges end
with the process. Not here: what is signed, and how (letters).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol, TypeAlias

import orjson

from enhanced_agent_bus.agent import Draft
from enhanced_agent_bus.errors import AgentExists, BusError
from enhanced_agent_bus.letters.dsse import BadLetter, Signs, bytes_max, decode
from enhanced_agent_bus.letters.envelopes import Request, open_envelope
from enhanced_agent_bus.letters.joining import CHANCE_BYTES, Challenges, Session, Wants, open_join, seal_challenge
from enhanced_agent_bus.letters.keys import PublicKey, read_vkey
from enhanced_agent_bus.message import shown
from enhanced_agent_bus.outcome import Receipt
from enhanced_agent_bus.ports import AgentRow, Entry
from enhanced_agent_bus.road.asking import Asking
from enhanced_agent_bus.road.desk import NOBODY, Desk
from enhanced_agent_bus.road.sending import Sending
from enhanced_agent_bus.routing.registry import check_row
from enhanced_agent_bus.verdict import Party, Refusal

SETTING: Final = "trusted_agents"
TRUSTED_MAX: Final = 1000  # and so many sessions at most: an agent has one
SECRET_BYTES: Final = 32
#: This node's key, made when it is first asked for.
Identity: TypeAlias = Callable[[], Signs]
_REMEDY: Final = "ask for a new challenge (`eab agents challenge`) and answer it with the key that the operator named"


class Trusted(NamedTuple):
    """Whom an operator lets join, and the most that it is then registered as."""

    agent: str
    tenant: str
    vkey: str
    roles: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    topics: tuple[str, ...] = ()

    @property
    def key(self) -> PublicKey:
        return read_vkey(self.vkey)[1]

    def granted(self, wants: Wants) -> AgentRow:
        """What it wants, without what the operator did not give it."""
        return AgentRow(
            self.agent,
            self.tenant,
            tuple(sorted(set(self.roles) & set(wants.roles))),
            tuple(sorted(set(self.capabilities) & set(wants.capabilities))),
            tuple(sorted(set(self.topics) & set(wants.topics))),
            wants.constitution,
            live=True,
        )


@dataclass(slots=True)
class Joined:
    """A session, and whom the registry knows it as."""

    session: Session
    party: Party


class Enters(Protocol):
    """`AgentBus.register`, as far as it is needed here."""

    def __call__(
        self,
        agent_id: str,
        handler: None = None,
        *,
        tenant: str,
        roles: Sequence[str] = (),
        capabilities: Sequence[str] = (),
        topics: Sequence[str] = (),
        constitution: str = "latest",
    ) -> Awaitable[object]: ...


def kept(setting: str | None) -> dict[str, Trusted]:
    """Whom the home remembers as trusted, by name."""
    rows = (
        Trusted(agent, tenant, vkey, *(tuple(names) for names in lists))
        for agent, tenant, vkey, *lists in orjson.loads(setting or "[]")
    )
    return {row.agent: row for row in rows}


class Outsiders:
    """Lets agents of other processes in, and sends for those that are."""

    def __init__(
        self,
        desk: Desk,
        sending: Sending,
        asking: Asking,
        identity: Identity,
        register: Enters,
        unregister: Callable[[Party], Awaitable[None]],
    ) -> None:
        self._desk = desk
        self._sending = sending
        self._asking = asking
        self._identity = identity
        self._register = register
        self._unregister = unregister
        self._trusted = kept(desk.ledger.setting(SETTING))
        self._joined: dict[str, Joined] = {}
        self._challenges: Challenges | None = None
        self._turn = asyncio.Lock()  # of changes to who is trusted: each writes all of them

    # --- whom an operator lets join --------------------------------------------------------------------------------

    def trusted(self) -> list[Trusted]:
        return [self._trusted[agent_id] for agent_id in sorted(self._trusted)]

    async def trust(self, wanted: Trusted) -> None:
        """Raises: ValueError, for a name or a key that is none; AgentExists, for an id of another tenant."""
        check_row(wanted.granted(Wants(wanted.roles, wanted.capabilities, wanted.topics)))
        name, _ = read_vkey(wanted.vkey)
        if name != f"{wanted.tenant}/{wanted.agent}":
            raise ValueError(f"the key is of {shown(name)}, not of {wanted.tenant}/{wanted.agent}")
        known = self._desk.registry.row(wanted.agent)
        if known is not None and known.tenant != wanted.tenant:
            remedy = "an id stays with its tenant for ever: choose another id"
            raise AgentExists(f"agent {wanted.agent} belongs to another tenant", remedy=remedy)
        async with self._turn:
            if len(self._trusted) >= TRUSTED_MAX and wanted.agent not in self._trusted:
                raise ValueError(f"more than {TRUSTED_MAX} agents of other processes cannot be trusted")
            before = self._trusted.pop(wanted.agent, None)  # what it had ends first, whatever the disk says
            self._end(wanted.agent)
            after = {**self._trusted, wanted.agent: wanted}
            await self._write("trusted", wanted, after, before)

    async def distrust(self, agent_id: str) -> None:
        """Raises: KeyError, when it is not trusted."""
        async with self._turn:
            before = self._trusted.pop(agent_id, None)
            if before is None:
                raise KeyError(f"{agent_id} is not trusted to join")
            joined = self._joined.pop(agent_id, None)
            try:
                await self._write("distrusted", before, dict(self._trusted), before)
            except BaseException:
                if joined is not None:  # it is trusted still, and has to join again
                    self._joined[agent_id] = joined
                    self._end(agent_id)
                raise
        if joined is not None:
            await self._unregister(joined.party)

    async def _write(self, event: str, row: Trusted, after: dict[str, Trusted], before: Trusted | None) -> None:
        """Records who is trusted from here on; what could not be recorded is as it was."""
        fields = {"event": event, **row._asdict()}

        def then(error: BusError | None) -> None:
            if error is None:
                self._trusted = after
            elif before is not None:
                self._trusted[before.agent] = before

        setting = orjson.dumps([list(one) for one in after.values()]).decode()
        await self._desk.write(Entry("agent", fields, settings={SETTING: setting}), then)

    def _end(self, agent_id: str) -> None:
        """Its session is over; messages for it wait, as for any agent that is away."""
        joined = self._joined.pop(agent_id, None)
        if joined is not None and self._desk.registry.live(agent_id) is joined.party:
            self._desk.registry.release(agent_id, forget=self._desk.registry.row(agent_id))

    # --- joining ---------------------------------------------------------------------------------------------------

    def challenge(self) -> str:
        """A letter that is to be answered within 30 s."""
        challenges = self._begun()
        chance = self._desk.randomness.take(CHANCE_BYTES)
        return seal_challenge(self._identity(), challenges.issue(chance, self._desk.clock.now_us())).decode()

    async def join(self, answer: str) -> str:
        """Who has joined. Raises: BusError with the code of what is wrong with the answer; AuditUnavailable."""
        known = {f"{row.tenant}/{row.agent}": row.key for row in self._trusted.values()}
        try:
            session, wants = open_join(
                answer.encode("utf-8", "replace"), self._begun(), known, self._desk.clock.now_us()
            )
        except BadLetter as bad:
            await self._note_refused(None, bad.code, str(bad))
            raise BusError(f"the answer was refused: {bad}", code=bad.code, remedy=_REMEDY) from None
        trusted = self._trusted[session.agent]
        try:
            party = await self._enter(trusted, trusted.granted(wants))
        except (AgentExists, ValueError) as error:
            code = error.code if isinstance(error, AgentExists) else "malformed"
            await self._note_refused(session.agent, code, str(error))
            raise
        if self._trusted.get(session.agent) is not trusted:  # an operator was quicker
            await self._unregister(party)
            await self._note_refused(session.agent, "identity_unproven", "it is not trusted any more")
            raise BusError(f"{session.agent} is not trusted any more", code="identity_unproven", remedy=_REMEDY)
        self._joined[session.agent] = Joined(session, party)
        return session.agent

    async def _enter(self, trusted: Trusted, row: AgentRow) -> Party:
        """Registers it anew, or as it is. Raises: AgentExists, when it is live here and has not come from outside."""
        registry = self._desk.registry
        joined = self._joined.get(row.id)
        if joined is not None and registry.live(row.id) is joined.party:
            if registry.row(row.id) == row:
                return joined.party
            self._end(row.id)
        await self._register(
            row.id,
            tenant=row.tenant,
            roles=row.roles,
            capabilities=row.capabilities,
            topics=row.topics,
            constitution=row.constitution,
        )
        party = registry.live(row.id)
        if party is None:
            raise AgentExists(f"agent {trusted.agent} was unregistered just now", remedy="join again")
        return party

    async def _note_refused(self, agent_id: str | None, code: str, why: str) -> None:
        fields = {"event": "join_refused", "code": code, "reason": why[:300]}
        await self._desk.write(Entry("agent", fields if agent_id is None else {**fields, "agent": agent_id}))

    def _begun(self) -> Challenges:
        if self._challenges is None:
            secret = self._desk.randomness.take(SECRET_BYTES)
            self._challenges = Challenges(self._identity().name, secret)
        return self._challenges

    # --- sending ---------------------------------------------------------------------------------------------------

    async def send(self, envelope: str) -> list[Receipt]:
        """What became of the message in it: a receipt, or one for each subscriber of a topic."""
        body, limits = envelope.encode("utf-8", "replace"), self._desk.settings.limits
        joined = None
        try:
            joined = self._session_of(body)
            request, joined.session = open_envelope(
                body,
                joined.session,
                self._desk.clock.now_us(),
                payload_bytes=limits.payload_bytes,
                depth=limits.depth,
            )
        except BadLetter as bad:
            return [await self._turn_away(bad, joined)]
        draft = _draft(request)
        if request.topic is not None:
            return await self._asking.fan_out(joined.party, request.topic, draft)
        receipt, _ = await self._sending.dispatch(joined.party, request.to, request.capability, draft)
        return [receipt]

    def _session_of(self, body: bytes) -> Joined:
        """Raises: BadLetter."""
        signed = decode(body, bytes_max=bytes_max(self._desk.settings.limits.payload_bytes))
        tenant, _, agent_id = signed.keyid.partition("/")
        joined = self._joined.get(agent_id)
        if joined is not None and self._desk.registry.live(agent_id) is not joined.party:
            del self._joined[agent_id]
            joined = None
        if joined is None or joined.party.tenant != tenant:
            raise BadLetter("identity_unproven", f"{shown(signed.keyid)} has no session with this process: join first")
        return joined

    async def _turn_away(self, bad: BadLetter, joined: Joined | None) -> Receipt:
        """Records it without its content; under the agent's name only where its key has signed it in this session."""
        sender = joined.party if joined is not None and bad.code == "replayed" else NOBODY
        refusal = Refusal(bad.code, str(bad), "see docs/reference/envelope.md; a session ends with the bus's process")
        message_id = self._desk.randomness.uuid7(self._desk.clock.now_us())
        receipt, _ = await self._sending.turn_away(message_id, sender, NOBODY, None, Draft({}, "", 1), refusal)
        return receipt


def _draft(request: Request) -> Draft:
    kind = request.type or ("command" if request.topic is None else "event")
    return Draft(
        request.payload,
        kind,
        request.priority,
        request.id,
        request.conversation,
        request.cause,
        request.headers,
        request.expires_in,
    )
