"""The active constitution of all nodes: a shared key says which it is, and its bundle stands in pieces beside it.

A node decides under what the key names, or not at all. What the key says is never trusted: the bytes are checked, and
taken, as any constitution that is activated here. Not here: how a constitution takes over (charter).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson

from enhanced_agent_bus.admission.constitution import Constitutions
from enhanced_agent_bus.errors import BusError, ConfigInvalid, ConstitutionRejected, TransportAway
from enhanced_agent_bus.ports import Bucket, Conflict, Item, Loaded, Transport
from enhanced_agent_bus.road.charter import Charter
from enhanced_agent_bus.road.desk import Desk
from enhanced_agent_bus.verdict import Refusal

CONSTITUTION: Final = "constitution"  # a bucket of one key
ACTIVE: Final = "active"
BUNDLES: Final = "bundles"  # a bucket of its own: whoever watches a bucket is told of all that is in it
PIECE_BYTES: Final = 256 * 1024
BUNDLE_BYTES_MAX: Final = 64 * 1024 * 1024
AGAIN_SECONDS: Final = 0.2
AGAIN_SECONDS_MAX: Final = 10.0

logger = logging.getLogger(__name__)


class Stored(NamedTuple):
    """Where the bytes of a bundle stand: their sha256 is in the keys, so that a key never has other bytes."""

    digest: str
    sha256: str
    pieces: int

    def keys(self) -> list[str]:
        return [f"bundle/{self.digest}/{self.sha256}/{n}" for n in range(self.pieces)]


NOWHERE: Final = Stored("", "", 0)


class InForce(NamedTuple):
    """What the shared key says. `epoch` grows with each change; `at` is the key's revision."""

    digest: str
    revision: int
    signed: bool
    source: str
    node: str  # that activated it
    epoch: int
    stored: Stored
    older: Stored | None  # of the one that it replaced: whoever was slow may still fetch that
    at: int

    @classmethod
    def of(cls, item: Item) -> InForce:
        """One that no node can have where the key says nothing that can be read."""
        try:
            said = orjson.loads(item.value or b"")
            stored = Stored(str(said["digest"]), str(said["sha256"]), int(said["pieces"]))
            older = None if said["older"] is None else Stored(*said["older"])
            named = (stored.digest, int(said["revision"]), said["signed"] is True, str(said["source"]))
            return cls(*named, str(said["node"]), int(said["epoch"]), stored, older, item.revision)
        except (KeyError, TypeError, ValueError):
            return cls("", 0, signed=False, source="", node="", epoch=0, stored=NOWHERE, older=None, at=item.revision)

    def document(self) -> bytes:
        said: dict[str, Any] = {
            "digest": self.digest,
            "revision": self.revision,
            "signed": self.signed,
            "source": self.source,
            "node": self.node,
            "epoch": self.epoch,
            "sha256": self.stored.sha256,
            "pieces": self.stored.pieces,
            "older": None if self.older is None else list(self.older),
        }
        return orjson.dumps(said)


class Spread:
    """Keeps this node under the constitution of the bus, and brings a new one to the others."""

    def __init__(self, desk: Desk, charter: Charter, constitutions: Constitutions, transport: Transport) -> None:
        self._desk = desk
        self._charter = charter
        self._constitutions = constitutions
        self._transport = transport
        self._node = desk.ledger.node
        self._newest: InForce | None = None
        self._following: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._why = ""  # the newest one cannot be taken
        self._noted: tuple[int, str] | None = None
        self._losses = 0  # of the connection
        self._away = False  # the connection was lost, and the key not read since
        self._looks: set[asyncio.Task[None]] = set()
        self.look_first: Callable[[], Awaitable[None]] = _nothing_else  # what else is shared that decisions go by
        self._unwatch: Callable[[], None] | None = None
        self._bucket: Bucket
        self._bundles: Bucket

    async def take_first(self) -> bool:
        """Before this node has joined: True when it is under the constitution that the bus has. Raises: TransportAway.

        False where the bus has none, or one that cannot be taken here; that is recorded.
        """
        self._bucket = await self._transport.bucket(CONSTITUTION)
        self._bundles = await self._transport.bucket(BUNDLES)
        item = await self._bucket.get(ACTIVE)
        if item is None:
            return False
        newest = self._newest = InForce.of(item)
        kept = orjson.loads(self._desk.ledger.setting("constitution") or "{}")
        try:
            if kept.get("digest") == newest.digest:
                await self._charter.resume(newest.digest, kept["source"])
            else:
                await self._take(newest)
        except ConstitutionRejected as error:
            await self._say_why(newest, error)
            return False
        return True

    async def start(self) -> None:
        """Says what is active where nobody has; from here on this node follows. Raises: TransportAway."""
        if self._charter.candidate is not None:
            await self._charter.roll_back("several_nodes")
        if await self._bucket.get(ACTIVE) is None:
            with suppress(Conflict):
                await self._put(self._desk.admission.active.loaded, None)
        self._transport.on_change(self._connection)
        self._unwatch = await self._bucket.watch(self._hear)
        self._charter.agree = self.agree

    async def stop(self) -> None:
        self._charter.agree = None
        if self._unwatch is not None:
            self._unwatch()
        tasks = [*self._looks, *([self._following] if self._following is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def cut_off(self) -> Refusal | None:
        """Why nothing is decided here now: another constitution is active, or nobody here knows which."""
        newest = self._newest
        if newest is None or (self._away and self._transport.connected):
            return _unavailable("this node was away, and has not heard yet which constitution is active")
        if newest.digest == self._desk.admission.active.digest:
            return None
        if not newest.digest:
            return _unavailable("the nodes' shared state does not say which constitution is active: activate it again")
        why = f": {self._why}" if self._why else ""
        return _unavailable(f"the nodes are under {newest.digest}, which this one has not taken over{why}")

    # --- what the others say -----------------------------------------------------------------------------------------

    async def look(self) -> None:
        """Asks what is active. A node that cannot ask is at the end of its lease soon. Raises: TransportAway."""
        losses = self._losses
        await self.look_first()
        item = await self._bucket.get(ACTIVE)
        self._hear(item or Item(ACTIVE, None, 0 if self._newest is None else self._newest.at + 1))
        self._away = self._away and losses != self._losses

    def _connection(self, connected: bool) -> None:  # noqa: FBT001 - as the port has it
        if not connected:
            self._losses += 1
            self._away = True
            return
        task = asyncio.create_task(self._look_again(), name="eab-look")
        self._looks.add(task)
        task.add_done_callback(self._looks.discard)

    async def _look_again(self) -> None:
        with suppress(TransportAway):  # then the next renewal of the lease asks
            await self.look()

    def _hear(self, item: Item) -> None:
        if item.key != ACTIVE or (self._newest is not None and item.revision <= self._newest.at):
            pass
        else:
            self._newest = InForce.of(item)
            self._why = ""
            self._news.set()
        if self._behind() and (self._following is None or self._following.done()):
            self._following = asyncio.create_task(self._follow(), name="eab-follow")
            self._desk.taking_over = asyncio.get_running_loop().create_future()

    def _behind(self) -> bool:
        newest, current = self._newest, self._desk.admission.current
        if newest is None or not newest.digest or current is None or self._desk.closed:
            return False
        return newest.digest != current.digest

    async def _follow(self) -> None:
        """Until this node is under the newest one."""
        pause = AGAIN_SECONDS
        try:
            while self._behind():
                newest = self._newest
                assert newest is not None
                self._news.clear()
                try:
                    await self._take(newest)
                except BusError as error:
                    self._why = error.message
                    if isinstance(error, ConstitutionRejected):
                        await self._say_why(newest, error)
                    self._go_on()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(pause):
                            await self._news.wait()
                            pause = AGAIN_SECONDS / 2
                    pause = min(pause * 2, AGAIN_SECONDS_MAX)
        finally:
            self._go_on()

    def _go_on(self) -> None:
        """Whoever waits with a message need not wait any more: it is decided, or refused."""
        waits, self._desk.taking_over = self._desk.taking_over, None
        if waits is not None and not waits.done():
            waits.set_result(None)

    async def _take(self, newest: InForce) -> None:
        """Raises: ConstitutionRejected; TransportAway; AuditUnavailable."""
        with tempfile.TemporaryDirectory(prefix="eab-bundle-") as folder:
            path = Path(folder) / f"{newest.digest[:16]}.tar.gz"
            await asyncio.to_thread(path.write_bytes, await self._fetch(newest.stored))
            origin = f"{self._desk.ledger.bus}/{newest.node}"
            await self._charter.follow(path, newest.digest, newest.source, origin)
        logger.info("took %s over, which the node %s activated", newest.digest, newest.node)

    async def _fetch(self, stored: Stored) -> bytes:
        """Raises: ConstitutionRejected, where the bytes are not all there or are others; TransportAway."""
        found = bytearray()
        for key in stored.keys()[: BUNDLE_BYTES_MAX // PIECE_BYTES]:
            item = await self._bundles.get(key)
            if item is None or item.value is None:
                break
            found += item.value
        if hashlib.sha256(found).hexdigest() != stored.sha256:
            raise ConstitutionRejected(
                f"the bundle of {stored.digest} is not whole in the nodes' shared state",
                reason="invalid",
                remedy="activate it again, on a node that has it",
                digest=stored.digest,
            )
        return bytes(found)

    async def _say_why(self, newest: InForce, error: ConstitutionRejected) -> None:
        """Records once what cannot be taken, and why."""
        self._why = error.message
        if self._noted == (newest.epoch, error.reason):
            return
        logger.error("this node decides nothing: %s, which is active, was rejected: %s", newest.digest, error.message)
        with suppress(BusError):  # nothing is decided in any case
            await self._charter.note_rejected(newest.digest, error, f"{self._desk.ledger.bus}/{newest.node}")
            self._noted = (newest.epoch, error.reason)

    # --- what this node says -----------------------------------------------------------------------------------------

    def known(self) -> InForce | None:
        """What was active when an activation began: only that is replaced by it."""
        return self._newest

    async def agree(self, loaded: Loaded, known: object) -> None:
        """Makes it the active one of all nodes, unless another was quicker.

        Raises: ConstitutionRejected; TransportAway, and then it may have become the active one all the same.
        """
        assert known is None or isinstance(known, InForce)
        await self.look()
        newest = self._newest
        if newest is not None and newest.digest == loaded.digest:
            return
        if newest is not None:
            _require_not_older(loaded, newest)
        try:
            if newest is not known:
                raise Conflict  # noqa: TRY301 - as if it had been asked a moment later
            await self._put(loaded, newest)
        except Conflict:
            await self.look()
            newest = self._newest
            if newest is None or newest.digest != loaded.digest:
                raise _overtaken(loaded, newest) from None

    async def _put(self, loaded: Loaded, before: InForce | None) -> None:
        """Raises: Conflict; TransportAway; ConfigInvalid."""
        bundle = await self._constitutions.bundle(loaded.digest)
        if len(bundle) > BUNDLE_BYTES_MAX:
            raise ConfigInvalid(
                f"the bundle of {loaded.digest} has {len(bundle)} bytes, {BUNDLE_BYTES_MAX} are allowed",
                remedy="make it smaller",
            )
        pieces = [bundle[start : start + PIECE_BYTES] for start in range(0, len(bundle), PIECE_BYTES)]
        stored = Stored(loaded.digest, hashlib.sha256(bundle).hexdigest(), len(pieces))
        for key, piece in zip(stored.keys(), pieces, strict=True):
            await self._bundles.put(key, piece)
        named = (loaded.digest, loaded.revision, loaded.signed, loaded.source, self._node)
        epoch, older, at = (1, None, 0) if before is None else (before.epoch + 1, before.stored, before.at)
        if before is not None and not before.digest and await self._bucket.get(ACTIVE) is None:
            at = 0  # it was removed
        document = InForce(*named, epoch, stored, older, 0).document()
        revision = await self._bucket.swap(ACTIVE, document, at)
        self._hear(Item(ACTIVE, document, revision))
        if before is not None and before.older not in (None, stored, older):
            await self._forget(before.older)

    async def _forget(self, stored: Stored | None) -> None:
        """Nobody needs these bytes any more. Where they cannot be removed now they stay."""
        for key in stored.keys() if stored is not None else ():
            with suppress(TransportAway, Conflict):
                item = await self._bundles.get(key)
                if item is not None:
                    await self._bundles.swap(key, None, item.revision)


async def _nothing_else() -> None:
    """Where nothing else is shared."""


def _unavailable(why: str) -> Refusal:
    return Refusal("policy_unavailable", why, "see `eab status` on this node; it goes on by itself once it has it")


def _require_not_older(loaded: Loaded, newest: InForce) -> None:
    """Raises: ConstitutionRejected. What is signed is followed by what is signed, and newer, whichever node asks."""
    if not newest.signed:
        return
    about: dict[str, Any] = {"digest": loaded.digest, "revision": loaded.revision}
    named = f"{newest.digest} (revision {newest.revision}) is active on the nodes, and signed"
    if not loaded.signed:
        remedy = "set constitution.trust on this node too, and activate a signed bundle"
        raise ConstitutionRejected(f"{named}; {loaded.digest} is not", reason="unsigned", remedy=remedy, **about)
    if loaded.revision <= newest.revision:
        reason = "rollback" if loaded.revision < newest.revision else "revision_reused"
        what = f"{named}; {loaded.digest} has revision {loaded.revision}"
        raise ConstitutionRejected(what, reason=reason, remedy="sign it under a higher revision", **about)


def _overtaken(loaded: Loaded, newest: InForce | None) -> ConstitutionRejected:
    who = f"the node {newest.node} activated {newest.digest}" if newest is not None else "another was activated"
    return ConstitutionRejected(
        f"{who} while {loaded.digest} was being activated here",
        reason="overtaken",
        remedy="that one is active now: activate yours again if it is to follow it",
        digest=loaded.digest,
        revision=loaded.revision,
    )
