"""Each node is the witness of the others: it shows its newest signed checkpoint in a shared key, and records theirs.

At most one record of each other node, and one change of our own key, every PACE_SECONDS; a record of a witnessed
checkpoint is no reason for a checkpoint of ours, so that nodes that do nothing else come to rest. Not here: what is a
contradiction (witnessing), and witnesses outside the bus (the room `witness`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from enhanced_agent_bus.audit.notes import one_note
from enhanced_agent_bus.errors import AuditUnavailable, BusClosed, TransportAway
from enhanced_agent_bus.letters.dsse import BadLetter, Signs
from enhanced_agent_bus.letters.vouching import Vouching, open_vouching, seal_vouching
from enhanced_agent_bus.ports import Bucket, Item, SignedNote, Transport
from enhanced_agent_bus.road.desk import Desk
from enhanced_agent_bus.road.roster import Roster
from enhanced_agent_bus.road.witnessing import Witnessing

CHECKPOINTS: Final = "checkpoints"
PACE_SECONDS: Final = 1.0
#: For so long the others may lack what is signed before this log counts as witnessed by nobody.
BEHIND_SECONDS: Final = 60.0

logger = logging.getLogger(__name__)


class VouchingNodes:
    """This node's log among the others'."""

    def __init__(
        self,
        desk: Desk,
        transport: Transport,
        signer: Signs,
        roster: Roster,
        witnessing: Witnessing,
        newest: Callable[[], str | None],
        pace_seconds: float = PACE_SECONDS,
    ) -> None:
        """`newest` is our newest signed checkpoint; None where nothing is signed."""
        self._desk = desk
        self._transport = transport
        self._signer = signer
        self._roster = roster
        self._witnessing = witnessing
        self._newest = newest
        self._pace_seconds = pace_seconds
        self._told: dict[str, bytes] = {}  # by node, what has not been looked at
        self._theirs: dict[str, int] = {}  # how far each other log has ours
        self._has: dict[str, int] = {}  # how far we have theirs
        self._shown: Vouching | None = None
        self._size = 0  # of our newest checkpoint
        self._lacking_since: float | None = None
        self._bucket: Bucket
        self._task: asyncio.Task[None] | None = None
        self._stop: Callable[[], None] | None = None

    @property
    def witnessed(self) -> bool:
        """Whether another node has our newest checkpoint on record, or had the one before until a moment ago."""
        if not any(self._theirs.values()):
            return False
        since = self._lacking_since
        return since is None or self._desk.clock.monotonic() - since <= BEHIND_SECONDS

    async def start(self) -> None:
        """Raises: TransportAway."""
        self._bucket = await self._transport.bucket(CHECKPOINTS)
        self._stop = await self._bucket.watch(self._hear)
        self._task = asyncio.create_task(self._keep_up(), name="eab-vouching")

    async def stop(self) -> None:
        if self._stop is not None:
            self._stop()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            with suppress(TransportAway):
                await self._show()

    def _hear(self, item: Item) -> None:
        if item.key != self._roster.node and item.value:
            self._told[item.key] = item.value

    async def _keep_up(self) -> None:
        while True:
            with suppress(TransportAway, AuditUnavailable, BusClosed):  # what was not done is done the next time
                for node in list(self._told):
                    await self._look(node)
                await self._show()
            await asyncio.sleep(self._pace_seconds)

    async def _look(self, node: str) -> None:
        """What one node shows: its checkpoint goes on record, and how far it has ours is noted."""
        try:
            said = open_vouching(self._told[node], self._roster.keys)
        except BadLetter as bad:
            if bad.code != "identity_unproven":  # its key may be heard of yet
                del self._told[node]
                logger.warning("the checkpoint of %s cannot be believed: %s", node, bad)
            return
        del self._told[node]
        if said.origin.rpartition("/")[2] != node:
            return
        self._theirs[said.origin] = said.has.get(self._roster.origin, 0)
        self._measure()
        if not said.note:
            return
        try:
            note = _note_of(said)
            await self._witnessing.witness(said.note)
        except ValueError as error:
            logger.error("the checkpoint that %s shows is not recorded: %s", said.origin, error)  # noqa: TRY400
            return
        self._has[said.origin] = note.size

    async def _show(self) -> None:
        """Raises: TransportAway."""
        note = self._newest() or ""
        if note:
            self._size = one_note(note).size
            self._measure()
        showing = Vouching(self._roster.origin, note, dict(sorted(self._has.items())))
        if showing != self._shown:
            await self._bucket.put(self._roster.node, seal_vouching(self._signer, showing))
            self._shown = showing

    def _measure(self) -> None:
        if max(self._theirs.values(), default=0) >= self._size:
            self._lacking_since = None
        elif self._lacking_since is None:
            self._lacking_since = self._desk.clock.monotonic()


def _note_of(said: Vouching) -> SignedNote:
    """Raises: ValueError, for what is no checkpoint of the node that shows it."""
    note = one_note(said.note)
    if note.origin != said.origin:
        raise ValueError(f"it is of {note.origin}")
    return note
