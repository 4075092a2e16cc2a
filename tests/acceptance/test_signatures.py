"""Signed constitutions: only what a trusted key has signed decides, revisions only go up, and every no is recorded."""

from __future__ import annotations

import asyncio
import base64
import gzip
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from enhanced_agent_bus import ConfigInvalid, ConstitutionRejected, StoreCorrupt, open_bus
from enhanced_agent_bus.cli.app import run_command
from tests.developer import PATIENT, log
from tests.support import write_constitution

OPA = Path(__file__).resolve().parents[2] / ".tools" / "bin" / "opa"
CHANGED = {"added": "admit if true", "cap": "admit if input.message.payload.n < 10"}


def eab(*arguments: str) -> int:
    """The exit status of one command, in a thread of its own: it runs a loop of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run_command, list(arguments)).result()


class Signer:
    """A key pair in a folder, and bundles that it has signed."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.key = folder / "policy.key"
        self.public = folder / "policy.pub"
        self.private = generate_private_key(SECP256R1())
        self.key.write_bytes(self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        self.public.write_bytes(self.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))

    def bundle(self, revision: str, rules: dict[str, str] | None = None, **settings: Any) -> Path:
        """A signed bundle of this revision."""
        folder = self.folder / f"policies-{revision}-{len(list(self.folder.iterdir()))}"
        write_constitution(folder, rules, revision=revision, **settings)
        bundle = folder.with_suffix(".tar.gz")
        assert eab("policy", "build", str(folder), "-o", str(bundle)) == 0
        assert eab("policy", "sign", str(bundle), "--key", str(self.key)) == 0
        return bundle


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    """Whom the bus trusts."""
    return Signer(tmp_path / "signer")


def trusting(signer: Signer, path: Path | None) -> dict[str, Any]:
    """The settings of a bus that trusts this signer."""
    section: dict[str, Any] = {"trust": [str(signer.public)]}
    if path is not None:
        section["path"] = str(path)
    return {"constitution": section, "policy": dict(PATIENT)}


def edited(bundle: Path, change: Callable[[dict[str, bytes]], None], folder: Path | None = None) -> Path:
    """A copy of a bundle, beside it or in a folder, in which something was changed after it was signed."""
    with tarfile.open(bundle) as archive:
        files = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    change(files)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in sorted(files.items()):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    copy = (folder or bundle.parent) / "edited.tar.gz"
    copy.write_bytes(gzip.compress(out.getvalue()))
    return copy


async def test_a_signed_bundle_decides_and_no_weakening_is_named_for_it(tmp_path: Path, signer: Signer) -> None:
    """Also after a restart, from what the home keeps."""
    bundle = signer.bundle("1")
    for path in (bundle, None):
        async with open_bus(tmp_path / "home", **trusting(signer, path)) as bus:
            assert not {"constitution_folder", "unsigned_constitution"} & set(bus.status().security_state)
            desk = await bus.register("desk", tenant="acme")
            await bus.register("booker", tenant="acme")
            assert (await desk.send("booker", {"n": 1})).ok
    async with open_bus(tmp_path / "other", constitution=bundle, policy=dict(PATIENT)) as bus:
        assert "unsigned_constitution" in bus.status().security_state  # nobody has verified it


def _signature(files: dict[str, bytes]) -> tuple[str, str, str]:
    [token] = json.loads(files[".signatures.json"])["signatures"]
    header, payload, signature = token.split(".")
    return header, payload, signature


def _resigned(files: dict[str, bytes], header: dict[str, str], sign: Callable[[bytes], bytes]) -> None:
    _, payload, _ = _signature(files)
    front = f"{_encode(json.dumps(header).encode())}.{payload}"
    token = f"{front}.{_encode(sign(front.encode()))}"
    files[".signatures.json"] = json.dumps({"signatures": [token]}).encode()


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _hmac(key: bytes) -> Callable[[bytes], bytes]:
    def sign(data: bytes) -> bytes:
        made = HMAC(key, SHA256())
        made.update(data)
        return made.finalize()

    return sign


def _put(name: str, data: bytes) -> Callable[[dict[str, bytes], Signer], None]:
    def change(files: dict[str, bytes], _signer: Signer) -> None:
        files[name] = data

    return change


def _space(files: dict[str, bytes], _signer: Signer) -> None:
    files["bus/manifest/data.json"] += b" "


def _one_byte(files: dict[str, bytes], _signer: Signer) -> None:
    files["bus/main.rego"] += b"#"


def _none(files: dict[str, bytes], _signer: Signer) -> None:
    _resigned(files, {"alg": "none"}, lambda _: b"")


def _with_public_key(files: dict[str, bytes], signer: Signer) -> None:
    _resigned(files, {"alg": "HS256"}, _hmac(signer.public.read_bytes()))


def _twice(files: dict[str, bytes], _signer: Signer) -> None:
    [token] = json.loads(files[".signatures.json"])["signatures"]
    files[".signatures.json"] = json.dumps({"signatures": [token, token]}).encode()


def _removed(files: dict[str, bytes], _signer: Signer) -> None:
    del files["CONSTITUTION.md"]


def _unsigned(files: dict[str, bytes], _signer: Signer) -> None:
    del files[".signatures.json"]


FORGED: dict[str, tuple[Callable[[dict[str, bytes], Signer], None], str]] = {
    "no signature": (_unsigned, "unsigned"),
    "one byte more in a policy": (_one_byte, "bad_signature"),
    "a space more in a data file, which OPA does not see": (_space, "bad_signature"),
    "a file more": (_put("bus/more.md", b"# more\n"), "bad_signature"),
    "a file less": (_removed, "bad_signature"),
    "an empty list of signatures": (_put(".signatures.json", b'{"signatures":[]}'), "bad_signature"),
    "no list": (_put(".signatures.json", b"{}"), "bad_signature"),
    "no JSON": (_put(".signatures.json", b"signed"), "bad_signature"),
    "a plugin": (_put(".signatures.json", b'{"signatures":["a.b.c"],"plugin":"mine"}'), "bad_signature"),
    "alg none": (_none, "bad_signature"),
    "HMAC with the public key": (_with_public_key, "bad_signature"),
    "the signature twice": (_twice, "bad_signature"),
}


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Signer, Path, Path]:
    """A signer, and the revisions 1 and 2 that it has signed."""
    signer = Signer(tmp_path_factory.mktemp("signed"))
    return signer, signer.bundle("1"), signer.bundle("2")


@pytest.mark.parametrize("name", FORGED)
async def test_what_was_not_signed_as_it_is_does_not_decide(
    tmp_path: Path, signed: tuple[Signer, Path, Path], name: str
) -> None:
    """The old constitution keeps deciding, and the attempt is in the log with its reason."""
    change, reason = FORGED[name]
    signer, first, second = signed
    forged = edited(second, lambda files: change(files, signer), tmp_path)
    async with open_bus(tmp_path / "home", **trusting(signer, first)) as bus:
        before = bus.status()
        with pytest.raises(ConstitutionRejected) as raised:
            await bus.activate(forged)
        assert raised.value.reason == reason
        assert (bus.status().constitution, bus.status().revision) == (before.constitution, 1)
        assert (await bus.activate(second)).revision == 2
    [rejected] = log(tmp_path / "home", "policy", event="rejected")
    assert rejected["reason"] == reason


async def test_an_unknown_signer_and_a_folder_do_not_decide(tmp_path: Path, signer: Signer) -> None:
    """Somebody else's signature is a bad one; what has none is unsigned."""
    other = Signer(tmp_path / "other")
    folder = write_constitution(tmp_path / "folder", revision="3")
    async with open_bus(tmp_path / "home", **trusting(signer, signer.bundle("1"))) as bus:
        for path, reason in ((other.bundle("2"), "bad_signature"), (folder, "unsigned")):
            with pytest.raises(ConstitutionRejected) as raised:
                await bus.activate(path)
            assert raised.value.reason == reason
    with pytest.raises(ConstitutionRejected):
        async with open_bus(tmp_path / "new", **trusting(signer, folder)):
            pass
    with pytest.raises(ConfigInvalid, match=r"missing\.pem"):
        async with open_bus(
            tmp_path / "new", constitution={"path": str(folder), "trust": [str(tmp_path / "missing.pem")]}
        ):
            pass


async def test_revisions_only_go_up(tmp_path: Path, signer: Signer) -> None:
    """A lower one is a rollback, the same number with other bytes is reused, the same bytes again are a no-op."""
    older, newer = signer.bundle("4"), signer.bundle("5")
    other = signer.bundle("5", CHANGED)
    async with open_bus(tmp_path / "home", **trusting(signer, older)) as bus:
        await bus.activate(newer)
        for path, reason in ((older, "rollback"), (other, "revision_reused")):
            with pytest.raises(ConstitutionRejected) as raised:
                await bus.activate(path)
            assert raised.value.reason == reason
        assert (await bus.activate(newer)).revision == 5
        assert bus.status().revision == 5
    async with open_bus(tmp_path / "home", **trusting(signer, older)) as bus:  # ignored, and said so
        assert bus.status().revision == 5
    events = [record["event"] for record in log(tmp_path / "home", "policy")]
    assert events == ["activated", "activated", "rejected", "rejected", "unchanged", "ignored"]


async def test_a_home_that_lost_its_mark_does_not_start_by_itself(
    tmp_path: Path, signer: Signer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever takes the mark away could bring an older revision back: only an operator's word starts it, recorded."""
    home = tmp_path / "home"
    bundle = signer.bundle("7")
    async with open_bus(home, **trusting(signer, bundle)):
        pass
    names = json.loads((home / "home.json").read_text())
    assert names["high_water"]["revision"] == 7
    del names["high_water"]
    (home / "home.json").write_text(json.dumps(names))
    with pytest.raises(StoreCorrupt, match="high-water"):
        async with open_bus(home, **trusting(signer, None)):
            pass
    capsys.readouterr()


def test_an_operator_resets_the_mark(tmp_path: Path, signer: Signer, capsys: pytest.CaptureFixture[str]) -> None:
    """`eab init --reset-revision` takes the active revision for the highest, and that is in the log."""
    home = tmp_path / "home"
    bundle = signer.bundle("7")
    command = ["--home", str(home), "init", "--reset-revision"]

    async def opened() -> None:
        async with open_bus(home, **trusting(signer, bundle)):
            pass

    asyncio.run(opened())
    assert eab(*command) == 2
    assert "no revision to reset" in capsys.readouterr().err
    names = json.loads((home / "home.json").read_text())
    mark = names.pop("high_water")
    (home / "home.json").write_text(json.dumps(names))
    assert eab(*command) == 0
    assert json.loads((home / "home.json").read_text())["high_water"] == mark
    assert [record["event"] for record in log(home, "policy")] == ["activated", "revision_reset"]
    asyncio.run(opened())


async def test_an_expired_bundle_is_rejected(tmp_path: Path, signer: Signer) -> None:
    """`not_after` is part of what was signed."""
    async with open_bus(tmp_path / "home", **trusting(signer, signer.bundle("1"))) as bus:
        with pytest.raises(ConstitutionRejected) as raised:
            await bus.activate(signer.bundle("2", not_after="2020-01-01T00:00:00Z"))
        assert raised.value.reason == "expired"
        assert bus.status().revision == 1


async def test_the_key_can_live_elsewhere(tmp_path: Path, signer: Signer, capsys: pytest.CaptureFixture[str]) -> None:
    """A KMS signs the sha256 that is printed, in DER; its answer in base64 makes the bundle a signed one."""
    folder = write_constitution(tmp_path / "policies")
    bundle = tmp_path / "bundle.tar.gz"
    assert eab("policy", "build", str(folder), "-o", str(bundle)) == 0
    capsys.readouterr()
    assert eab("--json", "policy", "sign", str(bundle), "--digest-only") == 0
    wanted = json.loads(capsys.readouterr().out)
    digest = bytes.fromhex(wanted["sha256"])
    assert sha256(wanted["signing_input"].encode()).digest() == digest
    made = base64.b64encode(signer.private.sign(digest, ECDSA(Prehashed(SHA256())))).decode()
    wrong = base64.b64encode(signer.private.sign(bytes(32), ECDSA(Prehashed(SHA256())))).decode()
    public = ["--key", str(signer.public)]
    assert eab("policy", "sign", str(bundle), *public, "--signature", wrong) == 2
    assert "not this key's signature" in capsys.readouterr().err
    assert eab("policy", "sign", str(bundle), *public, "--signature", made) == 0
    async with open_bus(tmp_path / "home", **trusting(signer, bundle)) as bus:
        assert "unsigned_constitution" not in bus.status().security_state


def test_stock_opa_verifies_what_we_sign(tmp_path: Path, signer: Signer) -> None:
    """The signature is OPA's own kind: stock OPA takes the bundle with the key, and not after a change."""
    bundle = signer.bundle("1")
    forged = edited(bundle, lambda files: _one_byte(files, signer))
    for path, status in ((bundle, 0), (forged, 1)):
        command = [
            str(OPA),
            "build",
            "-b",
            str(path),
            "--verification-key",
            str(signer.public),
            "--signing-alg",
            "ES256",
        ]
        done = subprocess.run([*command, "-o", str(tmp_path / "out.tar.gz")], capture_output=True, check=False)
        assert done.returncode == status, done.stderr


def test_bad_keys_get_a_sentence(tmp_path: Path, signer: Signer, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing key, a text that is none, a folder without -o: exit status 2, and nothing is written."""
    bundle = signer.bundle("1")
    before = bundle.read_bytes()
    (tmp_path / "no.key").write_text("no key")
    for rest in (["--key", str(tmp_path / "missing.key")], ["--key", str(tmp_path / "no.key")], []):
        assert eab("--home", str(tmp_path / "nowhere"), "policy", "sign", str(bundle), *rest) == 2
        assert capsys.readouterr().err.startswith("eab: ")
    folder = bundle.with_suffix("").with_suffix("")
    assert eab("policy", "sign", str(folder), "--key", str(signer.key)) == 2
    assert "-o" in capsys.readouterr().err
    assert bundle.read_bytes() == before
    shutil.rmtree(folder)
