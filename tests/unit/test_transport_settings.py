"""Settings of the transport: addresses, files, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from enhanced_agent_bus import ConfigInvalid
from enhanced_agent_bus.settings import Settings, load_settings


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"url": "memory://trial-1_a"},
        {"url": "nats://127.0.0.1:4222"},
        {"url": "nats://localhost"},
        {"url": "tls://a.example:4222,tls://user:secret@b.example:4222", "tls_cert": "c.pem", "tls_key": "k.pem"},
        {"url": "nats://[::1]:4222", "creds_file": "user.creds", "replicas": 3, "monitor": "http://127.0.0.1:8222/"},
        {"url": "nats://a.example", "nkey_file": "user.nk"},
    ],
)
def test_addresses_that_can_be(given: dict[str, Any]) -> None:
    """A network of this process, or NATS servers, with what they need."""
    assert Settings.model_validate({"transport": given}).transport.url == given.get("url", "memory://")


@pytest.mark.parametrize(
    "given",
    [
        {"url": ""},
        {"url": "nats"},
        {"url": "http://127.0.0.1:4222"},
        {"url": "nats://"},
        {"url": "nats://host:0"},
        {"url": "nats://host:99999"},
        {"url": "nats://host/path"},
        {"url": "nats://a, nats://b"},
        {"url": "nats://a,memory://b"},
        {"url": "memory://a/b"},
        {"url": "memory://" + "a" * 65},
        {"url": "memory://a", "creds_file": "user.creds"},
        {"tls_ca": "ca.pem"},
        {"replicas": 3},
        {"monitor": "http://127.0.0.1:8222"},
        {"url": "nats://a", "replicas": 0},
        {"url": "nats://a", "replicas": 6},
        {"url": "nats://a", "tls_key": "k.pem"},
        {"url": "nats://a", "creds_file": "user.creds", "nkey_file": "user.nk"},
        {"url": "nats://a", "monitor": "127.0.0.1:8222"},
        {"url": "nats://a", "monitor": "http://user:secret@127.0.0.1:8222"},
    ],
)
def test_addresses_that_cannot_be(given: dict[str, Any]) -> None:
    """What no transport could be opened from is an error, and so is a file that nobody would read."""
    with pytest.raises(ValidationError):
        Settings.model_validate({"transport": given})


def test_an_error_has_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that cannot be used may have a secret in it, which is not repeated."""
    monkeypatch.setenv("EAB_TRANSPORT__URL", "nats://user:secret@host/path")
    with pytest.raises(ConfigInvalid) as raised:
        load_settings(None)
    assert "secret" not in str(raised.value)
    assert "transport.url" in str(raised.value)


def test_files_are_beside_the_settings(tmp_path: Path) -> None:
    """In eab.toml a path is relative to that file."""
    text = '[transport]\nurl = "nats://a"\ncreds_file = "user.creds"\nnodes = ["b.vkey"]\n'
    (tmp_path / "eab.toml").write_text(text, encoding="utf-8")
    transport = load_settings(tmp_path).transport
    assert (transport.creds_file, transport.nodes) == (tmp_path / "user.creds", (tmp_path / "b.vkey",))
