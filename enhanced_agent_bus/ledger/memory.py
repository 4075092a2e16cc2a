"""The ledger that keeps nothing: the same port, in memory, for tests and for `open_bus(":memory:")`.

What it holds is bounded: open messages, dead letters, those that ended lately, and the newest records; of messages
whose id the sender gave the first record too, so that the same id again is answered as it was first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Final

from enhanced_agent_bus.errors import AuditUnavailable, BusError
from enhanced_agent_bus.ledger import rows
from enhanced_agent_bus.message import Envelope
from enhanced_agent_bus.outcome import END_STATES, WAITING_STATES
from enhanced_agent_bus.ports import AgentRow, Clock, Content, Entry, Erased, FactChange, Move, Opening, StoredMessage
from enhanced_agent_bus.verdict import Recorded

#: The oldest record goes when there are more.
RECORDS_MAX: Final = 256
#: The message that ended first is forgotten when there are more; dead letters, and those whose id the sender gave (so
#: that it is known when it comes again), are counted apart, the same way. Small, so that what was kept is let go
#: before the collector of cyclic garbage has walked over it, and stays in the CPU's cache.
ENDED_MAX: Final = 256
KEPT_MAX: Final = 10_000
#: Conversations of which nothing is known but how often something was sent.
CONVERSATIONS_MAX: Final = 10_000
_GONE: Final = frozenset(END_STATES) - {"dead_lettered"}
_REMEDY: Final = "nothing was delivered; send again with the same id"


class MemoryLedger:
    """Fills `ports.Ledger` without a disk; `done` is called before `put` returns.

    Records are made into bytes only when they are read, so one that is too large is not noticed before.
    """

    weakenings: tuple[str, ...] = ("memory_ledger",)

    def __init__(self, *, clock: Clock, bus: str = "bus-memory", node: str = "node-memory") -> None:
        self.on_failure: Callable[[], None] | None = None
        self._bus = bus
        self._node = node
        self._now_us = clock.now_us
        self._size = 0
        self._at_us = 0
        self._counts = {"accepted": 0, **dict.fromkeys(WAITING_STATES, 0), **dict.fromkeys(END_STATES, 0)}
        self._seqs: dict[str, int] = {}  # message id to seq
        self._messages: dict[int, tuple[Opening, int]] = {}  # and when it was opened, in seq order
        self._moves: dict[int, Move] = {}  # the newest one of a message
        self._ended: deque[int] = deque()
        self._ended_given: deque[int] = deque()
        self._conversations: deque[str] = deque()  # in the order in which they were first heard of
        self._dead: dict[int, None] = {}  # an ordered set
        self._facts: dict[tuple[str, str], dict[str, bytes]] = {}
        self._agents: dict[str, AgentRow] = {}
        self._settings: dict[str, str] = {}
        #: seq, when, and the entry without what it has done: what hangs on that would be kept with it.
        self._records: deque[tuple[int, int, Entry]] = deque(maxlen=RECORDS_MAX)
        self._firsts: dict[int, tuple[bytes, bytes | None]] = {}  # records of kept messages, and their texts
        self._down: str | None = None
        self._closed = False
        self._certain: list[Entry] = []

    @property
    def bus(self) -> str:
        return self._bus

    @property
    def node(self) -> str:
        return self._node

    def put(self, entry: Entry) -> None:
        if self._down is not None or self._closed:
            self._refuse(entry)
            return
        seq = self._size
        now_us = self._now_us()
        self._at_us = max(self._at_us, now_us)
        opening = entry.opening
        if opening is not None:
            message_id = opening.envelope.id
            if message_id in self._seqs:
                self._tell(entry, BusError(f"there is a message {message_id} already", code="malformed"))
                return
            self._seqs[message_id] = seq
            self._messages[seq] = (opening, self._at_us)
            self._counts["accepted"] += 1
            self._counts[opening.state] += 1
        if entry.move is not None:
            self._move(entry.move)
        if entry.facts:
            for scope, owner, key, value in entry.facts:
                self._fact(scope, owner, key, value)
        if entry.agent is not None:
            self._agents[entry.agent.id] = entry.agent
        if entry.settings:
            self._settings.update(entry.settings)
        if entry.erased is not None:
            self._erase(entry.erased)
        if len(self._records) == RECORDS_MAX:
            self._keep_first(self._records[0])
        self._records.append((seq, self._at_us, entry))
        self._size = seq + 1
        if entry.admitted is not None:
            entry.recorded = Recorded(entry.admitted, seq)
        done, entry.done = entry.done, None
        if done is not None:
            done(seq, None)

    def _move(self, move: Move) -> None:
        row, state = move.row, move.state
        self._counts[move.was] -= 1
        self._counts[state] += 1
        if row not in self._messages:
            return
        self._moves[row] = move
        if move.was == "dead_lettered":
            self._dead.pop(row, None)
        if state == "dead_lettered":
            self._dead[row] = None
            if len(self._dead) > KEPT_MAX:
                self._forget(next(iter(self._dead)))
        elif state in _GONE:
            given = "/" in self._messages[row][0].envelope.id
            ended = self._ended_given if given else self._ended
            ended.append(row)
            if len(ended) > (KEPT_MAX if given else ENDED_MAX):
                self._forget(ended.popleft())

    def _keep_first(self, record: tuple[int, int, Entry]) -> None:
        """A record goes: kept where a message began with it that may be sent again."""
        kept = self._messages.get(record[0])
        if kept is not None and "/" in kept[0].envelope.id:
            texts = record[2].texts
            with suppress(BusError):  # more than a record can hold: it goes like any other
                self._firsts[record[0]] = self._written([record])[0], None if texts is None else texts[1]

    def _forget(self, row: int) -> None:
        self._firsts.pop(row, None)
        self._dead.pop(row, None)
        self._moves.pop(row, None)
        opening, _ = self._messages.pop(row)
        del self._seqs[opening.envelope.id]

    def _fact(self, scope: str, owner: str, key: str, value: bytes | None) -> None:
        facts = self._facts.get((scope, owner))
        if facts is None:
            facts = self._facts[scope, owner] = {}
            if scope == "conversation":
                self._heard_of(owner)
        if value is None:
            facts.pop(key, None)
            if not facts:
                del self._facts[scope, owner]
        else:
            facts[key] = value

    def _heard_of(self, conversation: str) -> None:
        """Forgets the oldest conversation about which nothing was remembered; others stay."""
        self._conversations.append(conversation)
        if len(self._conversations) > CONVERSATIONS_MAX:
            oldest = self._conversations.popleft()
            facts = self._facts.get(("conversation", oldest), {})
            if not facts or (len(facts) == 1 and "" in facts):
                self._facts.pop(("conversation", oldest), None)
            else:
                self._conversations.append(oldest)

    def size(self) -> int:
        return self._size

    def accounting(self) -> dict[str, int]:
        return self._counts.copy()

    def record(self, seq: int) -> bytes:
        """Raises: KeyError, for one that is no longer kept too."""
        first = self._size - len(self._records)
        if seq in self._firsts:
            return self._firsts[seq][0]
        if not first <= seq < self._size:
            raise KeyError(seq)
        return self._written([self._records[seq - first]])[0]

    def decision(self, message_id: str, decision_id: str) -> bytes | None:
        """Among the newest records, and the first ones of given ids."""
        wanted = b'"decision_id":"%b"' % decision_id.encode()
        kept = (item for item in reversed(self._records) if item[2].message_id == message_id)
        bodies = (body for item in kept for body in self._written([item]))
        firsts = (body for body, _ in self._firsts.values())
        return next((body for body in (*bodies, *firsts) if wanted in body), None)

    def newest_outcome(self, message_id: str) -> int | None:
        """Among the newest records."""
        kept = reversed(self._records)
        return next((seq for seq, _, it in kept if it.kind == "outcome" and it.message_id == message_id), None)

    def texts(self, seq: int) -> bytes | None:
        if seq in self._firsts:
            return self._firsts[seq][1]
        first = self._size - len(self._records)
        texts = self._records[seq - first][2].texts if first <= seq < self._size else None
        return None if texts is None else texts[1]

    def records(self) -> list[bytes]:
        """The newest records, as a home would have stored them."""
        return self._written(self._records)

    def _written(self, records: Iterable[tuple[int, int, Entry]]) -> list[bytes]:
        return [
            b'{"v":1,"seq":%d,"kind":"%b","at":"%b","bus":"%b","node":"%b"%b'
            % (
                seq,
                entry.kind.encode(),
                rows.rfc3339(at_us).encode(),
                self._bus.encode(),
                self._node.encode(),
                rows.rest_of_record(entry),
            )
            for seq, at_us, entry in records
        ]

    def find(self, message_id: str) -> StoredMessage | None:
        seq = self._seqs.get(message_id)
        return None if seq is None else self._stored(seq)

    def waiting(
        self, states: Sequence[str], *, recipient: str | None = None, after_seq: int = -1, limit: int = 1000
    ) -> list[StoredMessage]:
        found = (
            self._stored(seq)
            for seq, (opening, _) in self._messages.items()
            if seq > after_seq
            and self._state(seq) in states
            and (recipient is None or opening.envelope.recipient == recipient)
        )
        return list(islice(found, limit))

    def _state(self, seq: int) -> str:
        move = self._moves.get(seq)
        return self._messages[seq][0].state if move is None else move.state

    def _stored(self, seq: int) -> StoredMessage:
        opening, at_us = self._messages[seq]
        envelope, move = opening.envelope, self._moves.get(seq)
        if move is None:
            return StoredMessage(
                seq,
                envelope,
                opening.state,
                0,
                0,
                at_us,
                None,
                None,
                opening.decision_id,
                opening.added,
                opening.holds,
                opening.hold_expires_us,
                None,
                has_content=bool(envelope.body),
                expires_us=envelope.expires_us,
            )
        if move.forget:
            envelope = envelope._replace(body=b"", headers={})
        return StoredMessage(
            seq,
            envelope,
            move.state,
            move.attempts,
            move.due_us,
            move.since_us,
            move.code,
            move.error,
            move.decision_id,
            move.added,
            opening.holds,
            opening.hold_expires_us,
            move.reply_id,
            has_content=bool(envelope.body),
            expires_us=move.expires_us,
            notes=move.notes,
        )

    def facts(self, scope: str, owner: str) -> dict[str, bytes]:
        return dict(sorted(self._facts.get((scope, owner), {}).items()))

    def fact_rows(self, scope: str | None = None, owner: str | None = None) -> list[FactChange]:
        return sorted(
            FactChange(its_scope, its_owner, key, value)
            for (its_scope, its_owner), facts in self._facts.items()
            if scope in (None, its_scope) and owner in (None, its_owner)
            for key, value in facts.items()
        )

    # --- what stands beside records --------------------------------------------------------------------------------

    def _beside(self) -> Iterator[tuple[int, int, str, Envelope | None, bool, bool]]:
        """Of what is kept: seq, when, the message, its envelope where it stands there, and whether there are texts."""
        listed = {seq for seq, _, _ in self._records}
        for seq, (opening, at_us) in self._messages.items():
            if seq not in listed:
                _, texts = self._firsts.get(seq, (b"", None))
                yield seq, at_us, opening.envelope.id, opening.envelope, bool(opening.envelope.salt), texts is not None
        for seq, at_us, entry in self._records:
            envelope = self._messages[seq][0].envelope if seq in self._messages else entry.keep
            has_payload = envelope is not None and bool(envelope.salt)
            yield seq, at_us, entry.message_id or "", envelope, has_payload, entry.texts is not None

    async def contents(
        self, *, message: str | None = None, conversation: str | None = None, agent: str | None = None
    ) -> list[Content]:
        found: dict[str, Content] = {}
        for seq, _, message_id, envelope, has_payload, has_texts in self._beside():
            known = found.get(message_id)
            if known is None and envelope is not None:
                row = self._seqs.get(message_id)
                rows_: tuple[int, ...] = () if row is None else (row,)
                state = None if row is None else self._state(row)
                names = (envelope.conversation, envelope.sender, envelope.recipient)
                known = Content(message_id, *names, state, Erased(rows=rows_))
            if known is not None:
                payloads, texts, rows_ = known.erased
                erased = Erased(payloads + (seq,) * has_payload, texts + (seq,) * has_texts, rows_)
                found[message_id] = known._replace(erased=erased)
        return [
            content
            for content in found.values()
            if message == content.message_id
            or conversation == content.conversation
            or agent in (content.sender, content.recipient)
        ]

    async def contents_before(
        self, kind: str, before_us: int, *, after_seq: int = -1, limit: int = 200
    ) -> tuple[list[Content], int]:
        due: list[Content] = []
        for seq, at_us, message_id, _, has_payload, has_texts in sorted(self._beside(), key=lambda item: item[0]):
            if seq <= after_seq or at_us >= before_us or not (has_payload if kind == "payloads" else has_texts):
                continue
            if len(due) == limit:
                return due, after_seq
            known = next(iter(await self.contents(message=message_id)), Content("", "", "", "", None, Erased()))
            part = Erased((seq,), (), known.erased.rows) if kind == "payloads" else Erased((), (seq,), ())
            due.append(known._replace(erased=part))
            after_seq = seq
        return due, -1

    def _erase(self, erased: Erased) -> None:
        for seq in {*erased.payloads, *erased.rows} & self._messages.keys():
            opening, at_us = self._messages[seq]
            self._messages[seq] = (opening._replace(envelope=_bare(opening.envelope), added=b"[]", holds=b"[]"), at_us)
            if seq in self._moves:
                self._moves[seq] = self._moves[seq]._replace(added=b"[]", notes=b"{}")
        for seq in set(erased.texts) & self._firsts.keys():
            self._firsts[seq] = (self._firsts[seq][0], None)
        for seq, _, entry in self._records:
            if seq in erased.payloads:
                entry.fields = rows.fields_of(entry)  # what makes them later holds the message
                entry.opening = entry.keep = entry.admitted = entry.recorded = None
            if seq in erased.texts:
                entry.texts = None

    async def clean(self) -> None:
        """There are no files."""

    def agents(self) -> list[AgentRow]:
        return [self._agents[agent_id] for agent_id in sorted(self._agents)]

    def setting(self, key: str) -> str | None:
        return self._settings.get(key)

    async def checkpoint(self) -> str:
        raise AuditUnavailable("a log in memory signs no checkpoints", remedy="open a bus with a home on disk")

    async def rotate_key(self) -> str:
        return await self.checkpoint()

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        left, self._certain = self._certain, []
        if left and self.on_failure is not None:
            self.on_failure()
        for entry in left:
            self._tell(entry, AuditUnavailable(f"nothing can be recorded: {self._down}", remedy=_REMEDY))

    # --- for tests: a store that breaks ----------------------------------------------------------------------------

    def break_down(self, why: str = "the disk was taken away") -> None:
        """From now on nothing can be recorded, as when a disk is full. Nothing is ever in doubt here."""
        self._down = why
        if self.on_failure is not None:
            self.on_failure()

    def mend(self) -> None:
        """The store works again; what is certain and could not be written, is written now."""
        self._down = None
        certain, self._certain = self._certain, []
        for entry in certain:
            if (move := entry.move) is not None and move.row in self._messages:
                entry.move = move._replace(was=self._state(move.row))  # whatever was expected when it was put
            self.put(entry)

    def _refuse(self, entry: Entry) -> None:
        if self._closed:
            self._tell(entry, AuditUnavailable("the log is closed", remedy="open the bus anew"))
        elif entry.certain:
            self._certain.append(entry)
        else:
            if self.on_failure is not None:
                self.on_failure()
            self._tell(entry, AuditUnavailable(f"nothing can be recorded: {self._down}", remedy=_REMEDY))

    @staticmethod
    def _tell(entry: Entry, error: BusError) -> None:
        done, entry.done = entry.done, None
        if done is not None:
            done(-1, error)


def _bare(envelope: Envelope) -> Envelope:
    return envelope._replace(body=b"", salt=b"", headers={})
