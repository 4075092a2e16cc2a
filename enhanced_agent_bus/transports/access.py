"""Where a NATS server is, and what it is shown: addresses, credentials, certificates. No connection is made here."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from functools import cached_property
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, unquote, urlsplit

from enhanced_agent_bus.errors import ConfigInvalid

SCHEMES: Final = ("nats", "tls")
PORT: Final = 4222
USER_SEED: Final = "SU"
NSC: Final = "what `nsc generate creds` writes"
JWT: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Access:
    """Addresses and files, as the settings of `transport` have them."""

    url: str  # one or more addresses, with commas
    creds_file: Path | None = None
    nkey_file: Path | None = None
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None

    @cached_property
    def servers(self) -> tuple[SplitResult, ...]:
        return tuple(urlsplit(one.strip()) for one in self.url.split(","))

    @cached_property
    def shown(self) -> str:
        """The addresses without whatever stands before an @."""
        return ",".join(plain(server) for server in self.servers)

    @property
    def wants_tls(self) -> bool:
        """Whether a server that offers none is to be left alone."""
        return any(server.scheme == "tls" for server in self.servers) or bool(self.tls_ca or self.tls_cert)

    @property
    def is_remote(self) -> bool:
        """Whether anything of it is on another machine."""
        return not all(is_loopback(server.hostname or "") for server in self.servers)

    def options(self) -> dict[str, Any]:
        """What nats-py takes besides an address, read now. Raises: ConfigInvalid, where a file cannot be used.

        It is given texts and no paths: it would look for ever for a JWT in a file that has none.
        """
        options: dict[str, Any] = {}
        if self.creds_file is not None:
            from nats.aio.client import RawCredentials  # noqa: PLC0415 - an extra

            options["user_credentials"] = RawCredentials(_credentials(self.creds_file))
        if self.nkey_file is not None:
            seed = _text(self.nkey_file, "transport.nkey_file").strip()
            options["nkeys_seed_str"] = _checked(seed, self.nkey_file, "transport.nkey_file")
        if self.wants_tls:
            options["tls"] = self.context()
        return options

    def context(self) -> ssl.SSLContext:
        """For TLS with the server. Raises: ConfigInvalid, where a file cannot be used."""
        try:
            context = ssl.create_default_context(cafile=self.tls_ca)
            if self.tls_cert is not None:
                context.load_cert_chain(self.tls_cert, self.tls_key)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            named = ", ".join(str(path) for path in (self.tls_ca, self.tls_cert, self.tls_key) if path is not None)
            raise ConfigInvalid(
                f"TLS with {self.shown} cannot be set up from {named}: {why}",
                remedy="check transport.tls_ca, tls_cert and tls_key",
            ) from None
        return context


def _text(path: Path, setting: str) -> str:
    """Raises: ConfigInvalid."""
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigInvalid(f"{path}, which {setting} names, cannot be read: {what}", remedy="check the path") from None


def _credentials(path: Path) -> str:
    """A credentials file, in the shape that nats-py reads. Raises: ConfigInvalid."""
    setting = "transport.creds_file"
    content = _text(path, setting)
    jwt = _after(content, "BEGIN NATS USER JWT")
    if not JWT.fullmatch(jwt):
        raise ConfigInvalid(f"{path}, which {setting} names, has no JWT of a user", remedy=f"write {NSC} into it")
    seed = _checked(_after(content, "BEGIN USER NKEY SEED"), path, setting)
    return f"-----BEGIN NATS USER JWT-----\n{jwt}\n-----BEGIN USER NKEY SEED-----\n{seed}\n"


def _checked(seed: str, path: Path, setting: str) -> str:
    """Raises: ConfigInvalid, for anything but the seed of a user."""
    try:
        import nkeys  # noqa: PLC0415 - an extra
    except ImportError:
        raise missing(setting) from None
    of_user = seed if seed.startswith(USER_SEED) else ""
    try:
        nkeys.from_seed(bytearray(of_user.encode())).wipe()
    except (nkeys.NkeysError, ValueError):
        shape = NSC if setting == "transport.creds_file" else f"a seed that begins with {USER_SEED}"
        raise ConfigInvalid(
            f"{path}, which {setting} names, has no seed of a user", remedy=f"write {shape} into it"
        ) from None
    return seed


def _after(content: str, word: str) -> str:
    """The line after the one that announces it; empty where there is none."""
    lines = iter(content.splitlines())
    return next((next(lines, "") for line in lines if word in line), "").strip()


def plain(server: SplitResult) -> str:
    """One address without user and password."""
    return f"{server.scheme}://{server.netloc.rpartition('@')[2]}"


def secrets_of(server: SplitResult) -> tuple[str | None, str | None]:
    """The user and password of an address."""
    return tuple(unquote(one) if one is not None else None for one in (server.username, server.password))  # type: ignore[return-value]


def is_loopback(host: str) -> bool:
    """Whether a host is this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def missing(what: str) -> ConfigInvalid:
    """The extra that is not installed."""
    return ConfigInvalid(
        f"{what} needs the NATS client, which is not installed",
        remedy="install the extra: pip install 'opa-agent-bus[nats]'",
    )
