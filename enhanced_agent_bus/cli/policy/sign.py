"""`eab policy sign`: the signature that lets a bundle into production, with a key here or one that lives elsewhere."""

from __future__ import annotations

import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import typer

from enhanced_agent_bus.cli.faults import CliError
from enhanced_agent_bus.cli.render import echo, print_json, safe
from enhanced_agent_bus.cli.session import Session, require_outside_homes, session_of

Key = Annotated[
    Path | None,
    typer.Option(
        metavar="PEM",
        help="The private key (P-256), by default keys/policy.key of the home; with --signature, the public one.",
    ),
]


def sign(
    context: typer.Context,
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle.tar.gz, or a folder with -o.")],
    *,
    key: Key = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="BUNDLE", help="Write there, and leave BUNDLE as it is.")
    ] = None,
    digest_only: Annotated[
        bool, typer.Option("--digest-only", help="Print what an external signer must sign, and write nothing.")
    ] = False,
    signature: Annotated[
        str | None, typer.Option(metavar="TEXT", help="A signature made elsewhere: base64 or hex, DER or r and s.")
    ] = None,
) -> None:
    """Sign a bundle (ES256).

    Stock OPA verifies the signature too. It says which files are in the bundle, and their constitutional hash.

    Example: eab policy sign bundle.tar.gz --key policy.key
    """
    import asyncio

    from enhanced_agent_bus.authoring import signing
    from enhanced_agent_bus.authoring.workbench import workbench

    session = session_of(context)
    if not bundle.exists():
        raise CliError(f"there is no bundle at {bundle}", remedy="write one with `eab policy build`", code="file")
    if bundle.is_dir() and output is None and not digest_only:
        remedy = f"build it first: `eab policy build {bundle} -o bundle.tar.gz`"
        raise CliError(f"{bundle} is a folder, and a signature is for a bundle", remedy=remedy, code="file")
    target = output or bundle
    if not digest_only and (target.is_dir() or not target.absolute().parent.is_dir()):
        raise CliError(
            f"a bundle cannot be written to {target}",
            remedy="name a file with -o, in a folder that exists",
            code="file",
        )

    if not digest_only:
        require_outside_homes(target)

    async def work() -> tuple[str, str]:
        async with workbench() as bench:
            digest, payload = await bench.claims(bundle)
            if digest_only:
                return digest, payload
            place = key or _home_key(session)
            if signature is None:
                token = signing.signed(payload, signing.private_key(place))
            else:
                token = signing.token_with(payload, signing.signature_from(signature), signing.public_key(place))
            with tempfile.TemporaryDirectory(prefix="eab-") as folder:
                part = Path(folder) / "bundle.tar.gz"
                await bench.sign(bundle, part, token)
                _replace(target, part.read_bytes())
            return digest, payload

    digest, payload = asyncio.run(work())
    if digest_only:
        _show_digest(session, digest, signing.signing_input(payload))
    elif session.json:
        print_json({"bundle": str(target), "digest": digest})
    else:
        echo(f"signed {safe(target)}, constitution {digest}")


def _show_digest(session: Session, digest: str, wanted: bytes) -> None:
    hashed = sha256(wanted).hexdigest()
    if session.json:
        print_json({"digest": digest, "algorithm": "ES256", "signing_input": wanted.decode(), "sha256": hashed})
        return
    echo(f"constitution   {digest}")
    echo(f"sha256         {hashed}")
    echo(f"signing input  {wanted.decode()}")


def _home_key(session: Session) -> Path:
    try:
        place = session.existing_home() / "keys" / "policy.key"
    except CliError as error:
        remedy = "name the key with --key PEM, or a home that has one with --home DIR"
        raise CliError(f"there is no key to sign with: {error.message}", remedy=remedy, code=error.code) from None
    if not place.is_file():
        raise CliError(f"there is no signing key at {place}", remedy="name one with --key PEM", code="file")
    return place


def _replace(target: Path, data: bytes) -> None:
    part = target.with_name(f".{target.name}.part")
    part.write_bytes(data)
    part.replace(target)
