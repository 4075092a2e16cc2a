"""The key with which a node signs letters: made when a home needs it, and never replaced unseen."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from enhanced_agent_bus.errors import StoreCorrupt
from enhanced_agent_bus.ledger.anew import begin_anew
from enhanced_agent_bus.ledger.checkpoint import Signer
from enhanced_agent_bus.ledger.home import open_home
from enhanced_agent_bus.letters.keys import read_vkey
from tests.entries import fill


def signer_of(path: Path) -> Signer:
    """The node's signer, from a home opened for this alone."""
    home = open_home(path)
    try:
        return home.node_signer
    finally:
        home.release()


async def test_a_home_has_its_nodes_key(tmp_path: Path) -> None:
    """Beside the log's and another one, for its owner's eyes alone, with a vkey under the node's name for others."""
    path = tmp_path / "home"
    await fill(path, 1)
    private, public = path / "keys" / "node.key", path / "keys" / "node.vkey"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert public.read_text() != (path / "keys" / "log.vkey").read_text()
    home = open_home(path)
    name, key = read_vkey(public.read_text())
    assert name == home.origin == f"{home.bus}/{home.node}"
    key.verify(home.node_signer.key.sign(b"letter"), b"letter")
    assert home.node_signer.key.private_bytes_raw() != home.signer.key.private_bytes_raw()
    home.release()
    assert signer_of(path).verifier.vkey == public.read_text().strip()


async def test_an_old_home_gets_one_when_it_is_needed(tmp_path: Path) -> None:
    """Not by being opened; then once, and the same ever after. Half a making is ended."""
    path = tmp_path / "home"
    await fill(path, 1)
    private, public = path / "keys" / "node.key", path / "keys" / "node.vkey"
    private.unlink()
    public.unlink()
    open_home(path).release()
    assert not private.exists()
    made = signer_of(path).verifier.vkey
    assert public.read_text() == f"{made}\n"
    public.unlink()  # a process that died between the two files
    assert signer_of(path).verifier.vkey == made
    assert public.read_text() == f"{made}\n"


@pytest.mark.parametrize("left", [None, b"", b"-----BEGIN PRIVATE KEY-----\n", b"\xff\xff"])
async def test_a_key_that_was_lost_is_not_replaced(tmp_path: Path, left: bytes | None) -> None:
    """Others know the public one: whoever opens the home is told, and nothing is written."""
    path = tmp_path / "home"
    await fill(path, 1)
    private, public = path / "keys" / "node.key", path / "keys" / "node.vkey"
    before = public.read_text()
    private.unlink()
    if left is not None:
        private.write_bytes(left)
    with pytest.raises(StoreCorrupt, match=r"node") as refused:
        signer_of(path)
    assert refused.value.remedy
    assert public.read_text() == before
    assert private.exists() == (left is not None)


async def test_a_new_log_is_another_node(tmp_path: Path) -> None:
    """With another name and key; the old one is put aside with what was lost."""
    path = tmp_path / "home"
    await fill(path, 1)
    before = signer_of(path)
    home = open_home(path)
    anew = begin_anew(path, home.lock, "its disk broke")
    assert anew.node_signer.name == anew.origin != before.name
    assert anew.node_signer.key.private_bytes_raw() != before.key.private_bytes_raw()
    anew.release()
    (old,) = path.glob("lost/*/keys/node.vkey")
    assert old.read_text().strip() == before.verifier.vkey
