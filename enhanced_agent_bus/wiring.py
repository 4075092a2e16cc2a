"""`open_bus`: settings in, every port filled, opened in order, closed in reverse. Here alone all sides meet."""

from __future__ import annotations

import json
import os
import random
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from enhanced_agent_bus import faultpoints
from enhanced_agent_bus.admission.agreeing import SharedAdmission
from enhanced_agent_bus.admission.chain import Admission
from enhanced_agent_bus.admission.constitution import Constitutions
from enhanced_agent_bus.admission.facts import FactBook
from enhanced_agent_bus.admission.seal import Randomness
from enhanced_agent_bus.admission.shared import BUCKET as SHARED_FACTS
from enhanced_agent_bus.admission.shared import SharedFacts
from enhanced_agent_bus.authoring import signing
from enhanced_agent_bus.bus import AgentBus
from enhanced_agent_bus.clock import SystemClock
from enhanced_agent_bus.control.server import ControlServer, socket_path
from enhanced_agent_bus.engines.cache import DecisionCache
from enhanced_agent_bus.engines.worker import WorkerEngine
from enhanced_agent_bus.errors import ConfigInvalid, ConstitutionRejected, StoreCorrupt, TransportAway
from enhanced_agent_bus.ledger.checkpoint import Signer
from enhanced_agent_bus.ledger.home import Home, is_new, new_bus_id, new_node_id, open_home, read_names
from enhanced_agent_bus.ledger.memory import MemoryLedger
from enhanced_agent_bus.ledger.runs import NoRuns, Runs
from enhanced_agent_bus.ledger.sqlite import SqliteLedger
from enhanced_agent_bus.letters.dsse import bytes_max
from enhanced_agent_bus.letters.keys import PublicKey, read_vkey
from enhanced_agent_bus.observe.telemetry import listener_for
from enhanced_agent_bus.outcome import BlockedLoop, WitnessInfo
from enhanced_agent_bus.ports import Clock, Conflict, Gate, Ledger, Transport, Witnesses
from enhanced_agent_bus.road.nodes import Joined
from enhanced_agent_bus.routing.registry import Registry
from enhanced_agent_bus.settings import ALONE, EMBEDDED, Policy, Settings, load_settings
from enhanced_agent_bus.settings import Transport as TransportSettings
from enhanced_agent_bus.weakenings import WEAKENINGS
from enhanced_agent_bus.witness.keeper import Keeper
from enhanced_agent_bus.witness.newest import Newest
from enhanced_agent_bus.witness.places import require_outside, witness_at

if TYPE_CHECKING:
    from enhanced_agent_bus.engines.server import ServerEngine

MEMORY: Final = ":memory:"
THREADS_MAX: Final = 32  # for handlers that are plain functions
# A letter that is worked on says so every two seconds: what has been silent for three leases was in dead hands.
LEASES_TILL_HANDED_OUT_AGAIN: Final = 3
ACK_SECONDS_MIN: Final = 6.0


@asynccontextmanager
async def open_bus(
    home: str | Path,
    *,
    constitution: str | Path | Mapping[str, Any] | None = None,
    strict: bool | None = None,
    gates: Sequence[Gate] = (),
    clock: Clock | None = None,
    **sections: Mapping[str, Any],
) -> AsyncIterator[AgentBus]:
    """Opens the bus of a home, and makes the home where there is none; ":memory:" keeps nothing.

    `constitution` is a path, or the section of that name; the other sections of the settings are keywords, such as
    `policy={"timeout_seconds": 1}`. `clock` replaces the machine's.
    Raises: ConfigInvalid, ConstitutionRejected, EngineMissing, StoreCorrupt, StoreLocked, AuditUnavailable,
    TransportAway.
    """
    faultpoints.points.arm(os.environ.get(faultpoints.VARIABLE, ""))
    section = {"path": str(constitution)} if isinstance(constitution, str | Path) else constitution
    folder = None if str(home) == MEMORY else Path(home)
    settings = load_settings(folder, {"strict": strict, "constitution": section, **sections})
    if (folder is None or is_new(folder)) and settings.constitution.path is None:
        raise ConfigInvalid(
            f"a new home needs a constitution ({home})",
            remedy='give open_bus(..., constitution="policies") or set [constitution] path; `eab init` writes one',
        )
    async with AsyncExitStack() as stack:
        bus = await _build(stack, folder, settings, gates, clock or SystemClock())
        try:
            yield bus
        except BaseException:
            await bus.close(timeout=0)  # the caller is in trouble: keep what waits, and let go
            raise
        await bus.close()


async def _build(
    stack: AsyncExitStack, folder: Path | None, settings: Settings, gates: Sequence[Gate], clock: Clock
) -> AgentBus:
    trust = [signing.public_pem(path) for path in settings.constitution.trust]
    transport = await _transport(stack, settings)
    bus_id = None if transport is None else await _bus_id(transport, folder)
    place, ledger, constitutions_folder, witnesses = await _ledger(stack, folder, settings, clock, bus_id)
    policy = settings.policy
    engine = await _engine(policy)
    stack.push_async_callback(engine.close)
    randomness = Randomness()
    gate: dict[str, Any] = {
        "engine": engine,
        "cache": DecisionCache(entries=policy.cache_entries, seconds=policy.cache_seconds, clock=clock),
        "clock": clock,
        "randomness": randomness,
        "gates": gates,
        "policy_seconds": policy.timeout_seconds,
        "gate_seconds": settings.limits.gate_seconds,
        "grace_seconds": settings.constitution.grace_seconds,
    }
    admission: Admission
    if transport is None:
        admission = Admission(facts=FactBook(ledger.facts), **gate)
    else:
        admission = SharedAdmission(shared=await _shared_facts(transport, ledger, randomness), **gate)
        stack.push_async_callback(admission.close)
        await admission.settle(ledger.find)
    listener = listener_for(clock)
    if listener is not None:
        stack.callback(listener.close)
    runs: Runs | NoRuns = NoRuns() if place is None else Runs(place.path / "running")
    threads = ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="eab-handler")
    stack.callback(threads.shutdown, wait=False, cancel_futures=True)
    identity = _identity(place, ledger)
    bus = AgentBus(
        settings=settings,
        ledger=ledger,
        engine=engine,
        admission=admission,
        constitutions=Constitutions(
            engine=engine,
            folder=constitutions_folder,
            clock=clock,
            marks=place if place is not None else _MarkInMemory(),
            trust=trust,
        ),
        registry=Registry(ledger.agents()),
        clock=clock,
        randomness=randomness,
        threads=threads,
        chance=random.Random().random,  # noqa: S311 - jitter, not a secret
        runs=runs,
        weakenings=_weakenings(settings, clock),
        witnesses=witnesses,
        listener=listener,
        home=str(folder) if folder is not None else MEMORY,
        note_blocked=_unnoted if place is None else place.note_blocked,
        spare=partial(WorkerEngine.start, workers=1, memory_mb=policy.memory_mb),
        joined=None if transport is None else _joined(transport, place, identity(), settings),
        identity=identity,
    )
    if place is not None:
        _require_mark(place, ledger)
    if not await bus.under_one():
        await _choose_constitution(bus, ledger, settings)
    if settings.strict and isinstance(witnesses, Keeper) and not await witnesses.first():
        why = "; ".join(f"{info.witness}: {info.error or 'no answer'}" for info in witnesses.infos())
        raise ConfigInvalid(
            f"strict is set and no witness took the newest checkpoint ({why})",
            remedy="have one of them answer, name another in audit.witnesses, or open the bus without strict",
        )
    if settings.strict and (weak := bus.security_state()):
        remedies = [f"{name}: {WEAKENINGS[name].remedy}" for name in weak if name in WEAKENINGS]
        raise ConfigInvalid(
            f"strict is set and these weakenings are in force: {', '.join(weak)}",
            remedy="; ".join([*remedies, "or open the bus without strict"]),
        )
    await bus.start()
    if isinstance(witnesses, Keeper):
        witnesses.tell(bus.witnessing.changed)
    stack.callback(bus.watchdog.stop)
    bus.watchdog.start()
    if place is not None:
        path = socket_path(place.path)
        server = ControlServer(bus, path)
        await server.start()
        stack.push_async_callback(server.close)
        place.lock.announce(path)
    return bus


async def _transport(stack: AsyncExitStack, settings: Settings) -> Transport | None:
    """What joins this bus with others; None where it is the only node."""
    given, dedup_seconds = settings.transport, settings.limits.dedup_seconds
    if given.url == ALONE:
        return None
    from enhanced_agent_bus.transports.places import transport_at  # noqa: PLC0415 - a bus of one node needs none

    transport = await transport_at(
        given.url,
        given.name,
        ack_seconds=max(ACK_SECONDS_MIN, LEASES_TILL_HANDED_OUT_AGAIN * given.lease_seconds),
        dedup_seconds=dedup_seconds,
        replicas=given.replicas,
        monitor=given.monitor,
        creds_file=given.creds_file,
        nkey_file=given.nkey_file,
        tls_ca=given.tls_ca,
        tls_cert=given.tls_cert,
        tls_key=given.tls_key,
    )
    stack.push_async_callback(transport.close)
    largest = bytes_max(settings.limits.payload_bytes)
    if transport.bytes_max < largest:
        raise ConfigInvalid(
            f"with limits.payload_bytes = {settings.limits.payload_bytes} a letter may have {largest} bytes, and "
            f"{transport.url} takes {transport.bytes_max}",
            remedy="lower limits.payload_bytes, or raise max_payload on the server",
        )
    return transport


def believed(transport: TransportSettings) -> dict[str, PublicKey] | None:
    """The keys of the nodes that are trusted, by origin; None for all that are listed. Raises: ConfigInvalid."""
    found = {}
    for path in transport.nodes:
        try:
            origin, key = read_vkey(path.read_text(encoding="ascii"))
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise ConfigInvalid(
                f"the key {path}, which transport.nodes names, cannot be used: {why}",
                remedy="copy keys/node.vkey of that node's home to it",
            ) from None
        found[origin] = key
    return found or None


async def _bus_id(transport: Transport, folder: Path | None) -> str:
    """The id that all nodes of the bus have: the first one's. Raises: ConfigInvalid; TransportAway."""
    bucket = await transport.bucket("bus")
    own = None if folder is None or is_new(folder) else read_names(folder / "home.json")["bus"]
    for _ in range(2):
        item = await bucket.get("id")
        if item is not None and item.value is not None:
            found = item.value.decode()
            if own not in (None, found):
                raise ConfigInvalid(
                    f"the home {folder} is of the bus {own}, and the nodes at {transport.url} are of {found}",
                    remedy="join them with a new home, or give this bus a transport of its own",
                )
            return found
        with suppress(Conflict):
            await bucket.swap("id", (own or new_bus_id()).encode(), 0)
    raise TransportAway(f"{transport.url} does not keep what it is given")


async def _shared_facts(transport: Transport, ledger: Ledger, randomness: Randomness) -> SharedFacts:
    """What the nodes of the bus remember together. Raises: TransportAway."""
    return SharedFacts(
        await transport.bucket(SHARED_FACTS),
        ledger.facts,
        node=ledger.node,
        session=randomness.take(8).hex(),
        bytes_max=transport.bytes_max,
    )


def _joined(transport: Transport, place: Home | None, signer: Signer, settings: Settings) -> Joined:
    trusted, lease_seconds = believed(settings.transport), settings.transport.lease_seconds
    told = None if place is None else place.checkpoints
    if not isinstance(told, Newest):  # a bus in memory signs nothing
        return Joined(transport, signer, trusted, lease_seconds)
    return Joined(
        transport, signer, trusted, lease_seconds, lambda: told.note, pace_seconds=settings.audit.checkpoint_seconds
    )


def _identity(place: Home | None, ledger: Ledger) -> Callable[[], Signer]:
    """This node's key, which a home is given when it is first asked for."""

    @cache
    def identity() -> Signer:
        return Signer.fresh(f"{ledger.bus}/{ledger.node}") if place is None else place.node_signer

    return identity


def _weakenings(settings: Settings, clock: Clock) -> list[str]:
    short = ["short_retention"] if settings.audit.is_short else []
    return [*getattr(clock, "weakenings", ()), *short]


def _unnoted(_blocked: BlockedLoop | None) -> None:
    """Where there is no home, no other process can ask."""


class _MarkInMemory:
    """The high-water mark of a bus that keeps nothing."""

    def __init__(self) -> None:
        self._mark: Mapping[str, Any] | None = None

    def read_mark(self) -> Mapping[str, Any] | None:
        return self._mark

    def write_mark(self, mark: Mapping[str, Any]) -> None:
        self._mark = mark


class NoWitness:
    """Nobody but the home has what is signed."""

    weakenings = ("no_witness",)

    def infos(self) -> list[WitnessInfo]:
        return []


def _require_mark(home: Home, ledger: Ledger) -> None:
    """Raises: StoreCorrupt, when a signed constitution is active and nobody knows which revision was the highest."""
    active = json.loads(ledger.setting("constitution") or "{}")
    if active.get("signed") and home.read_mark() is None:
        raise StoreCorrupt(
            f"{home.path / 'home.json'} has lost the high-water mark of signed constitutions",
            remedy="restore home.json from a backup, or accept the active revision as the highest: "
            "`eab init --reset-revision`",
        )


async def _engine(policy: Policy) -> WorkerEngine | ServerEngine:
    if policy.engine == EMBEDDED:
        return await WorkerEngine.start(workers=policy.workers, memory_mb=policy.memory_mb)
    from enhanced_agent_bus.engines.server import ServerEngine  # noqa: PLC0415 - httpx takes longer to load than the bus

    return await ServerEngine.start(
        policy.engine,
        bundle=policy.bundle,
        token_file=policy.token_file,
        tls_ca=policy.tls_ca,
        tls_cert=policy.tls_cert,
        tls_key=policy.tls_key,
        memory_mb=policy.memory_mb,
    )


async def _ledger(
    stack: AsyncExitStack, folder: Path | None, settings: Settings, clock: Clock, bus_id: str | None
) -> tuple[Home | None, Ledger, Path, Witnesses]:
    if folder is None:
        memory = MemoryLedger(clock=clock, **({} if bus_id is None else {"bus": bus_id, "node": new_node_id()}))
        stack.push_async_callback(memory.close)
        return None, memory, Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="eab-"))), NoWitness()
    for url in settings.audit.witnesses:
        require_outside(url, folder)
    places = [witness_at(url) for url in settings.audit.witnesses]
    home = open_home(folder, bus=bus_id)
    stack.callback(home.release)
    witnesses: Witnesses = NoWitness()
    if places:
        witnesses = home.checkpoints = Keeper.open(home=home.path, origin=home.origin, witnesses=places, clock=clock)
        stack.push_async_callback(home.checkpoints.close)
    if bus_id is not None:  # one of several nodes: the others are shown what is signed
        before = home.checkpoint.read_text() if home.checkpoint.exists() else None
        home.checkpoints = Newest(before, home.checkpoints)
    ledger = await SqliteLedger.open(
        home,
        clock=clock,
        checkpoint_seconds=settings.audit.checkpoint_seconds,
        checkpoint_records=settings.audit.checkpoint_records,
    )
    stack.push_async_callback(ledger.close)
    return home, ledger, home.constitutions, witnesses


async def _choose_constitution(bus: AgentBus, ledger: Ledger, settings: Settings) -> None:
    """The one that was active, unless the given one is newer (contract §3): for a folder, any change since.

    A given one that is rejected is recorded and said, and the active one decides: only where there is none to go on
    with is it raised.
    """
    given = settings.constitution.path
    stored = ledger.setting("constitution")
    if stored is None:
        if given is None:
            raise ConfigInvalid(
                "this home has no constitution yet", remedy='give open_bus(..., constitution="policies")'
            )
        await bus.charter.take(given, given=True)
        return
    if given is not None and not given.exists():
        raise ConfigInvalid(
            f"there is no constitution at {given}",
            remedy="mend the path, or leave it out to go on with the active one",
        )
    active = json.loads(stored)
    ended: ConstitutionRejected | None = None
    try:
        await bus.charter.resume(active["digest"], active["source"])
        await bus.charter.resume_rollout()
    except ConstitutionRejected as error:  # it has expired, say: a newer one mends that
        ended = error
    known: set[str | None] = {active["digest"]}
    if bus.charter.candidate is not None:
        known.add(bus.charter.candidate)  # it goes on with its share
    if given is not None and given.is_dir():
        known.add(ledger.setting("given"))  # what was activated since stays, until the folder changes
    if given is not None:
        try:
            if await bus.charter.consider(given, known=known, active=active):
                return
        except ConstitutionRejected as error:
            if ended is not None:
                raise
            bus.charter.say_not_taken(given, error, active)
    if ended is not None:
        raise ended
