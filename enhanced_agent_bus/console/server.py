"""The console as an application, and how it is served: on 127.0.0.1, until Ctrl-C or SIGTERM.

Every task belongs to the application's life: the verifier and the tally begin with it and end with it.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sqlite3
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from enhanced_agent_bus.audit.query import BadQuery
from enhanced_agent_bus.cli.audit.witness import vouched
from enhanced_agent_bus.cli.faults import CliError, describe
from enhanced_agent_bus.cli.render import safe
from enhanced_agent_bus.cli.session import Session
from enhanced_agent_bus.console.access import Recorder
from enhanced_agent_bus.console.guard import Guard, Tokens
from enhanced_agent_bus.console.live import Live
from enhanced_agent_bus.console.pages import Pages, Parts
from enhanced_agent_bus.console.rendering import FOLDER
from enhanced_agent_bus.console.tally import Tally
from enhanced_agent_bus.console.verifying import Verifier
from enhanced_agent_bus.console.views import Views
from enhanced_agent_bus.errors import BusError

HOST: Final = "127.0.0.1"  # and nothing else: who is on this machine and has the token
CONNECTIONS_MAX: Final = 64
COUNT_SECONDS: Final = 0.5  # the log is counted for so long at a time, and a closing console waits no longer
LOOK_SECONDS: Final = 2.0  # whether there is more to count
STOP_SECONDS_MAX: Final = 2
STATIC_FILES: Final = {"console.css": "text/css", "console.js": "text/javascript", "icon.svg": "image/svg+xml"}


def make_app(
    session: Session,
    *,
    tokens: Tokens,
    port: int,
    payload: bool = False,
    checkpoint: Path | None = None,
) -> ASGIApp:
    """The console on the home of a session, for whoever has one of the tokens."""
    home = session.existing_home()
    parts = Parts(
        session=session,
        home=home,
        recorder=Recorder(home, vouched(home, checkpoint)),
        views=Views(),
        live=Live(home),
        tally=Tally(home),
        verifier=Verifier(home, checkpoint),
        payload=payload,
    )
    pages = Pages(parts)
    app = Starlette(
        routes=[
            Route("/", pages.log),
            Route("/news", pages.news),
            Route("/message", pages.message),
            Route("/record", pages.record),
            Route("/agents", pages.agents),
            Route("/agent", pages.agent),
            Route("/traffic", pages.graph),
            Route("/dead", pages.dead),
            Route("/dead/replay", pages.replay, methods=["POST"]),
            Route("/policy", pages.policy),
            Route("/source", pages.source),
            Route("/proof", pages.proof),
            Route("/verify", pages.verify, methods=["POST"]),
            Route("/static/{name}", _static),
        ],
        exception_handlers=_handlers(pages),
        lifespan=lambda _app: _living(parts),
    )
    return Guard(app, tokens=tokens, port=port)


@asynccontextmanager
async def _living(parts: Parts) -> AsyncIterator[None]:
    """The log is verified and counted while the application lives."""
    tasks = [
        asyncio.create_task(work) for work in (_kept_up(parts.verifier.run), _kept_up(lambda: _count(parts.tally)))
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _kept_up(work: Callable[[], Awaitable[None]]) -> None:
    """Begins again where the home could not be read: the pages say so themselves."""
    while True:
        with suppress(BusError, OSError, sqlite3.Error):
            await work()
        await asyncio.sleep(LOOK_SECONDS)


async def _count(tally: Tally) -> None:
    while True:
        if await asyncio.to_thread(tally.advance, COUNT_SECONDS):
            await asyncio.sleep(LOOK_SECONDS)


async def _static(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in STATIC_FILES:
        raise HTTPException(404, "there is no such file")
    return FileResponse(FOLDER / "static" / name, media_type=STATIC_FILES[name])


def _handlers(pages: Pages) -> dict[Any, Any]:
    """What was raised, as a page with a sentence."""

    def told(request: Request, error: Exception) -> Response:
        _, document = describe(error)
        return pages.problem(request, 503, document["message"], document["remedy"])

    def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        detail = f"there is no page {safe(request.url.path)}" if error.detail == "Not Found" else error.detail
        return pages.problem(request, error.status_code, detail, "")

    def unreadable(request: Request, error: Exception) -> Response:
        assert isinstance(error, BadQuery)
        return pages.problem(request, 400, error.message, error.remedy)

    def unexpected(request: Request, error: Exception) -> Response:
        print(f"eab: a page failed ({type(error).__name__})", file=sys.stderr)  # noqa: T201 - and no traceback
        return told(request, error)

    handlers: dict[Any, Any] = dict.fromkeys((BusError, CliError, OSError, sqlite3.Error), told)
    return handlers | {HTTPException: refused, BadQuery: unreadable, Exception: unexpected}


# --- serving -------------------------------------------------------------------------------------------------------


def listening(port: int) -> socket.socket:
    """A socket on this machine alone; port 0 takes a free one. Raises: CliError, when the port is taken."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((HOST, port))
        bound.listen()  # who comes before it is served waits, and is not turned away
    except OSError as error:
        bound.close()
        why = error.strerror or "it cannot be had"
        raise CliError(f"port {port} of {HOST}: {why}", remedy="name another with --port; 0 takes a free one") from None
    return bound


def server_of(app: ASGIApp) -> uvicorn.Server:
    """What serves the application; it says nothing by itself, and takes so many connections at once."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="on",
            access_log=False,
            log_config=None,
            log_level="critical",
            server_header=False,
            proxy_headers=False,
            limit_concurrency=CONNECTIONS_MAX,
            timeout_graceful_shutdown=STOP_SECONDS_MAX,
        )
    )


def serve(app: ASGIApp, bound: socket.socket) -> None:
    """Until Ctrl-C or SIGTERM."""
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        with suppress(KeyboardInterrupt):
            server_of(app).run(sockets=[bound])
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
