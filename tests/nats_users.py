"""Who may in at a NATS server, made as an operator would: JWTs of accounts and users, and a private CA.

github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-14.md: a JWT is signed with an nkey, and carries the
public key of its issuer.
"""

from __future__ import annotations

import base64
import json
import os
import time
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import nkeys
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

ROOM: Final = dict.fromkeys(("subs", "data", "payload"), -1)
LIMITS: Final = ROOM | dict.fromkeys(
    ("imports", "exports", "conn", "leaf", "mem_storage", "disk_storage", "streams", "consumer"), -1
)


class Key:
    """An nkey of an operator, an account or a user."""

    def __init__(self, kind: int) -> None:
        self.seed = bytes(nkeys.encode_seed(os.urandom(32), kind))
        self._pair = nkeys.from_seed(bytearray(self.seed))
        self.public = self._pair.public_key.decode()

    def vouch(self, subject: str, name: str, claims: dict[str, Any], expires_in: int = 3600) -> str:
        """A JWT about another key, or this one."""
        now = int(time.time())
        said = {"jti": os.urandom(16).hex(), "iat": now, "exp": now + expires_in, "iss": self.public}
        body = {**said, "name": name, "sub": subject, "nats": {**claims, "version": 2}}
        text = f"{_packed({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{_packed(body)}"
        return f"{text}.{_base64(self._pair.sign(text.encode()))}"


class Operator:
    """An operator with an account for nodes and one for the system, and the server's configuration that trusts it."""

    def __init__(self) -> None:
        self._key = Key(nkeys.PREFIX_BYTE_OPERATOR)
        self.account, system = Key(nkeys.PREFIX_BYTE_ACCOUNT), Key(nkeys.PREFIX_BYTE_ACCOUNT)
        claims = {"type": "account", "limits": {**LIMITS, "wildcards": True}}
        plain = {"type": "account", "limits": {**ROOM, "imports": -1, "exports": -1, "conn": -1, "wildcards": True}}
        trusted = {
            self.account.public: self._key.vouch(self.account.public, "nodes", claims),
            system.public: self._key.vouch(system.public, "SYS", plain),
        }
        own = {"type": "operator", "system_account": system.public}
        accounts = "\n".join(f"  {public}: {jwt}" for public, jwt in trusted.items())
        self.config = (
            f"operator: {self._key.vouch(self._key.public, 'operator', own)}\nsystem_account: {system.public}\n"
            f"resolver: MEMORY\nresolver_preload {{\n{accounts}\n}}\n"
        )

    def credentials(self, by: Key | None = None, key: Key | None = None, expires_in: int = 3600) -> str:
        """The text of a credentials file of a new user; `key` is another one than its JWT is about."""
        user, issuer = Key(nkeys.PREFIX_BYTE_USER), by or self.account
        jwt = issuer.vouch(user.public, "node", {"type": "user", **ROOM}, expires_in)
        return credentials(jwt, (key or user).seed.decode())


def credentials(jwt: str, seed: str) -> str:
    """As `nsc generate creds` writes it."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        "************************* IMPORTANT *************************\n"
        "NKEY Seed printed below can be used to sign and prove identity.\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )


def _packed(document: dict[str, Any]) -> str:
    return _base64(json.dumps(document).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Authority:
    """A private CA, which writes certificates for this machine into a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        own = self._signed(self._name, self._key, x509.BasicConstraints(ca=True, path_length=None))
        self.path = folder / f"{name}.pem"
        self.path.write_bytes(own.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str) -> tuple[Path, Path]:
        """A certificate and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        signed = self._signed(subject, key, x509.BasicConstraints(ca=False, path_length=None))
        certificate, private = self._folder / f"{name}.crt", self._folder / f"{name}.key"
        certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return certificate, private

    def _signed(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, constraints: x509.BasicConstraints
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
            .add_extension(constraints, critical=True)
            .sign(self._key, hashes.SHA256())
        )
