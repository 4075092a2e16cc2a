"""Which transport an address stands for."""

from __future__ import annotations

from pathlib import Path

from enhanced_agent_bus.ports import Transport
from enhanced_agent_bus.transports.access import Access, missing
from enhanced_agent_bus.transports.memory import SCHEME, open_memory


async def transport_at(
    url: str,
    bus: str,
    *,
    ack_seconds: float = 30.0,
    dedup_seconds: float = 600.0,
    replicas: int = 1,
    monitor: str = "",
    creds_file: Path | None = None,
    nkey_file: Path | None = None,
    tls_ca: Path | None = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
) -> Transport:
    """Opens it for the bus of that name. Raises: ConfigInvalid; TransportAway, when nobody is there."""
    if url.startswith(SCHEME):
        return open_memory(url, ack_seconds=ack_seconds, dedup_seconds=dedup_seconds)
    access = Access(url, creds_file, nkey_file, tls_ca, tls_cert, tls_key)
    try:
        from enhanced_agent_bus.transports.nats import open_nats  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "nats":
            raise
        raise missing(access.shown) from None
    return await open_nats(
        access, bus, ack_seconds=ack_seconds, dedup_seconds=dedup_seconds, replicas=replicas, monitor=monitor
    )
