"""All that can be plugged in, on one page, and the plain values that cross these borders.

Whoever fills a port is chosen once, in `wiring.py`. Every implementation of a port passes the same suite
in `tests/contract/`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

from enhanced_agent_bus.errors import BusError
from enhanced_agent_bus.message import Envelope, Message
from enhanced_agent_bus.outcome import WitnessInfo
from enhanced_agent_bus.verdict import Admitted, Answer, Pass, Recorded, Refusal


@runtime_checkable
class Gate(Protocol):
    """A check of the user's own. All gates must pass, before the policy is asked; none of them can admit."""

    @property
    def name(self) -> str: ...

    async def check(self, message: Message) -> Pass | Refusal: ...


class Clock(Protocol):
    """Time, handed in, so that a run can be repeated."""

    def now_us(self) -> int:
        """Microseconds since 1970, UTC: what records and messages carry."""
        ...

    def monotonic(self) -> float:
        """Seconds that never step back: deadlines, cache ages."""
        ...

    def policy_time(self) -> datetime:
        """The time that policies see (UTC); fixed by `eab run --at`."""
        ...

    def boot(self) -> str:
        """Names this start of the machine, so that monotonic times can be compared; empty where it has no name."""
        ...


# --- the policy decision point -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Loaded:
    """A constitution that an engine is ready to decide under."""

    digest: str
    revision: int
    name: str
    not_after: str | None  # RFC 3339 UTC
    signed: bool
    rules: tuple[str, ...]
    read_paths: tuple[tuple[str, ...], ...]  # what the policy reads of the input; () is the whole of it
    cacheable: bool  # False when a policy module says `with`
    facts_read: bool
    source: str  # "folder" or "bundle"


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a constitution cannot be activated, at which place, and what to write instead."""

    reason: str
    message: str
    file: str = ""
    row: int = 0
    col: int = 0
    text: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Checked:
    """The result of every activation check of contract §3 on one folder or bundle."""

    ok: bool
    digest: str
    revision: int
    name: str
    not_after: str | None
    signed: bool
    rules: tuple[str, ...]
    read_paths: tuple[tuple[str, ...], ...]
    widened: tuple[Mapping[str, Any], ...]
    cacheable: bool
    problems: tuple[Problem, ...]
    tests: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[Problem, ...] = ()  # only when asked for; `reason` is the kind


@dataclass(frozen=True, slots=True)
class Verified:
    """Whether one of the trusted keys has signed a bundle; `reason` is unsigned or bad_signature where none has."""

    ok: bool
    digest: str
    reason: str
    message: str
    key: int  # which of them, from 0


class PolicyEngine(Protocol):
    """Decides: a constitution's digest and an input document in, the decision document out."""

    @property
    def label(self) -> Mapping[str, str]:
        """What decided, for the log: name, OPA version, digest of the capabilities file. Replaced, never edited."""
        ...

    @property
    def weakenings(self) -> Sequence[str]:
        """What is weaker about this engine than deciding in place, as far as it is known by now."""
        ...

    async def load(self, path: Path) -> Loaded:
        """Makes a constitution ready. Raises: ConstitutionRejected."""
        ...

    async def check(self, path: Path) -> Checked: ...

    async def pack(self, path: Path, out: Path) -> str:
        """Writes the deterministic bundle of a folder or bundle; returns its constitutional hash."""
        ...

    async def hash(self, path: Path) -> str:
        """The constitutional hash of a folder or bundle. Raises: ConstitutionRejected."""
        ...

    async def verify(self, path: Path, keys: Sequence[str]) -> Verified:
        """Verifies the signature of a bundle with public keys (PEM). Raises: ConstitutionRejected, when unreadable."""
        ...

    async def decide(self, digest: str, tenant: str, document: bytes, timeout_seconds: float) -> Answer:
        """Answers within the timeout, always with a value: nothing that goes wrong here is an allow."""
        ...

    async def drop(self, digest: str) -> None: ...

    async def close(self) -> None: ...


class Marks(Protocol):
    """The high-water mark of signed constitutions: {"revision", "digest"}, kept apart from the ledger."""

    def read_mark(self) -> Mapping[str, Any] | None: ...

    def write_mark(self, mark: Mapping[str, Any]) -> None:
        """Durable when it returns. Raises: OSError."""
        ...


class Runs(Protocol):
    """Which handlers are running, in a place that outlives a process that is killed. Of no weight for the promise."""

    def interrupted(self) -> Collection[int]:
        """The rows (`StoredMessage.seq`) that were in handlers when the last process ended."""
        ...

    def forget(self) -> None:
        """Those are dealt with."""
        ...

    def begin(self, row: int) -> int:
        """Notes a handler run; what it returns is for `end`."""
        ...

    def end(self, slot: int) -> None: ...


class SignedNote(NamedTuple):
    """A checkpoint as it was signed: the first `size` records of the log named `origin` have this root."""

    origin: str
    size: int
    root: bytes
    text: str


class Witness(Protocol):
    """A place outside the home that is given signed checkpoints. Its methods block, in a thread of their own.

    Raises: OSError (a timeout among them), when it does not answer or does not take it.
    """

    @property
    def url(self) -> str: ...

    def newest(self, origin: str) -> SignedNote | None:
        """The newest checkpoint of a log that is there; None where there is none, or nobody can say."""
        ...

    def take(self, note: SignedNote) -> None:
        """Keeps a checkpoint, durably as far as this kind of place can, when it returns."""
        ...

    def notes(self) -> list[SignedNote] | None:
        """All that are there, of every log; None where that cannot be read back."""
        ...

    def stop(self) -> None:
        """Lets go, as well as it can, of what is under way; called from another thread, at the end."""
        ...


class Checkpoints(Protocol):
    """Whoever hears of signed checkpoints once they are in the home."""

    def signed(self, note: str) -> None:
        """Called by the writer's thread; returns at once."""
        ...

    async def close(self) -> None:
        """The last one was told; takes a bounded time."""
        ...


class Said(NamedTuple):
    """A decision on its way to the disk, as telemetry hears of it. It has nothing of a payload."""

    verdict: str
    code: str | None
    why: str  # as in the record: send, retry, replay, ...
    attempt: int
    decision_id: str
    constitution: str
    revision: int
    since_us: int  # when it was begun to be decided


class Load(NamedTuple):
    """What is under way in a bus at one instant."""

    accounting: Mapping[str, int]
    oldest_seconds: float  # for how long the oldest queued message has waited; 0 when there is none


class Listener(Protocol):
    """Hears what passes on the road: telemetry. Called on the loop; returns at once, raises and changes nothing.

    What `decided` answers of a message is handed back with all that is heard of it later; None where it was not heard.
    """

    def decided(self, envelope: Envelope, said: Said, trace: object) -> object:
        """A decision, in the task that asked for it; `trace` is None at a message's first one."""
        ...

    def recorded(self, trace: object, seq: int, error: BusError | None) -> None:
        """That decision is durable, or could not be written."""
        ...

    def starting(self, envelope: Envelope, attempt: int, trace: object) -> object:
        """A handler is about to run, in this task or a thread of it; what is answered is handed to `ran`."""
        ...

    def ran(self, run: object, code: str | None) -> None:
        """It has ended, in the same task; the code is None when it did its work."""
        ...

    def ended(
        self, envelope: Envelope, state: str, code: str | None, duration_us: int, seq: int, error: BusError | None
    ) -> None:
        """An outcome is durable (also of an attempt that failed), or could not be written."""
        ...

    def watch(self, look: Callable[[], Load]) -> None:
        """What may be asked, from any thread, for what is under way."""
        ...

    def close(self) -> None:
        """Nothing more is said, and there is nothing left to look at."""
        ...


class Witnesses(Protocol):
    """How the witnesses of a bus stand."""

    @property
    def weakenings(self) -> Sequence[str]: ...

    def infos(self) -> list[WitnessInfo]: ...


# --- the ledger ----------------------------------------------------------------------------------------------------


class FactChange(NamedTuple):
    """The new value of one fact. `value` is JSON bytes as the fact book wrote them; None removes the row."""

    scope: str  # "agent" (a sender or recipient), "conversation" or "tenant"
    owner: str
    key: str
    value: bytes | None


class Opening(NamedTuple):
    """A message row to insert with its first allow or hold; its `seq` is that record's."""

    envelope: Envelope
    state: str  # queued, parked or held
    decision_id: str
    added: bytes  # JSON: what this message has added to facts (so that it counts once)
    holds: bytes  # JSON: what it waits for when held
    hold_expires_us: int


class Move(NamedTuple):
    """The new state of a message that is already in the ledger."""

    row: int  # seq of its opening record
    was: str
    state: str
    attempts: int
    due_us: int  # when the next attempt is due; 0 when none is
    since_us: int
    code: str | None
    error: str | None  # the error's type, never its text
    decision_id: str
    added: bytes
    expires_us: int
    reply_id: str | None
    forget: bool  # remove payload and headers now (store_payloads = false); the salt tells the same content again
    notes: bytes = b"{}"  # JSON: what it is held for, who has approved, what is redacted


class AgentRow(NamedTuple):
    """A registration as the home keeps it."""

    id: str
    tenant: str
    roles: tuple[str, ...]
    capabilities: tuple[str, ...]
    topics: tuple[str, ...]
    constitution: str
    live: bool  # False after unregister; the id stays with its tenant


class Erased(NamedTuple):
    """What goes with an erasure, by the seqs of the records that it stands beside."""

    payloads: tuple[int, ...] = ()  # with headers and salts
    texts: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()  # of messages: what they had added to facts, and what they were held for


class Content(NamedTuple):
    """What is kept beside the records of one message; `message_id` is empty where it belongs to none."""

    message_id: str
    conversation: str
    sender: str
    recipient: str
    state: str | None  # None for one that was never accepted
    erased: Erased
    elsewhere: tuple[str, ...] = ()  # origins of the other nodes that were given it, or gave it to us, as far as known


@dataclass(slots=True)
class Entry:
    """One record, and all that changes in the same transaction.

    `done(seq, None)` is called on the loop once it is durable: in the order of `put` among the entries of one tenant,
    and after all that was put before where the entry is of none. `done(-1, error)` is, when it is not. `certain` marks
    what has happened whether or not it can be written (an outcome): it is kept and written after the store has been
    mended, and `done` waits for that.
    """

    kind: str
    #: What the kind adds to v, seq, kind, at, bus and node (contract §10), or how that is made.
    fields: dict[str, Any] | Callable[[], dict[str, Any]]
    message_id: str | None = None
    opening: Opening | None = None
    move: Move | None = None
    keep: Envelope | None = None  # payload, headers and salt to keep for a message that was refused
    facts: Sequence[FactChange] = ()
    texts: tuple[bytes, bytes] | None = None  # (salt, canonical JSON) of what stands apart from this record
    agent: AgentRow | None = None
    settings: Mapping[str, str] | None = None  # rows of the home's own key-value table
    erased: Erased | None = None
    certain: bool = False
    admitted: Admitted | None = None  # the allow that this entry records
    recorded: Recorded | None = None  # the ledger's ticket for it, made once it is durable
    done: Callable[[int, BusError | None], None] | None = None
    tenant: str = ""  # of the message's sender; none where it concerns the bus


class StoredMessage(NamedTuple):
    """A message row, as read back. `envelope.body` and `.headers` are empty when they were forgotten."""

    seq: int
    envelope: Envelope
    state: str
    attempts: int
    due_us: int
    since_us: int
    code: str | None
    error: str | None
    decision_id: str
    added: bytes
    holds: bytes
    hold_expires_us: int
    reply_id: str | None
    has_content: bool
    expires_us: int  # as renewed by the last replay; the envelope has the first one
    notes: bytes = b"{}"  # JSON: what it is held for, who has approved, what is redacted


class Ledger(Protocol):
    """Records, message states, facts and registrations, changed together and durable before `done` is called.

    One writer; `put` never blocks and keeps order. When the store fails, every entry that is not `certain` ends with
    AuditUnavailable, `on_failure` is called before any of their `done`s (what was derived from them in memory is
    void), and the store is closed, reopened and verified before it takes the next entry. An entry that failed and is
    found on reopening after all (a doubtful record) is ended there as discarded.
    """

    @property
    def bus(self) -> str: ...

    @property
    def node(self) -> str: ...

    @property
    def weakenings(self) -> tuple[str, ...]: ...

    on_failure: Callable[[], None] | None

    def put(self, entry: Entry) -> None: ...

    def size(self) -> int:
        """How many records are durable: the next seq."""
        ...

    def accounting(self) -> dict[str, int]:
        """How many messages are in each state of the contract, `accepted` being their sum."""
        ...

    def find(self, message_id: str) -> StoredMessage | None: ...

    def waiting(
        self, states: Sequence[str], *, recipient: str | None = None, after_seq: int = -1, limit: int = 1000
    ) -> list[StoredMessage]:
        """Messages in these states in seq order, a page at a time."""
        ...

    def facts(self, scope: str, owner: str) -> dict[str, bytes]: ...

    def fact_rows(self, scope: str | None = None, owner: str | None = None) -> list[FactChange]: ...

    def record(self, seq: int) -> bytes:
        """The stored bytes of one record. Raises: KeyError."""
        ...

    def decision(self, message_id: str, decision_id: str) -> bytes | None:
        """The stored bytes of one decision on a message; None when there is none, or it is kept no more."""
        ...

    def newest_outcome(self, message_id: str) -> int | None:
        """The seq of a message's newest outcome; None when there is none, or it is kept no more."""
        ...

    def texts(self, seq: int) -> bytes | None:
        """What stands apart from one record, as it was put; None when there is nothing, or no longer."""
        ...

    def agents(self) -> list[AgentRow]: ...

    def setting(self, key: str) -> str | None: ...

    async def checkpoint(self) -> str:
        """Signs a checkpoint of all that was put until now, durable when it returns. Raises: AuditUnavailable."""
        ...

    async def rotate_key(self) -> str:
        """Signs with a new key from now on, recorded under both; returns its vkey. Raises: AuditUnavailable."""
        ...

    async def contents(
        self, *, message: str | None = None, conversation: str | None = None, agent: str | None = None
    ) -> list[Content]:
        """What is kept of one message, of a conversation, or of all that an agent sent or was sent; ended or not."""
        ...

    async def contents_before(
        self, kind: str, before_us: int, *, after_seq: int = -1, limit: int = 200
    ) -> tuple[list[Content], int]:
        """A page of the "payloads" or "texts" recorded before an instant, and its last seq; -1 after the last page."""
        ...

    async def clean(self) -> None:
        """Returns once no byte of what was erased or forgotten is left anywhere in the home.

        Raises: AuditUnavailable, when somebody reads older pages of the log for too long; it is tried again then.
        """
        ...

    async def close(self) -> None:
        """Writes what is queued, a last checkpoint, and releases the home."""
        ...


# --- between nodes -------------------------------------------------------------------------------------------------


class Letter(NamedTuple):
    """What one node gives to another. Two letters of one id into one box are one letter, as long as the window is.

    Several nodes may serve one box. The first word of a box is its kind, and each kind has room of its own: what an
    agent is sent is settled once there was room for a reply ("node.") and for word of its end ("notices."), a reply
    once there was room for word of its end, and that at once; so a box that nobody empties holds up no other kind.

    A server that is started again may not know any longer what was settled before; then `Handed.times` says so.
    """

    box: str  # who it is for: "agent.<id>", "node.<name>" or "notices.<name>" ([A-Za-z0-9._-]{1,160})
    id: str  # [!-~]{1,256}
    body: bytes


class Handed(Protocol):
    """A letter in this node's hands until it is settled. One that never is comes again, here or on another node."""

    @property
    def letter(self) -> Letter: ...

    @property
    def times(self) -> int:
        """How often it has been handed out, from 1; more where it is not certain that this is the first time."""
        ...

    @property
    def taken_us(self) -> int:
        """When the transport took it, in microseconds since 1970 by the transport's own clock."""
        ...

    async def done(self) -> None:
        """It is dealt with, and never comes again. Raises: TransportAway; then it may, and this can be tried again."""
        ...

    async def again(self, seconds: float = 0.0) -> None:
        """It is to come again after a pause, here or elsewhere. Raises: TransportAway; then it comes by itself."""
        ...

    def working(self) -> None:
        """Somebody is still at it: it does not come again for a while. Returns at once."""
        ...


class Item(NamedTuple):
    """One key of a bucket. A revision is given once in a bucket, and later ones are higher."""

    key: str
    value: bytes | None  # None: it was removed
    revision: int


class Conflict(Exception):
    """A key does not have the revision that its new value was made from."""


#: Each bucket that a bus opens. A node is allowed these on a server (`eab nats permissions`), and no other.
BUCKETS: Final = ("agents", "bundles", "bus", "checkpoints", "constitution", "facts", "nodes", "stops")


class Bucket(Protocol):
    """Keys and values that all nodes of a bus share, each changed by one node at a time.

    Keys match [A-Za-z0-9._=/-]{1,200}, without a dot at an end or beside another; others are a ValueError.
    Raises: TransportAway; what was to be set may have been set or not.
    """

    async def get(self, key: str) -> Item | None:
        """As it is now on the server; None where there is no such key, or it was removed."""
        ...

    async def put(self, key: str, value: bytes) -> int:
        """Sets it whatever it was; returns the new revision, durable."""
        ...

    async def swap(self, key: str, value: bytes | None, revision: int) -> int:
        """Sets or removes it if it still has this revision; the new one, durable. Raises: Conflict.

        0 stands for a key that there is not, or that was removed; a removed one also has the revision of its removal.
        """
        ...

    async def watch(self, told: Callable[[Item], None]) -> Callable[[], None]:
        """Tells of all keys that there are before it returns, then of changes, in the order of revisions.

        Of several changes of one key that come close together the newest is told at least; so it is for those during a
        time without connection, removals among them. What it returns ends it.
        """
        ...


class Transport(Protocol):
    """Carries letters between the nodes of a bus, at least once each, and has what they share.

    It decides nothing: a letter may come twice, late, or from somebody who is no node.
    """

    @property
    def url(self) -> str:
        """Where it is, without anything secret."""
        ...

    @property
    def weakenings(self) -> Sequence[str]: ...

    @property
    def connected(self) -> bool: ...

    @property
    def bytes_max(self) -> int:
        """The largest body of a letter that it takes."""
        ...

    async def post(self, letter: Letter) -> None:
        """Takes a letter, durable when it returns. Raises: TransportAway; then it may have been taken or not.

        A server without room is away too, for whoever posts. A name that cannot be is a ValueError, a body that is too
        large ConfigInvalid.
        """
        ...

    async def serve(self, box: str, take: Callable[[Handed], None], *, at_once: int) -> Callable[[], Awaitable[None]]:
        """Hands out the letters of a box, oldest first, at most so many that are not settled; while away, none.

        It may be called while away, and goes on by itself after that. Of several that serve one box each letter goes to
        one; one that is to come again comes out of turn. `take` is called on the loop and returns at once. What this
        returns ends it: what is not settled then comes again, to others at once as far as the transport can.
        """
        ...

    async def bucket(self, name: str) -> Bucket:
        """Makes it where there is none; the name matches [a-z][a-z_]{0,30}. Raises: TransportAway."""
        ...

    def on_change(self, told: Callable[[bool], None]) -> None:
        """Calls it on the loop whenever the connection is lost (False) or there again (True)."""
        ...

    async def close(self) -> None:
        """Ends what is served and watched; whatever is asked of it afterwards is TransportAway."""
        ...
