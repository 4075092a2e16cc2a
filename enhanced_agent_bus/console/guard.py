"""Who is let in: only this machine's own browser, at this address, with the token that the command printed.

An ASGI application around the console's. It checks the Host header (a name that somebody else lets point to 127.0.0.1
is not ours), takes the token from the address into a cookie, and puts the headers on every answer that keep a page from
loading or running anything but ours. Not here: what may be changed (pages check that by `rights` and `form_key`).
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Final
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

READ: Final = "read"
REPLAY: Final = "replay"
#: Pages of ours need styles, a script and pictures of ours, and may ask and post to us; nothing else is loaded or run.
POLICY: Final = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # with no-referrer a browser posts our own forms from origin null
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
STATIC: Final = "/static/"


@dataclass(frozen=True, slots=True)
class Tokens:
    """What opens the console: the token for reading, and where replays are allowed the one for both."""

    read: str
    replay: str | None

    @classmethod
    def make(cls, *, replay: bool) -> Tokens:
        return cls(secrets.token_urlsafe(32), secrets.token_urlsafe(32) if replay else None)

    def rights(self, given: str) -> str | None:
        """What somebody with this token may do. Compared in constant time."""
        found = None
        for token, right in ((self.read, READ), (self.replay, REPLAY)):
            if token is not None and same(given, token):
                found = right
        return found


def same(given: str, expected: str) -> bool:
    """Compared in constant time."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode())


def form_key(token: str) -> str:
    """What a form of ours holds, so that a page of somebody else's cannot post in its place."""
    return hmac.new(token.encode(), b"form", sha256).hexdigest()


class Guard:
    """Around the console; a request that comes through has `rights` and `token` in its state."""

    def __init__(self, app: ASGIApp, *, tokens: Tokens, port: int) -> None:
        self._app = app
        self._tokens = tokens
        self._hosts = frozenset((f"127.0.0.1:{port}", f"localhost:{port}"))
        self._cookie = f"eab-console-{port}"  # browsers do not tell ports apart

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        refusal = self._judge(scope)
        await (refusal or self._app)(scope, receive, send_with_headers)

    def _judge(self, scope: Scope) -> Response | None:
        """The answer to who is not let in; None for the others."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if host not in self._hosts:
            return PlainTextResponse("This console answers at 127.0.0.1 and localhost only.\n", 421)
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return PlainTextResponse("This console is read with GET.\n", 405)
        if scope["method"] == "POST" and headers.get("origin") != f"http://{host}":
            return PlainTextResponse("This form was not sent from the console's own page.\n", 403)
        if scope["path"].startswith(STATIC):
            return None
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        in_address = next((value for name, value in query if name == "token"), None)
        if in_address is not None and scope["method"] == "GET" and self._tokens.rights(in_address):
            return self._without_token(scope["path"], [pair for pair in query if pair[0] != "token"], in_address)
        bearer = headers.get("authorization", "")
        given = bearer.removeprefix("Bearer ") if bearer.startswith("Bearer ") else self._in_cookie(headers)
        rights = self._tokens.rights(given)
        if rights is None:
            text = "Open the address that `eab console` printed: it has the token that lets you in.\n"
            return PlainTextResponse(text, 401, headers={"WWW-Authenticate": "Bearer"})
        scope.setdefault("state", {}).update(rights=rights, token=given)
        return None

    def _in_cookie(self, headers: Headers) -> str:
        return cookie_parser(headers.get("cookie", "")).get(self._cookie, "")

    def _without_token(self, path: str, query: list[tuple[str, str]], token: str) -> Response:
        """The token goes from the address, where it would be seen and kept, into a cookie."""
        path = "/" + path.lstrip("/")  # two slashes would name another host
        answer = RedirectResponse(f"{path}?{urlencode(query)}" if query else path, 303)
        answer.set_cookie(self._cookie, token, httponly=True, samesite="strict", path="/")
        return answer
