"""`eab audit collect`: takes the decision logs of other OPAs and appends them to a file of JSON lines.

It is the service that OPA's `decision_logs.service` names. Not here: the bus's own log, which has the bus's own
decisions and nothing else (docs/decisions/foreign_decisions.md).
"""

from __future__ import annotations

import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from enhanced_agent_bus.cli.faults import CliError
from enhanced_agent_bus.cli.render import counted, echo, print_json, safe
from enhanced_agent_bus.cli.session import require_outside_homes, session_of

if TYPE_CHECKING:
    from types import FrameType

    from enhanced_agent_bus.audit.collector import Collector, Events


def add_to(app: typer.Typer) -> None:
    """Makes the command known."""
    app.command()(collect)


def collect(
    context: typer.Context,
    *,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Where events are appended.")],
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Port 0 takes a free one.")] = "127.0.0.1:8282",
    token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The bearer token that senders must have.")
    ] = None,
    max_mb: Annotated[int, typer.Option(min=1, metavar="N", help="Take no more when FILE is so large.")] = 1024,
) -> None:
    """Take decision logs that other OPAs post, until SIGTERM or Ctrl-C.

    An OPA is answered once its events are on the disk; what it is not answered it sends again, so an event may stand
    in FILE twice. It needs no home.

    Example: eab audit collect -o decisions.jsonl --listen 127.0.0.1:8282
    """
    from enhanced_agent_bus.audit.collector import Collector, Events, is_loopback

    session = session_of(context)
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) >= 1 << 16:
        raise CliError(f"{listen!r} is no address to listen on", remedy="write HOST:PORT, such as 127.0.0.1:8282")
    token = None if token_file is None else token_file.read_text(encoding="utf-8").strip()
    if token == "":
        raise CliError(f"{token_file} holds no token", remedy="write one line into it, which senders have too")
    if token is None and not is_loopback(host):
        remedy = "name a file with a token (--token-file), or listen on 127.0.0.1"
        raise CliError(f"whoever reaches {host} could write into {output}", remedy=remedy)
    require_outside_homes(output)
    try:
        events = Events(output, bytes_max=max_mb * 1024 * 1024)
    except BlockingIOError:
        raise CliError(f"another process collects into {output}", remedy="name another file") from None
    except ValueError:
        raise CliError(f"{output} is no file of events", remedy="name another file, or a new one") from None
    with events, _listening(Collector, listen, events, token) as server:
        bound = f"{host}:{server.server_address[1]}"
        if session.json:
            print_json({"listening": bound, "file": str(output)})
        else:
            echo(f"taking decision logs at http://{bound}/logs into {safe(output)}")
        _serve(server)
    if session.json:
        print_json({"file": str(output), "events": events.count})
    else:
        echo(f"wrote {counted(events.count, 'event')} to {safe(output)}")


def _listening(collector: type[Collector], listen: str, events: Events, token: str | None) -> Collector:
    """Raises: CliError, when this address cannot be had."""
    host, _, port = listen.rpartition(":")
    try:
        return collector((host.strip("[]"), int(port)), events, token)
    except OSError as error:
        what = f"it is not possible to listen on {listen}: {error.strerror or error}"
        raise CliError(what, remedy="name another address; port 0 takes a free one", code="address") from None


def _serve(server: Collector) -> None:
    import sys

    sys.stdout.flush()
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        with suppress(KeyboardInterrupt):
            server.serve_forever(poll_interval=0.1)
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
