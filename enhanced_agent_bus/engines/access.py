"""How an OPA server is reached: its place, the token that it wants, and TLS."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path
from typing import Final

import httpx

from enhanced_agent_bus.errors import ConfigInvalid

TOKEN_BYTES_MAX: Final = 16 << 10


class Token:
    """A bearer token in a file, read again when the server refuses it."""

    def __init__(self, path: Path) -> None:
        """Raises: ConfigInvalid."""
        self._path = path
        try:
            self.header = self._read()
        except (OSError, ValueError) as error:
            raise ConfigInvalid(
                f"the setting policy.token_file cannot be used: {path}: {getattr(error, 'strerror', None) or error}",
                remedy="name a file that holds the token as one line of ASCII text",
            ) from None

    def read_again(self) -> None:
        """What cannot be read leaves the one before."""
        with contextlib.suppress(OSError, ValueError):
            self.header = self._read()

    def _read(self) -> bytes:
        with self._path.open("rb") as file:
            token = file.read(TOKEN_BYTES_MAX).strip()
        if not token or not token.isascii() or not token.decode().isprintable() or b" " in token:
            raise ValueError("it does not hold one token")
        return b"Bearer " + token


def place_of(url: str) -> tuple[str | None, httpx.URL]:
    """The path of a Unix socket, or None, and what requests are made for. Raises: ConfigInvalid."""
    if url.startswith("unix:"):
        return url.removeprefix("unix://"), httpx.URL("http://localhost")
    try:
        return None, httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ConfigInvalid(
            f"the setting policy.engine cannot be used: {error}", remedy='write it as "http://host:port"'
        ) from None


def tls_context(ca: Path | None, cert: Path | None, key: Path | None) -> ssl.SSLContext:
    """Raises: ConfigInvalid."""
    try:
        context = ssl.create_default_context(cafile=ca) if ca is not None else httpx.create_ssl_context(trust_env=False)
    except (OSError, ValueError) as error:
        raise _unusable("policy.tls_ca", ca, error) from None
    if cert is not None:
        try:
            context.load_cert_chain(cert, key, password="")  # never asked for at the terminal
        except (OSError, ValueError) as error:
            raise _unusable("policy.tls_cert or policy.tls_key", cert, error) from None
    return context


def _unusable(setting: str, path: Path | None, error: Exception) -> ConfigInvalid:
    why = getattr(error, "strerror", None) or getattr(error, "reason", None) or error
    return ConfigInvalid(
        f"the setting {setting} cannot be used: {path}: {why}", remedy="name a PEM file, its key without a password"
    )
