"""The Merkle tree, against RFC 6962's definition written down as it stands there, and known vectors."""

from __future__ import annotations

from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from enhanced_agent_bus.audit import homes, verify
from enhanced_agent_bus.ledger import merkle
from enhanced_agent_bus.ledger.checkpoint import Checkpoint, Signer, Verifier

# The test data of certificate-transparency (RFC 6962 implementations share it): leaves and the root at each size.
LEAVES = [bytes.fromhex(leaf) for leaf in ["", "00", "10", "2021", "3031", "40414243", "5051525354555657"]]
LEAVES.append(bytes.fromhex("606162636465666768696a6b6c6d6e6f"))
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def by_definition(leaves: list[bytes]) -> bytes:
    """MTH of RFC 6962 §2.1, word for word."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return sha256(b"\0" + leaves[0]).digest()
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return sha256(b"\1" + by_definition(leaves[:k]) + by_definition(leaves[k:])).digest()


def test_known_roots() -> None:
    """The roots of the shared test data come out, at every size."""
    frontier: list[bytes] = []
    for size, leaf in enumerate(LEAVES):
        merkle.grow(frontier, size, merkle.leaf_hash(leaf))
        assert merkle.root_hash(frontier).hex() == ROOTS[size]
    assert merkle.root_hash([]).hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@given(st.lists(st.binary(max_size=8), max_size=70))
def test_both_sides_agree_with_the_definition(leaves: list[bytes]) -> None:
    """Writer, verifier and RFC agree on every tree, and a stored frontier goes on where it stopped."""
    written: list[bytes] = []
    checked: list[bytes] = []
    for size, leaf in enumerate(leaves):
        written = merkle.unpack(merkle.pack(written), size)
        merkle.grow(written, size, merkle.leaf_hash(leaf))
        verify.grow(checked, size, sha256(b"\0" + leaf).digest())
    assert merkle.root_hash(written) == verify.root_of(checked) == by_definition(leaves)


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=90), st.data())
def test_many_leaves_at_once_make_the_same_tree(leaves: list[bytes], data: st.DataObject) -> None:
    """A tree grown in batches of any size is the one grown leaf by leaf."""
    single: list[bytes] = []
    batched: list[bytes] = []
    start = 0
    while start < len(leaves):
        batch = leaves[start : start + data.draw(st.integers(1, 40))]
        merkle.extend(batched, start, batch)
        for size, leaf in enumerate(batch, start):
            merkle.grow(single, size, leaf)
        start += len(batch)
        assert batched == single


def test_frontier_of_another_size_is_refused() -> None:
    """A stored frontier has one hash for each full subtree of its size."""
    with pytest.raises(ValueError, match="full subtrees"):
        merkle.unpack(bytes(32), 3)


@given(st.binary(min_size=32, max_size=32), st.integers(0, 2**40))
def test_signed_checkpoint_opens_on_both_sides(root: bytes, size: int) -> None:
    """What the writer signs, the writer's verifier and the one without dependencies open; one changed digit neither."""
    signer = Signer("bus-1/node-1", Ed25519PrivateKey.generate())
    note = signer.sign(Checkpoint("bus-1/node-1", size, root))
    writer, outsider = Verifier.from_vkey(signer.verifier.vkey), verify.read_key(signer.verifier.vkey)
    assert writer.open(note) == Checkpoint("bus-1/node-1", size, root)
    assert outsider.opens(note)
    assert (verify.read_note(note).size, verify.read_note(note).root) == (size, root)
    forged = note.replace(f"\n{size}\n", f"\n{size + 1}\n", 1)
    assert not outsider.opens(forged)
    with pytest.raises(ValueError, match="no valid signature"):
        writer.open(forged)


def test_known_signatures() -> None:
    """RFC 8032 §7.1, tests 1 to 3, and what must not pass: a changed message, a scalar that is too large."""
    for public, message, signature in [
        (
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        ),
        (
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        ),
        (
            "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
            "af82",
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
        ),
    ]:
        key, text, signed = bytes.fromhex(public), bytes.fromhex(message), bytes.fromhex(signature)
        assert verify.ed25519_verify(key, text, signed)
        assert not verify.ed25519_verify(key, text + b"x", signed)
        order = 2**252 + 27742317777372353535851937790883648493
        malleable = signed[:32] + (int.from_bytes(signed[32:], "little") + order).to_bytes(32, "little")
        assert not verify.ed25519_verify(key, text, malleable)
        assert not verify.ed25519_verify(key, text, signed[:63])


def test_key_is_read_from_both_formats() -> None:
    """A vkey and a PEM of one key open the same note; a vkey whose id is not its key's is refused."""
    signer = Signer("bus-1/node-1", Ed25519PrivateKey.generate())
    note = signer.sign(Checkpoint("bus-1/node-1", 3, bytes(32)))
    pem = signer.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    assert homes.read_key(pem).opens(note)
    name, key_id, key = signer.verifier.vkey.split("+", 2)
    other = f"{name}+{int(key_id, 16) ^ 1:08x}+{key}"
    with pytest.raises(ValueError, match="vkey"):
        homes.read_key(other)
    with pytest.raises(ValueError, match="key id"):
        Verifier.from_vkey(other)
