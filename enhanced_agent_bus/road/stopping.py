"""The kill switch: stops an agent, a tenant or everything, at once here, and then on the other nodes.

What is stopped on one node stands in one shared key, and why a stop has ended in another. A node that cannot reach
them stops by itself all the same, and says so to the others once it can; it resumes only together with them. Not here:
who asks what is stopped (sending, carriage, inbox).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple

import orjson

from enhanced_agent_bus.admission.stops import ALL, SETTING, STOPS_MAX, Key, Stop, check_target, in_words
from enhanced_agent_bus.errors import AuditUnavailable, TransportAway
from enhanced_agent_bus.outcome import Stopped
from enhanced_agent_bus.ports import Bucket, Conflict, Entry, Item, Transport
from enhanced_agent_bus.road.desk import Desk
from enhanced_agent_bus.road.mailroom import Mailroom
from enhanced_agent_bus.verdict import Refusal

STOPS: Final = "stops"  # the bucket, and the key with all that is stopped
RESUMED: Final = "resumed"  # the key with why the newest stops ended, written before they are taken from the other
RESUMED_MAX: Final = 100
REASON_CHARS_MAX: Final = 300
SHARE_SECONDS: Final = 2.0  # for the other nodes to be told while an operator waits
AGAIN_SECONDS: Final = 0.5
AGAIN_SECONDS_MAX: Final = 5.0
CHANGES_MAX: Final = 20  # in a row, when other nodes change the same key at the same time


class Stopping:
    """Stops and resumes, on record."""

    def __init__(self, desk: Desk, mailroom: Mailroom) -> None:
        self._desk = desk
        self._mailroom = mailroom
        self._turn = asyncio.Lock()
        self._bucket: Bucket | None = None  # where there are other nodes
        self._heard = 0  # the revision of the key
        self._heard_why = 0
        self._why: list[_Resumed] = []  # the newest first
        self._unreadable = False
        self._resuming: set[Key] = set()  # recorded by whoever asked for it
        self._unwatch: Callable[[], None] | None = None
        self._telling: asyncio.Task[None] | None = None

    async def stop(self, of: str, name: str, *, reason: str, by: str) -> Stopped:
        """Raises: ValueError; AuditUnavailable; TransportAway, when it is stopped on this node alone for now."""
        check_target(of, name)
        if not reason.strip():
            raise ValueError("a stop needs a reason")
        key, stops = (of, name), self._desk.stops
        if len(stops) >= STOPS_MAX and stops.get(key) is None:
            raise ValueError(f"{STOPS_MAX} agents and tenants are stopped, and no more can be kept: stop all")
        stop = Stop(reason[:REASON_CHARS_MAX], by, self._desk.clock.now_us())
        stops.set(key, stop, pending=True)  # from here on, whatever becomes of the record
        away: TransportAway | None = None
        async with self._turn:
            try:
                await self._tell_others()
            except TransportAway as error:
                away = error
            await self._desk.write(self._entry("stopped", key, stop.reason, by))
        if away is not None:
            self._keep_telling()
            raise TransportAway(
                f"{in_words(of, name)} is stopped on this node, and the other nodes could not be told: {away.message}",
                remedy="they are told as soon as they can be reached; until then stop it on each of them",
            )
        return next(one for one in stops if (one.of, one.name) == key)

    async def resume(self, of: str, name: str, *, reason: str, by: str) -> None:
        """Raises: KeyError, when it is not stopped; ValueError; AuditUnavailable; TransportAway, and it stays so."""
        check_target(of, name)
        if not reason.strip():
            raise ValueError("to resume needs a reason")
        key, stops = (of, name), self._desk.stops
        async with self._turn:
            stop = stops.get(key)
            if stop is None:
                raise KeyError(f"{in_words(of, name)} is not stopped")
            self._resuming.add(key)
            try:
                if self._bucket is not None:
                    async with asyncio.timeout(SHARE_SECONDS):
                        await self._say_why(self._bucket, key, stop, reason[:REASON_CHARS_MAX], by)
                        await self._change(self._bucket, key)
                if stops.get(key) is not stop:  # somebody stopped it again meanwhile: that holds
                    return
                stops.remove(key)
                try:
                    await self._desk.write(self._entry("resumed", key, reason[:REASON_CHARS_MAX], by))
                except BaseException:  # cancelled too: in doubt it stays stopped
                    stops.set(key, stop, pending=False)
                    raise
            except TimeoutError:
                raise TransportAway("the other nodes did not answer, so nothing was resumed") from None
            finally:
                self._resuming.discard(key)
        self._mailroom.wake()

    def _entry(self, event: str, key: Key, reason: str, by: str, origin: str | None = None) -> Entry:
        of, name = key
        fields: dict[str, Any] = {"event": event, "agent": name if of == "agent" else None}
        fields |= {"what": {of: name or "the whole bus"}, "reason": reason, "by": by}
        if origin is not None:
            fields["origin"] = origin
        return Entry("agent", fields, settings={SETTING: self._desk.stops.written()})

    # --- several nodes ---------------------------------------------------------------------------------------------

    async def join(self, transport: Transport) -> None:
        """Stops what the others have stopped, and tells them what was stopped here. Raises: TransportAway."""
        bucket = await transport.bucket(STOPS)
        if await bucket.get(STOPS) is None:
            with suppress(Conflict):
                await bucket.swap(STOPS, self._document(self._desk.stops.all()), 0)
        self._unwatch = await bucket.watch(self._hear)
        self._bucket = bucket
        await self._tell_others()

    async def leave(self) -> None:
        if self._unwatch is not None:
            self._unwatch()
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.gather(self._telling, return_exceptions=True)

    async def look(self) -> None:
        """Asks what is stopped. Raises: TransportAway."""
        if self._bucket is not None:
            await self._ask(self._bucket)

    async def _ask(self, bucket: Bucket) -> Item | None:
        """What is stopped, as it is heard now. Why something has ended is asked after it, since it is said before."""
        item = await bucket.get(STOPS)
        if item is not None and item.revision > self._heard:
            if (why := await bucket.get(RESUMED)) is not None:
                self._hear(why)
            self._hear(item)
        return item

    def cut_off(self) -> Refusal | None:
        """Why nothing may be decided here: nobody can read what is stopped."""
        if not self._unreadable:
            return None
        why = "what the nodes have stopped cannot be read in their shared state"
        return Refusal("policy_unavailable", why, "call `eab stop` for what is to be stopped: that writes it anew")

    def _hear(self, item: Item) -> None:
        if item.key == RESUMED and item.revision > self._heard_why:
            self._heard_why, self._why = item.revision, _reasons(item.value)
        if item.key != STOPS or item.revision <= self._heard:
            return
        self._heard = item.revision
        if item.value is None:  # nobody has resumed anything by that
            self._unreadable = False
            return
        try:
            said = _read(item.value)
        except (KeyError, TypeError, ValueError):
            self._unreadable = True
            return
        self._unreadable = False
        stops = self._desk.stops
        for key, (stop, origin) in said.items():
            if stops.get(key) == stop:
                stops.pending.discard(key)
            elif key not in stops.pending:
                stops.set(key, stop, pending=False)
                self._note("stopped", key, stop.reason, stop.by, origin)
        for key, stop in stops.all().items():
            if key not in said and key not in stops.pending and key not in self._resuming:
                stops.remove(key)
                why = next((one for one in self._why if one.ended(key, stop)), None)
                if why is None:
                    self._note("resumed", key, "resumed on another node", "another node")
                else:
                    self._note("resumed", key, why.reason, why.by, why.origin)
                self._mailroom.wake()

    def _note(self, event: str, key: Key, reason: str, by: str, origin: str | None = None) -> None:
        if not self._desk.drained:
            self._desk.ledger.put(self._entry(event, key, reason, by, origin))

    async def _tell_others(self) -> None:
        """Raises: TransportAway."""
        if self._bucket is None or not self._desk.stops.pending:
            return
        try:
            async with asyncio.timeout(SHARE_SECONDS):
                await self._change(self._bucket, None)
        except TimeoutError:
            raise TransportAway(f"no answer within {SHARE_SECONDS:g} s") from None

    def _keep_telling(self) -> None:
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell_later(), name="eab-stops")

    async def _tell_later(self) -> None:
        pause = AGAIN_SECONDS
        while True:
            await asyncio.sleep(pause)
            pause = min(pause * 2, AGAIN_SECONDS_MAX)
            with suppress(TransportAway, AuditUnavailable):
                async with self._turn:
                    told = sorted(self._desk.stops.pending)
                    await self._tell_others()
                    for key in told:
                        stop = self._desk.stops.get(key)
                        if stop is not None:  # from here on it is the nodes' stop, after a restart too
                            await self._desk.write(self._entry("stop_shared", key, stop.reason, stop.by))
                return

    async def _say_why(self, bucket: Bucket, key: Key, stop: Stop, reason: str, by: str) -> None:
        """Raises: TransportAway."""
        ended = _Resumed(*key, stop.since_us, reason, by, self._origin())
        for _ in range(CHANGES_MAX):
            item = await bucket.get(RESUMED)
            said = [ended, *_reasons(item.value if item is not None else None)][:RESUMED_MAX]
            with suppress(Conflict):
                await bucket.swap(RESUMED, orjson.dumps([list(one) for one in said]), item.revision if item else 0)
                return
        raise TransportAway("other nodes keep changing why they resumed")

    async def _change(self, bucket: Bucket, gone: Key | None) -> None:
        """Adds what is pending, or removes one. Raises: TransportAway."""
        stops = self._desk.stops
        for _ in range(CHANGES_MAX):
            item = await self._ask(bucket)
            lost = item is None or self._unreadable
            said = {} if item is None or lost else _read(item.value or b"")
            known = stops.all() if lost else {key: stop for key, (stop, _) in said.items()}
            nodes = {key: origin for key, (_, origin) in said.items()}
            pending = {key: stop for key in stops.pending if (stop := stops.get(key)) is not None}
            wanted = {**known, **pending}
            if gone is not None:
                wanted.pop(gone, None)
            try:
                document = self._document(wanted, nodes | dict.fromkeys(pending, self._origin()))
                self._heard = await bucket.swap(STOPS, document, item.revision if item is not None else 0)
            except Conflict:
                continue
            self._unreadable = False
            stops.pending.difference_update(set(pending) & set(wanted))
            return
        raise TransportAway("other nodes keep changing what is stopped")

    def _origin(self) -> str:
        return f"{self._desk.ledger.bus}/{self._desk.ledger.node}"

    def _document(self, stops: dict[Key, Stop], origins: dict[Key, str] | None = None) -> bytes:
        named = origins or {}
        return orjson.dumps([[*key, *stop, named.get(key) or self._origin()] for key, stop in stops.items()])


class _Resumed(NamedTuple):
    """Why a stop has ended, and on which node somebody said so."""

    of: str
    name: str
    since_us: int  # of the stop
    reason: str
    by: str
    origin: str

    def ended(self, key: Key, stop: Stop) -> bool:
        return ((self.of, self.name), self.since_us) == (key, stop.since_us)


def _reasons(value: bytes | None) -> list[_Resumed]:
    """What can be read; a reason that cannot keeps nobody stopped."""
    try:
        rows = orjson.loads(value or b"[]")
        return [_Resumed(str(of), str(name), int(us), str(why), str(by), str(at)) for of, name, us, why, by, at in rows]
    except (TypeError, ValueError):
        return []


def _read(value: bytes) -> dict[Key, tuple[Stop, str]]:
    """Raises: ValueError, TypeError, for what no node has written."""
    found = {}
    for of, name, reason, by, since_us, origin in orjson.loads(value):
        check_target(of, "" if of == ALL else name)
        found[of, name] = (Stop(str(reason), str(by), int(since_us)), str(origin))
    return found
