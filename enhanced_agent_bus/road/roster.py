"""Who is where: the nodes of a bus, their leases and keys, and which of them has which agent, in shared keys.

A lease is renewed every second by a change that the others see; how old it is, each of them reads from its own steady
clock, so that clocks that disagree do not matter. Not here: letters (outbox, inbox).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Final, NamedTuple

import orjson

from enhanced_agent_bus.errors import AgentExists, BusError, ConfigInvalid, TransportAway
from enhanced_agent_bus.letters.keys import PublicKey, read_vkey
from enhanced_agent_bus.outcome import NodeInfo
from enhanced_agent_bus.ports import AgentRow, Bucket, Conflict, Item, Transport
from enhanced_agent_bus.road.desk import Desk
from enhanced_agent_bus.verdict import Refusal

NODES: Final = "nodes"
AGENTS: Final = "agents"
BEAT_SECONDS: Final = 1.0
BEATS_A_LEASE: Final = 4  # at least
CLAIMS_MAX: Final = 20  # in a row, when others change the same registration at the same time

logger = logging.getLogger(__name__)


class Node(NamedTuple):
    """A node as it was last heard of."""

    origin: str
    vkey: str
    heard: float  # by our own steady clock
    left: bool  # closed, not lost


class Claim(NamedTuple):
    """A shared registration. `epoch` grows with each change of owner; `nodes` is empty where none has it."""

    row: AgentRow
    nodes: tuple[str, ...]
    epoch: int
    shared: bool
    revision: int

    @classmethod
    def of(cls, item: Item) -> Claim | None:
        """None for what is no registration: then nobody is where it says."""
        try:
            said = orjson.loads(item.value or b"")
            roles, capabilities, topics = (tuple(said[name]) for name in ("roles", "capabilities", "topics"))
            named = (said["id"], said["tenant"], roles, capabilities, topics, said["constitution"])
            row = AgentRow(*named, live=bool(said["live"]))
            return cls(row, tuple(said["nodes"]), int(said["epoch"]), bool(said["shared"]), item.revision)
        except (KeyError, TypeError, ValueError):
            return None

    def document(self) -> bytes:
        row = self.row
        return orjson.dumps(
            {
                "id": row.id,
                "tenant": row.tenant,
                "roles": row.roles,
                "capabilities": row.capabilities,
                "topics": row.topics,
                "constitution": row.constitution,
                "live": row.live,
                "nodes": self.nodes,
                "epoch": self.epoch,
                "shared": self.shared,
            }
        )


class Roster:
    """This node among the others."""

    def __init__(
        self,
        desk: Desk,
        transport: Transport,
        *,
        vkey: str,
        believed: Mapping[str, PublicKey] | None,
        lease_seconds: float,
    ) -> None:
        """`believed` are the keys of the nodes that are trusted, by origin; None believes whoever is listed."""
        self._desk = desk
        self._transport = transport
        self.node = desk.ledger.node
        self.origin = f"{desk.ledger.bus}/{desk.ledger.node}"
        self._vkey = vkey
        self._believed = believed
        self._lease_seconds = lease_seconds
        self.keys: dict[str, PublicKey] = {}
        self._nodes: dict[str, Node] = {}
        self._claims: dict[str, Claim] = {}
        self._mine: dict[str, int] = {}  # agents of ours, with their epochs
        self._renewed = desk.clock.monotonic()
        self._revision = 0  # of our own entry
        self._session = desk.randomness.take(16).hex()  # of this process: a copy of the home has the same key
        self._tasks: list[asyncio.Task[None]] = []
        self._stops: list[Callable[[], None]] = []
        self._node_bucket: Bucket
        self._agent_bucket: Bucket
        self.look: Callable[[], Awaitable[None]] = _nothing_to_see  # reads what all nodes decide by
        self.on_lost: Callable[[str], None] = _nobody_cares  # another node has taken one of ours over
        self.on_arrived: Callable[[str], None] = _nobody_cares  # an agent is somewhere where it was not

    @property
    def weakenings(self) -> list[str]:
        return ["nodes_unpinned"] if self._believed is None else []

    async def start(self) -> None:
        """Joins, and knows everybody else when it returns. Raises: TransportAway; ConfigInvalid."""
        self._node_bucket = await self._transport.bucket(NODES)
        self._agent_bucket = await self._transport.bucket(AGENTS)
        before = await self._node_bucket.get(self.node)
        if before is not None and before.value and orjson.loads(before.value).get("vkey") != self._vkey:
            raise ConfigInvalid(
                f"another node of this bus is called {self.node}, with another key",
                remedy="this home is a copy of that node's: make a new home here",
            )
        self._stops.append(await self._node_bucket.watch(self._node_told))
        self._revision = before.revision if before is not None else 0
        await self._renew()
        self._stops.append(await self._agent_bucket.watch(self._agent_told))
        self._tasks.append(asyncio.create_task(self._keep_lease(), name="eab-lease"))

    async def stop(self) -> None:
        """Leaves: its agents can be taken over at once. Its key stays: letters of it may still be on their way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for stop in self._stops:
            stop()
        with suppress(TransportAway, Conflict):
            await self._node_bucket.swap(self.node, self._entry(left=True), self._revision)

    # --- the lease -------------------------------------------------------------------------------------------------

    def cut_off(self) -> Refusal | None:
        """Why this node decides nothing now: the others may have changed what it decides by."""
        seconds = self._desk.clock.monotonic() - self._renewed
        if seconds <= self._lease_seconds:
            return None
        return Refusal(
            "policy_unavailable",
            f"the other nodes have not been reached for {seconds:.0f} s ({self._transport.url})",
            "see `eab doctor`; it goes on by itself once the transport is back",
        )

    def alive(self, node: str) -> bool:
        """Whether a node's lease holds, as far as this one has heard."""
        known = self._nodes.get(node)
        return (
            known is not None and not known.left and self._desk.clock.monotonic() - known.heard <= self._lease_seconds
        )

    async def _renew(self) -> None:
        asked = self._desk.clock.monotonic()
        self._revision = await self._node_bucket.swap(self.node, self._entry(), self._revision)
        await self.look()  # whoever comes back after its lease has read this before it decides
        self._renewed = asked

    def _entry(self, *, left: bool = False) -> bytes:
        return orjson.dumps({"origin": self.origin, "vkey": self._vkey, "session": self._session, "left": left})

    async def _keep_lease(self) -> None:
        while True:
            await asyncio.sleep(min(BEAT_SECONDS, self._lease_seconds / BEATS_A_LEASE))
            try:
                await self._renew()
            except TransportAway:
                continue
            except Conflict:
                # Our own renewal may have arrived although no answer came back.
                if not await self._is_ours():
                    why = f"another process uses the node {self.node}: this home was copied, and both copies run"
                    self._desk.broken = self._desk.broken or BusError(why)
                    logger.error(why)  # noqa: TRY400 - where it was found says nothing
                    return

    async def _is_ours(self) -> bool:
        """Whether this process wrote this node's entry, or nobody; where nobody answers it is not doubted."""
        try:
            item = await self._node_bucket.get(self.node)
        except TransportAway:
            return True
        self._revision = item.revision if item is not None else 0
        return item is None or not item.value or orjson.loads(item.value).get("session") == self._session

    def _node_told(self, item: Item) -> None:
        name = item.key
        if item.value is None:
            self._nodes.pop(name, None)
            return
        try:
            said = orjson.loads(item.value)
            origin, key = read_vkey(said["vkey"])
        except (KeyError, TypeError, ValueError):
            return
        known = self._nodes.get(name)
        if known is not None and known.vkey != said["vkey"]:
            logger.error("the node %s has another key than before, and is not believed", name)
            return
        if origin != f"{self._desk.ledger.bus}/{name}":
            return
        if self._believed is None or self._believed.get(origin) == key:
            self.keys[origin] = key
        left = said.get("left") is True
        self._nodes[name] = Node(origin, said["vkey"], self._desk.clock.monotonic(), left)

    # --- registrations ---------------------------------------------------------------------------------------------

    async def claim(self, row: AgentRow, *, shared: bool) -> str | None:
        """Makes this node the owner of an agent, or one of several; returns from which node it was taken over.

        Raises: AgentExists; TransportAway.
        """
        key = key_of(row.id)
        for _ in range(CLAIMS_MAX):
            item = await self._agent_bucket.get(key)
            known = None if item is None else Claim.of(item)
            self._require_free(row, known, shared=shared)
            others = tuple(node for node in known.nodes if node != self.node and self.alive(node)) if known else ()
            gone = [node for node in known.nodes if node != self.node and node not in others] if known else []
            nodes = (*others, self.node)
            epoch = known.epoch + (known.nodes != nodes) if known else 1
            claim = Claim(row, nodes, epoch, shared, 0)
            try:
                revision = await self._agent_bucket.swap(key, claim.document(), item.revision if item else 0)
            except Conflict:
                continue
            self._mine[row.id] = epoch
            self._claims[row.id] = claim._replace(revision=revision)
            return gone[0] if gone and not others else None
        raise AgentExists(f"other nodes keep changing the registration of {row.id}", remedy="register it again")

    def _require_free(self, row: AgentRow, known: Claim | None, *, shared: bool) -> None:
        if known is None:
            return
        if known.row.tenant != row.tenant:
            raise AgentExists(
                f"agent {row.id} belongs to another tenant",
                remedy="an id stays with its tenant for ever: choose another id",
            )
        others = [node for node in known.nodes if node != self.node and self.alive(node)]
        if others and not (shared and known.shared):
            raise AgentExists(
                f"agent {row.id} is live on the node {others[0]}",
                remedy="unregister it there, or register it with shared=True on both to spread its work",
            )

    async def release(self, row: AgentRow) -> None:
        """An agent of ours is unregistered; the id stays with its tenant. Raises: TransportAway."""
        key = key_of(row.id)
        for _ in range(CLAIMS_MAX):
            item = await self._agent_bucket.get(key)
            known = None if item is None else Claim.of(item)
            if item is None or known is None or self.node not in known.nodes:
                break
            nodes = tuple(node for node in known.nodes if node != self.node)
            left = Claim(row._replace(live=bool(nodes)), nodes, known.epoch + 1, known.shared, 0)
            with suppress(Conflict):
                await self._agent_bucket.swap(key, left.document(), item.revision)
                break
        self._mine.pop(row.id, None)

    async def look_up(self, agent_id: str) -> None:
        """Asks for one registration that may be newer than what was told. Raises: TransportAway."""
        item = await self._agent_bucket.get(key_of(agent_id))
        if item is not None:
            self._agent_told(item)

    def _agent_told(self, item: Item) -> None:
        claim = Claim.of(item)
        if claim is None:
            return
        agent_id = claim.row.id
        before = self._claims.get(agent_id)
        if key_of(agent_id) != item.key or (before is not None and before.revision >= claim.revision):
            return
        self._claims[agent_id] = claim
        if self.node in claim.nodes:
            return  # ours, or remembered by this home from before
        if agent_id in self._mine:
            del self._mine[agent_id]
            logger.error("agent %s was taken over by %s: this node's lease had lapsed", agent_id, claim.nodes)
            self.on_lost(agent_id)
        if claim.row.live:
            self._desk.registry.settle(claim.row, claim.nodes)
            self.on_arrived(agent_id)
        else:
            self._desk.registry.depart(agent_id)

    def nodes_of(self, agent_id: str) -> tuple[str, ...]:
        """Every node that has an agent, this one too."""
        claim = self._claims.get(agent_id)
        return () if claim is None else claim.nodes

    def infos(self) -> list[NodeInfo]:
        """The nodes, for status."""
        now = self._desk.clock.monotonic()
        return [
            NodeInfo(name, self.alive(name), round(now - (self._renewed if name == self.node else node.heard), 3))
            for name, node in sorted(self._nodes.items())
        ]


def key_of(agent_id: str) -> str:
    """The key of an agent's registration: ids have dots in places where keys cannot."""
    return agent_id.replace(".", "=")


async def _nothing_to_see() -> None:
    """Before anything is shared."""


def _nobody_cares(_agent_id: str) -> None:
    """Before anybody listens."""
