"""What a NATS server, and the way to it, can do to the letters of a bus: nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import nkeys
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from enhanced_agent_bus.errors import ConfigInvalid, TransportAway
from enhanced_agent_bus.ports import Handed, Letter
from enhanced_agent_bus.transports.access import Access
from enhanced_agent_bus.transports.jetstream import asked
from enhanced_agent_bus.transports.line import Line
from enhanced_agent_bus.transports.nats import NatsTransport, open_nats
from enhanced_agent_bus.transports.places import transport_at
from tests.developer import until
from tests.nats_server import NatsServer, proxy_to, running

BUSES: Final = itertools.count(1)
BOX: Final = "agent.b"


@asynccontextmanager
async def opened(url: str, bus: str = "", **options: Any) -> AsyncIterator[NatsTransport]:
    """A transport on a bus of its own, closed at the end."""
    transport = await open_nats(Access(url), bus or f"faults{next(BUSES)}", **options)
    try:
        yield transport
    finally:
        await transport.close()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A server that a test may kill."""
    with running(tmp_path / "server") as server:
        yield server


class Desk:
    """Settles what it is handed, and knows how often each letter was handed and settled."""

    def __init__(self) -> None:
        self.handed: dict[str, int] = {}
        self.settled: set[str] = set()
        self.after_settling: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, handed: Handed) -> None:
        ident = handed.letter.id
        self.handed[ident] = self.handed.get(ident, 0) + 1
        if ident in self.settled:
            self.after_settling.append(ident)
        task = asyncio.ensure_future(self._settle(handed))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def has(self, count: int) -> bool:
        return len(self.settled) >= count

    async def _settle(self, handed: Handed) -> None:
        with suppress(TransportAway):
            await handed.done()
            self.settled.add(handed.letter.id)


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_a_server_that_is_ended_and_started_again_loses_nothing(own_server: NatsServer, how: str) -> None:
    """Under load, and with kill -9: what was acknowledged arrives, and what was settled does not come again."""
    desk, taken, stop = Desk(), set[str](), asyncio.Event()
    async with (
        opened(own_server.url, "load", ack_seconds=1.0, answer_seconds=2.0) as sender,
        opened(own_server.url, "load", ack_seconds=1.0, answer_seconds=2.0) as receiver,
    ):
        await receiver.serve(BOX, desk, at_once=32)

        async def post(lane: int) -> None:
            for number in itertools.count():
                if stop.is_set():
                    return
                ident = f"{lane}.{number}"
                try:
                    await sender.post(Letter(BOX, ident, b"x" * 200))
                    taken.add(ident)
                except TransportAway:
                    await asyncio.sleep(0.02)

        lanes = [asyncio.create_task(post(lane)) for lane in range(8)]
        for _ in range(2):
            enough = len(desk.settled) + 50
            await until(partial(desk.has, enough))
            await asyncio.to_thread(getattr(own_server, how))
            await until(lambda: not sender.connected and not receiver.connected)
            await asyncio.to_thread(own_server.start)
            await until(lambda: sender.connected and receiver.connected, 30)
        stop.set()
        await asyncio.gather(*lanes)
        await until(lambda: taken <= set(desk.handed), 30)  # one whose answer was lost is settled, unknown to the desk
    assert len(taken) > 100
    assert desk.after_settling == []


async def test_after_a_restart_a_letter_may_be_the_second_of_its_id(own_server: NatsServer) -> None:
    """What a server that was started again took is not certain to be new: `times` says so, until the window is over."""
    async with opened(own_server.url, "again", dedup_seconds=1.0) as transport:
        held: list[Handed] = []
        await transport.serve(BOX, held.append, at_once=4)
        await transport.post(Letter(BOX, "1", b""))
        await until(lambda: held)
        assert held[0].times == 1
        await held.pop().done()
        await asyncio.to_thread(own_server.stop)
        await until(lambda: not transport.connected)
        await asyncio.to_thread(own_server.start)
        await until(lambda: transport.connected, 30)
        await transport.post(Letter(BOX, "1", b""))
        await until(lambda: held)
        assert held[0].times > 1
        await held.pop().done()
        await asyncio.sleep(1.5)
        await transport.post(Letter(BOX, "2", b""))
        await until(lambda: held)
        assert held[0].times == 1
        await held.pop().done()


async def test_a_bucket_outlives_its_server(own_server: NatsServer) -> None:
    """Keys are there with their revisions after kill -9, and a watch goes on with what was changed after it."""
    async with opened(own_server.url, "keys") as one, opened(own_server.url, "keys") as other:
        bucket, theirs = await one.bucket("facts"), await other.bucket("facts")
        told: list[bytes | None] = []
        await bucket.watch(lambda item: told.append(item.value))
        revision = await theirs.put("a", b"1")
        await until(lambda: told == [b"1"])
        await asyncio.to_thread(own_server.kill)
        await until(lambda: not one.connected and not other.connected)
        await asyncio.to_thread(own_server.start)
        await until(lambda: one.connected and other.connected, 30)
        second = await theirs.swap("a", b"2", revision)
        await until(lambda: told == [b"1", b"2"])
        assert await bucket.swap("a", None, second) > second


async def test_a_full_server_refuses_and_keeps_what_it_has(nats_server: NatsServer) -> None:
    """The sender is told; nothing that was taken is dropped for it; settling makes room."""
    async with opened(nats_server.url, stream_bytes=100_000, ack_seconds=30.0) as transport:
        taken: list[str] = []

        async def fill() -> None:
            for number in range(1000):
                await transport.post(Letter(BOX, str(number), b"x" * 1000))
                taken.append(str(number))

        with pytest.raises(TransportAway, match="maximum bytes"):
            await fill()
        assert 50 < len(taken) < 100
        held: list[Handed] = []
        await transport.serve(BOX, held.append, at_once=200)
        await until(lambda: len(held) == len(taken))
        assert [one.letter.id for one in held] == taken
        await held[0].done()
        await transport.post(Letter(BOX, "one-more", b"x" * 1000))
        assert transport.connected


async def test_a_way_that_swallows_everything_is_noticed(nats_server: NatsServer) -> None:
    """A question ends with its deadline, the connection is given up, and all goes on when the way is there again."""
    async with (
        proxy_to(nats_server.port) as proxy,
        opened(proxy.url, answer_seconds=0.3, ping_seconds=0.1, ack_seconds=30.0) as transport,
    ):
        held: list[Handed] = []
        await transport.serve(BOX, held.append, at_once=4)
        proxy.swallow()
        with pytest.raises(TransportAway):
            await transport.post(Letter(BOX, "1", b""))
        await until(lambda: not transport.connected)
        proxy.cut()
        proxy.mend()
        await until(lambda: transport.connected)
        await transport.post(Letter(BOX, "1", b""))
        await until(lambda: held)
        await held[0].done()


async def test_an_answer_that_comes_late_ends_nothing(nats_server: NatsServer) -> None:
    """A PONG after its deadline is no harm: questions are answered again as soon as the way is open."""

    async def answered() -> bool:
        with suppress(TransportAway):
            await transport.post(Letter(BOX, "1", b""))
            return True
        return False

    async with (
        proxy_to(nats_server.port) as proxy,
        opened(proxy.url, answer_seconds=0.3, ping_seconds=0.1) as transport,
    ):
        proxy.swallow()
        await asyncio.sleep(0.25)  # one question's deadline passes in it, and not two
        proxy.mend()
        async with asyncio.timeout(10):
            while not await answered():
                pass


async def test_a_peer_that_does_not_read_stops_nobody_for_ever(nats_server: NatsServer) -> None:
    """Full buffers on the way: each letter ends with its deadline, and closing does not wait for what is in them."""
    async with (
        proxy_to(nats_server.port) as proxy,
        opened(proxy.url, answer_seconds=0.5, ping_seconds=0.2) as transport,
    ):
        proxy.swallow()
        body = bytes(4 * 1024**2)
        ends = await asyncio.gather(
            *(transport.post(Letter(BOX, str(number), body)) for number in range(8)), return_exceptions=True
        )
        assert all(isinstance(end, TransportAway) for end in ends)


async def test_a_slow_way_only_takes_longer(nats_server: NatsServer) -> None:
    """A tenth of a second each way delays letters and loses none; many under way wait together."""
    async with proxy_to(nats_server.port) as proxy, opened(proxy.url, ack_seconds=30.0) as transport:
        desk = Desk()
        await transport.serve(BOX, desk, at_once=64)
        proxy.delay_seconds = 0.1
        await asyncio.gather(*(transport.post(Letter(BOX, str(number), b"")) for number in range(50)))
        await until(lambda: len(desk.settled) == 50)
        assert set(desk.handed.values()) == {1}


async def test_a_way_that_is_cut_again_and_again_loses_nothing(nats_server: NatsServer) -> None:
    """Whatever was on its way is posted again under its id, and arrives; nothing known to be settled comes again."""
    bus = f"faults{next(BUSES)}"
    async with (
        proxy_to(nats_server.port) as proxy,
        opened(proxy.url, bus, answer_seconds=1.0, ack_seconds=0.5) as sender,
        opened(proxy.url, bus, answer_seconds=1.0, ack_seconds=0.5) as receiver,
    ):
        desk = Desk()
        await receiver.serve(BOX, desk, at_once=16)

        async def post(ident: str) -> None:
            while True:
                try:
                    await sender.post(Letter(BOX, ident, b"x" * 100))
                    return
                except TransportAway:
                    await asyncio.sleep(0.01)

        posts = asyncio.gather(*(post(str(number)) for number in range(300)))
        for _ in range(4):
            await asyncio.sleep(0.1)
            proxy.cut()
            proxy.mend()
        await posts
        await until(lambda: len(desk.handed) == 300, 30)
        assert desk.after_settling == []


async def test_a_consumer_that_somebody_removes_is_made_again(nats_server: NatsServer) -> None:
    """An operator's slip with `nats consumer rm` delays what is in the box, and loses nothing."""
    bus = f"faults{next(BUSES)}"
    async with opened(nats_server.url, bus, ack_seconds=30.0) as transport:
        held: list[Handed] = []
        await transport.serve(BOX, held.append, at_once=4)
        line = Line(Access(nats_server.url), name="an operator", answer_seconds=5.0, ping_seconds=5.0)
        await line.open()
        (name,) = (await asked(line, f"CONSUMER.NAMES.EAB_{bus}"))["consumers"]
        await asked(line, f"CONSUMER.DELETE.EAB_{bus}.{name}")
        await transport.post(Letter(BOX, "1", b""))
        await until(lambda: held)
        await held[0].done()
        await line.close()


async def test_letters_of_strangers_are_handed_out_as_they_are(nats_server: NatsServer) -> None:
    """What anybody puts on the stream comes with an empty or foreign id, and whoever takes letters has to judge it."""
    bus = f"faults{next(BUSES)}"
    async with opened(nats_server.url, bus) as transport:
        held: list[Handed] = []
        await transport.serve(BOX, held.append, at_once=4)
        line = Line(Access(nats_server.url), name="a stranger", answer_seconds=5.0, ping_seconds=5.0)
        await line.open()
        await line.ask(f"eab.{bus}.box.agent=2Eb", b"raw")
        await line.ask(f"eab.{bus}.box.agent=2Eb", b"status", {"Status": "100", "Nats-Msg-Id": "no-such-form"})
        await line.close()
        await until(lambda: len(held) == 2)
        assert [one.letter for one in held] == [Letter(BOX, "", b"raw"), Letter(BOX, "", b"status")]


async def test_a_bus_takes_no_stream_that_is_none_of_its_own(nats_server: NatsServer) -> None:
    """One of that name with other subjects, retention or ages is an error that names it, and is left as it is."""
    line = Line(Access(nats_server.url), name="somebody else", answer_seconds=5.0, ping_seconds=5.0)
    await line.open()
    for bus, config, word in (
        ("taken1", {"subjects": ["taken1.>"]}, "subjects"),
        ("taken2", {"subjects": ["eab.taken2.box.*"], "retention": "limits"}, "retention"),
        ("taken3", {"subjects": ["eab.taken3.box.*"], "retention": "workqueue", "max_age": 10**12}, "max_age"),
        ("taken4", {"subjects": ["eab.taken4.box.*"], "retention": "workqueue", "discard": "old"}, "discard"),
    ):
        stream = {"discard": "new", "storage": "file", **config, "name": f"EAB_{bus}", "duplicate_window": 10**11}
        there = (await asked(line, f"STREAM.CREATE.EAB_{bus}", stream))["config"]
        with pytest.raises(ConfigInvalid, match=f"is not one of this bus: its {word} differs"):
            await open_nats(Access(nats_server.url), bus)
        assert (await asked(line, f"STREAM.INFO.EAB_{bus}"))["config"] == there
    await line.close()


async def test_the_window_of_a_bus_is_that_of_its_widest_node(nats_server: NatsServer) -> None:
    """A node with a longer `dedup_seconds` lengthens it; one with a shorter leaves it."""
    bus = f"faults{next(BUSES)}"
    line = Line(Access(nats_server.url), name="an operator", answer_seconds=5.0, ping_seconds=5.0)
    await line.open()
    for given, window in ((60.0, 60), (600.0, 600), (10.0, 600)):
        async with opened(nats_server.url, bus, dedup_seconds=given):
            config = (await asked(line, f"STREAM.INFO.EAB_{bus}"))["config"]
            assert config["duplicate_window"] == window * 10**9
    await line.close()


async def test_a_server_without_jetstream_is_named_so(tmp_path: Path) -> None:
    """At the start, with what to do; not as a server that is away."""
    words = r"has no JetStream .* `jetstream` block"
    with running(tmp_path / "server", jetstream=False) as server, pytest.raises(ConfigInvalid, match=words):
        await open_nats(Access(server.url), "bus")


async def test_nobody_at_the_address_is_away() -> None:
    """With the address, and without the password in it."""
    with pytest.raises(TransportAway, match=r"nats://127\.0\.0\.1:1 cannot be reached") as raised:
        await open_nats(Access("nats://user:secret@127.0.0.1:1"), "bus")
    assert "secret" not in str(raised.value)


async def test_of_several_servers_one_that_answers_is_enough(nats_server: NatsServer) -> None:
    """Addresses with commas are tried in turn, and none of them is shown with its user."""
    async with opened(f"nats://u:secret@127.0.0.1:1,{nats_server.url}") as transport:
        assert transport.url == f"nats://127.0.0.1:1,{nats_server.url}"
        await transport.post(Letter(BOX, "1", b""))


async def test_who_may_not_in_is_told_so_without_a_secret(tmp_path: Path) -> None:
    """A wrong password, an unknown nkey, and none at all; the right ones work, and a file that is none is named."""
    seeds = [nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER) for _ in range(2)]
    public = nkeys.from_seed(bytearray(seeds[0])).public_key.decode()
    for number, seed in enumerate(seeds):
        (tmp_path / f"{number}.nk").write_bytes(seed)
    (tmp_path / "no.nk").write_text("SUsecret", encoding="ascii")
    users = f'authorization {{ users: [ {{ user: "node", password: "right" }}, {{ nkey: {public} }} ] }}'
    with running(tmp_path / "server", extra=users) as server:
        host = f"127.0.0.1:{server.port}"
        for access in (
            Access(f"nats://node:wrong-secret@{host}"),
            Access(f"nats://{host}", nkey_file=tmp_path / "1.nk"),
            Access(f"nats://{host}"),
        ):
            with pytest.raises(ConfigInvalid, match="does not let this node in") as raised:
                await open_nats(access, "bus")
            assert "secret" not in str(raised.value)
        for path, words in ((tmp_path / "no.nk", "has no seed of a user"), (tmp_path / "none", "cannot be read")):
            with pytest.raises(ConfigInvalid, match=words) as raised:
                await open_nats(Access(f"nats://{host}", nkey_file=path), "bus")
            assert "SUsecret" not in str(raised.value)
        for access in (Access(f"nats://node:right@{host}"), Access(f"nats://{host}", nkey_file=tmp_path / "0.nk")):
            transport = await open_nats(access, "bus")
            await transport.post(Letter(BOX, "1", b""))
            assert "right" not in transport.url
            await transport.close()


def certified(folder: Path) -> None:
    """A self-signed certificate for this machine, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a server for tests")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = serialization.PrivateFormat.PKCS8
    none = serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, private, none))


async def test_tls_is_what_it_says(tmp_path: Path, nats_server: NatsServer) -> None:
    """Letters pass over TLS under the right certificate; another one, or a server without TLS, is left alone."""
    certified(tmp_path)
    tls = f'tls {{ cert_file: "{tmp_path / "cert.pem"}", key_file: "{tmp_path / "key.pem"}" }}'
    with running(tmp_path / "server", extra=tls) as server:
        host = f"127.0.0.1:{server.port}"
        transport = await open_nats(Access(f"tls://{host}", tls_ca=tmp_path / "cert.pem"), "bus")
        await transport.post(Letter(BOX, "1", b""))
        await transport.close()
        with pytest.raises(ConfigInvalid, match="by TLS"):
            await open_nats(Access(f"tls://{host}"), "bus")
    with pytest.raises(ConfigInvalid, match="it offers no TLS"):
        await open_nats(Access(f"tls://user:secret@127.0.0.1:{nats_server.port}"), "bus")
    with pytest.raises(ConfigInvalid, match="cannot be set up"):
        await open_nats(Access(nats_server.url, tls_ca=tmp_path / "missing.pem"), "bus")


async def test_what_is_weak_about_a_server_is_named(nats_server: NatsServer, tmp_path: Path) -> None:
    """Fsync on acknowledge where the monitoring port says so; anything less, or not known, is a weakening."""
    async with opened(nats_server.url, monitor=nats_server.monitor_url) as transport:
        assert transport.weakenings == []
    async with opened(nats_server.url) as transport:
        assert transport.weakenings == ["nats_sync"]
        assert "monitor" in transport.weaknesses[0].sentence
    async with opened(nats_server.url, monitor="http://127.0.0.1:1") as transport:
        assert transport.weakenings == ["nats_sync"]
    with running(tmp_path / "server", sync="2m") as weak:
        for monitor, words in ((weak.monitor_url, "before fsync"), (nats_server.monitor_url, "another server")):
            async with opened(weak.url, monitor=monitor) as transport:
                assert transport.weakenings == ["nats_sync"]
                assert words in transport.weaknesses[0].sentence
        line = Line(Access(weak.url), name="an operator", answer_seconds=5.0, ping_seconds=5.0)
        await line.open()
        stream = {"name": "EAB_m", "subjects": ["eab.m.box.*"], "retention": "workqueue", "discard": "new"}
        await asked(line, "STREAM.CREATE.EAB_m", {**stream, "storage": "memory"})
        await line.close()
        async with opened(weak.url, "m") as transport:
            assert transport.weakenings == ["nats_memory_storage", "nats_sync"]


async def test_an_address_opens_what_it_stands_for(nats_server: NatsServer) -> None:
    """memory:// is nobody else, memory://NAME whoever has the same name here, nats:// a server."""
    alone, other = await transport_at("memory://", "bus"), await transport_at("memory://", "bus")
    one, two = await transport_at("memory://hall", "bus"), await transport_at("memory://hall", "bus")
    three, four = [await transport_at(nats_server.url, "addressed") for _ in range(2)]
    for sender, receiver, joined in ((alone, other, False), (one, two, True), (three, four, True)):
        bucket = await sender.bucket("facts")
        await bucket.put("a", b"1")
        assert (await (await receiver.bucket("facts")).get("a") is not None) is joined
        await sender.close()
        await receiver.close()
    again = await transport_at("memory://hall", "bus")
    assert await (await again.bucket("facts")).get("a") is None
    await again.close()


def test_without_the_extra_it_is_named() -> None:
    """Where the NATS client is not installed, an address of a server is an error that says what to install."""
    program = (
        "import asyncio, sys\n"
        "sys.modules['nats'] = None\n"
        "from enhanced_agent_bus.transports.places import transport_at\n"
        "try:\n"
        "    asyncio.run(transport_at('nats://user:secret@127.0.0.1', 'bus'))\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("ConfigInvalid nats://127.0.0.1 needs the NATS client")
    assert "opa-agent-bus[nats]" in done.stdout
