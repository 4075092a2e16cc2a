"""An OPA server behind TLS: who cannot prove to be it decides nothing, and is told nothing."""

import datetime as dt
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from enhanced_agent_bus import ConfigInvalid
from tests.developer import Inbox, small_bus
from tests.hostile import YES, Hostile, hostile

DAY = dt.timedelta(days=1)


@dataclass
class Identity:
    """A certificate and its key, as PEM files."""

    cert: Path
    key: Path
    x509: x509.Certificate
    private: ec.EllipticCurvePrivateKey


def identity(
    folder: Path,
    name: str,
    *,
    host: str = "127.0.0.1",
    signed_by: Identity | None = None,
    ends: dt.timedelta = DAY,
) -> Identity:
    """A new one; signed by itself where nobody else does."""
    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    alternative = x509.IPAddress(ip_address(host)) if host[0].isdigit() else x509.DNSName(host)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signed_by.x509.subject if signed_by else subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 9 * DAY)
        .not_valid_after(now + ends)
        .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        .add_extension(x509.BasicConstraints(ca=signed_by is None, path_length=None), critical=True)
        .sign(signed_by.private if signed_by else private, hashes.SHA256())
    )
    made = Identity(folder / f"{name}.pem", folder / f"{name}.key", certificate, private)
    made.cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    made.key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return made


def context(server: Identity, clients_of: Identity | None = None) -> ssl.SSLContext:
    """What a server with this identity needs; with `clients_of` it asks for certificates signed by that one."""
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=clients_of.cert if clients_of else None)
    made.load_cert_chain(server.cert, server.key)
    if clients_of is not None:
        made.verify_mode = ssl.CERT_REQUIRED
    return made


@asynccontextmanager
async def behind_tls(server: Identity, clients_of: Identity | None = None) -> AsyncIterator[Hostile]:
    """A server that says yes to everyone who gets as far as asking."""
    async with hostile(YES, tls=context(server, clients_of)) as stub:
        yield stub


async def sent(folder: Path, url: str, **policy: Any) -> str | None:
    """The code of one message decided there."""
    settings = {"engine": url, "timeout_seconds": 1, **{key: str(value) for key, value in policy.items()}}
    async with small_bus(folder, policy=settings) as bus:
        desk = await bus.register("desk", tenant="acme")
        inbox = Inbox()
        await bus.register("booker", inbox, tenant="acme")
        receipt = await desk.send("booker", {"n": 1})
        assert receipt.ok or not inbox.got
        return receipt.code


async def test_a_server_whose_certificate_is_vouched_for_decides(tmp_path: Path) -> None:
    """`tls_ca` names who vouches; without it that is nobody whom a test can ask."""
    authority = identity(tmp_path, "authority")
    server = identity(tmp_path, "server", signed_by=authority)
    async with behind_tls(server) as stub:
        assert await sent(tmp_path / "one", stub.url, tls_ca=authority.cert) is None
        assert stub.decisions
        asked = len(stub.asked)
        assert await sent(tmp_path / "two", stub.url) == "policy_unavailable"
        assert len(stub.asked) == asked


async def test_a_server_that_vouches_for_itself_is_told_nothing(tmp_path: Path) -> None:
    """A self-signed certificate, an expired one, one of another host, one of another authority."""
    authority, other = identity(tmp_path, "authority"), identity(tmp_path, "other")
    for wrong in (
        identity(tmp_path, "self"),
        identity(tmp_path, "expired", signed_by=authority, ends=-DAY),
        identity(tmp_path, "elsewhere", signed_by=authority, host="opa.example.org"),
        identity(tmp_path, "stranger", signed_by=other),
    ):
        async with behind_tls(wrong) as stub:
            assert await sent(tmp_path / wrong.cert.stem, stub.url, tls_ca=authority.cert) == "policy_unavailable"
            assert stub.asked == []


async def test_the_environment_vouches_for_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SSL_CERT_FILE and the like name no authorities for the bus."""
    authority = identity(tmp_path, "authority")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.cert))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.cert))
    async with behind_tls(identity(tmp_path, "server", signed_by=authority)) as stub:
        assert await sent(tmp_path / "bus", stub.url) == "policy_unavailable"
        assert stub.asked == []


async def test_the_bus_shows_its_own_certificate(tmp_path: Path) -> None:
    """A server that wants to know who asks gets `tls_cert`, and answers nobody without one."""
    authority = identity(tmp_path, "authority")
    server = identity(tmp_path, "server", signed_by=authority)
    bus = identity(tmp_path, "bus", signed_by=authority)
    async with behind_tls(server, clients_of=authority) as stub:
        files = {"tls_ca": authority.cert, "tls_cert": bus.cert, "tls_key": bus.key}
        assert await sent(tmp_path / "with", stub.url, **files) is None
        asked = len(stub.asked)
        assert await sent(tmp_path / "without", stub.url, tls_ca=authority.cert) == "policy_unavailable"
        assert len(stub.asked) == asked


async def test_plain_where_tls_is_spoken_and_the_other_way_round(tmp_path: Path) -> None:
    """Neither falls back to the other."""
    server = identity(tmp_path, "server")
    async with behind_tls(server) as stub:
        assert await sent(tmp_path / "plain", stub.url.replace("https:", "http:")) == "policy_unavailable"
    async with hostile(YES) as stub:
        url = stub.url.replace("http:", "https:")
        assert await sent(tmp_path / "tls", url, tls_ca=server.cert) == "policy_unavailable"


@pytest.mark.parametrize("key", ["tls_ca", "tls_cert", "tls_key"])
async def test_a_file_for_tls_that_cannot_be_used_is_a_clear_error(tmp_path: Path, key: str) -> None:
    """Missing, or no PEM: an error at the start that names the setting."""
    bus = identity(tmp_path, "bus")
    (tmp_path / "rubbish").write_text("no PEM")
    for wrong in (tmp_path / "missing", tmp_path / "rubbish"):
        files = {"tls_ca": bus.cert, "tls_cert": bus.cert, "tls_key": bus.key, key: wrong}
        with pytest.raises(ConfigInvalid, match=rf"policy\.{key}|policy\.tls_cert or policy\.tls_key") as caught:
            await sent(tmp_path / "bus", "https://127.0.0.1:9", **files)
        assert "PEM" in caught.value.remedy


async def test_a_key_with_a_password_is_a_clear_error(tmp_path: Path) -> None:
    """Nobody is asked for it at a terminal."""
    bus = identity(tmp_path, "bus")
    encrypted = serialization.BestAvailableEncryption(b"secret")
    bus.key.write_bytes(
        bus.private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encrypted)
    )
    with pytest.raises(ConfigInvalid, match="tls_key"):
        await sent(tmp_path / "bus", "https://127.0.0.1:9", tls_cert=bus.cert, tls_key=bus.key)
