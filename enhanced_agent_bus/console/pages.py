"""The pages: each records that it is shown, reads what it shows, and hands it to a template.

Every function here runs in a thread of its own, but for those that take a form. Not here: who is let in (guard).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, parse_qsl, urlencode

from anyio.to_thread import run_sync
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from enhanced_agent_bus.audit.query import BadQuery, Query, Term, parse
from enhanced_agent_bus.cli.reading.log import SEQ_DIGITS_MAX, records_named
from enhanced_agent_bus.cli.reading.messages import dead_letters_from
from enhanced_agent_bus.cli.render import safe
from enhanced_agent_bus.cli.session import Session, change
from enhanced_agent_bus.console.access import Recorder
from enhanced_agent_bus.console.constitutions import kept, source
from enhanced_agent_bus.console.explain import covered, explained, leaf_of
from enhanced_agent_bus.console.graph import Edge, draw
from enhanced_agent_bus.console.guard import REPLAY, form_key, same
from enhanced_agent_bus.console.lists import newest, since
from enhanced_agent_bus.console.live import Live
from enhanced_agent_bus.console.rendering import templates
from enhanced_agent_bus.console.rows import row_of
from enhanced_agent_bus.console.tally import Count, Counts, Tally
from enhanced_agent_bus.console.verifying import Verifier
from enhanced_agent_bus.console.views import View, Views

QUERY_CHARS_MAX: Final = 400  # so that the record of a view has all of it
ID_CHARS_MAX: Final = 400
FORM_BYTES_MAX: Final = 16_384
AGENTS_SHOWN_MAX: Final = 500
PAIRS_SHOWN_MAX: Final = 300
LETTERS_SHOWN_MAX: Final = 200
AGENT_ROWS: Final = 25
VERIFY_SECONDS_MAX: Final = 5.0  # who asks to verify again is shown what is found, where it does not take longer
NO_ACCESS: Final = Term("kind", "access", negated=True, quoted=True)
#: Where a form that is done may lead back to.
PATHS: Final = ("/", "/message", "/record", "/agents", "/agent", "/traffic", "/dead", "/policy", "/source", "/proof")
FIRST_QUERY: Final = "kind:decision"
FILTERS: Final = (
    ("Decisions", "kind:decision"),
    ("Allowed", "verdict:allow"),
    ("Refused", "verdict:refuse"),
    ("Held", "verdict:hold"),
    ("Endings", "kind:outcome"),
    ("Who looked", "kind:access"),
    ("Everything", ""),
)


@dataclass(frozen=True, slots=True)
class Parts:
    """What the pages of one console are made from."""

    session: Session
    home: Path
    recorder: Recorder
    views: Views
    live: Live
    tally: Tally
    verifier: Verifier
    payload: bool


class Pages:
    """The pages of one console."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._templates = templates(parts.session.command)

    # --- how a page is made ----------------------------------------------------------------------------------------

    def _render(self, request: Request, template: str, *, status: int = 200, **values: Any) -> Response:
        """A page, or with `part=1` in its address only what is inside of it."""
        bare = request.query_params.get("part") == "1"
        values |= {"bare": bare, **self._head(), "path": request.url.path, "here": _here(request)}
        values |= {"form_key": form_key(request.state.token), "may_replay": request.state.rights == REPLAY}
        values.setdefault("after", values["status"]["records"] - 1)
        return HTMLResponse(self._templates.get_template(template).render(values), status)

    def _head(self) -> dict[str, Any]:
        """What stands at the top of every page."""
        verifier = self._parts.verifier
        status = self._parts.live.status()
        found = verifier.newest.verdict if verifier.newest else None
        return {
            "status": status,
            "verification": verifier.newest,
            "verifying": verifier.running,
            "newer": max(0, status["records"] - found["size"]) if found else 0,
        }

    def _shown(self, what: str, query: Query | None = None) -> str:
        """Records that a page is shown, and lets it ask for what is new; the name by which it asks."""
        self._parts.recorder.note(what)
        return self._parts.views.add(View(query))

    def problem(self, request: Request, status: int, message: str, remedy: str) -> Response:
        """What went wrong, in a sentence, and the verdicts, which nobody has to be recorded for; nothing of the log."""
        verifier = self._parts.verifier
        values: dict[str, Any] = {"verification": verifier.newest, "verifying": verifier.running, "newer": 0}
        bare = request.query_params.get("part") == "1"
        values |= {"message": message, "remedy": self._parts.session.named(remedy), "bare": bare, "status": status}
        return HTMLResponse(self._templates.get_template("problem.html").render(values), status)

    # --- the log ---------------------------------------------------------------------------------------------------

    def log(self, request: Request) -> Response:
        """The records that a query finds, the newest first."""
        text = request.query_params.get("q", FIRST_QUERY).strip()
        before = _number(request, "before")
        wrong = None
        try:
            query = _query(text)
        except BadQuery as error:
            wrong, query = error, None
        hides = query is not None and _finds_itself(query)
        if query is not None and hides:
            query = Query([*query.terms, NO_ACCESS], query.since, query.until)
        view = self._shown(f"log {text}" if before is None else f"log {text} before {before}", query)
        found = newest(self._parts.home, query, before=before) if query is not None else None
        return self._render(
            request,
            "log.html",
            status=200 if wrong is None else 400,
            q=text,
            before=before,
            wrong=wrong,
            hides=hides,
            found=found,
            rows=[row_of(record) for record in found.records] if found else [],
            filters=FILTERS,
            view=view if before is None and query is not None else self._parts.views.add(View(None)),
            after=found.size - 1 if found else 0,
        )

    def news(self, request: Request) -> Response:
        """What is new for a page that is open: the top of it, and the records that its query finds since."""
        view = self._parts.views.find(request.query_params.get("view", ""))
        if view is None:
            return JSONResponse({"gone": True}, 410)
        after = _number(request, "after") or 0
        macros = self._templates.get_template("news.html").make_module({**self._head(), "form_key": ""})
        answer: dict[str, Any] = {"banner": str(macros.banner()), "standing": str(macros.standing())}  # type: ignore[attr-defined]
        if view.query is not None and "top" not in request.query_params:  # it follows
            found = since(self._parts.home, view.query, after)
            rows = [row_of(record) for record in found.records]
            answer |= {"rows": str(macros.lines(rows)), "after": found.size - 1, "more": found.older is not None}  # type: ignore[attr-defined]
        return JSONResponse(answer)

    def message(self, request: Request) -> Response:
        """One message: what became of it, under which rule, and what led to it and came of it."""
        name = _given(request, "id")
        with_payload = self._parts.payload and request.query_params.get("payload") == "1"
        message_id = name.partition("#")[0]
        view = self._shown(f"{'payload of ' if with_payload else ''}message {message_id}")
        found = explained(self._parts.home, message_id, content=with_payload)
        if found is None:
            raise HTTPException(404, f"the log has no message {safe(message_id)}")
        return self._render(
            request,
            "message.html",
            view=view,
            it=found,
            covered=covered(found.seq, self._parts.verifier.newest),
            payload_offered=self._parts.payload and not with_payload,
            payload_shown=with_payload,
        )

    def record(self, request: Request) -> Response:
        """One record as it is stored."""
        seq = _number(request, "seq")
        if seq is None:
            raise HTTPException(404, "name a record: /record?seq=17")
        view = self._shown(f"record {seq}")
        found = records_named(self._parts.home, str(seq), content=False)
        if not found:
            raise HTTPException(404, f"the log has no record {seq}")
        return self._render(
            request,
            "record.html",
            view=view,
            row=row_of(found[0]),
            record=found[0],
            lines=json.dumps(found[0], indent=2, ensure_ascii=False).split("\n"),
            leaf=leaf_of(self._parts.home, seq),
            covered=covered(seq, self._parts.verifier.newest),
        )

    # --- agents ----------------------------------------------------------------------------------------------------

    def agents(self, request: Request) -> Response:
        """Who is registered, and how much each has sent."""
        view = self._shown("agents")
        agents, counts = self._parts.live.agents(), self._parts.tally.read()
        sent, received = _by_agent(counts)
        shown = agents[:AGENTS_SHOWN_MAX]
        return self._render(
            request,
            "agents.html",
            view=view,
            agents=shown,
            sent=sent,
            received=received,
            all=len(agents),
            **self._far(),
        )

    def agent(self, request: Request) -> Response:
        """One agent: its registration, its counts, its newest decisions."""
        name = _given(request, "id")
        view = self._shown(f"agent {name}")
        agent = next((one for one in self._parts.live.agents() if one["id"] == name), None)
        counts = self._parts.tally.read()
        pairs = [Edge(*pair, count.verdicts, count.newest) for pair, count in counts.pairs.items() if name in pair]
        terms = [
            Term("agent", name, negated=False, quoted=True),
            Term("kind", "decision", negated=False, quoted=True),
        ]
        found = newest(self._parts.home, Query(terms), rows=AGENT_ROWS)
        if agent is None and not pairs and not found.records:
            raise HTTPException(404, f"nobody is registered as {safe(name)}, and the log does not know the name")
        sent, received = _by_agent(counts)
        return self._render(
            request,
            "agent.html",
            view=view,
            name=name,
            agent=agent,
            sent=sent.get(name),
            received=received.get(name),
            pairs=sorted(pairs, key=lambda edge: (-edge.all, edge.sender, edge.recipient))[:PAIRS_SHOWN_MAX],
            rows=[row_of(record) for record in found.records],
            **self._far(),
        )

    def graph(self, request: Request) -> Response:
        """Who talks to whom, drawn and as a table."""
        view = self._shown("traffic")
        counts = self._parts.tally.read()
        tenants = {one["id"]: one["tenant"] for one in self._parts.live.agents()}
        edges = [Edge(*pair, count.verdicts, count.newest) for pair, count in counts.pairs.items() if all(pair)]
        edges.sort(key=lambda edge: (-edge.refused, -edge.all, edge.sender, edge.recipient))
        return self._render(
            request,
            "graph.html",
            view=view,
            drawing=draw(edges, tenants),
            tenants=tenants,
            edges=edges[:PAIRS_SHOWN_MAX],
            all=len(edges),
            others=counts.others,
            nowhere=sum(count.all for pair, count in counts.pairs.items() if not all(pair)),
            **self._far(),
        )

    def _far(self) -> dict[str, Any]:
        """How far the log is counted."""
        tally = self._parts.tally
        return {"counted": tally.read().size, "to_count": tally.size}

    # --- policy and proof ------------------------------------------------------------------------------------------

    def policy(self, request: Request) -> Response:
        """The active constitution, what its rules did, and which never spoke."""
        active = self._parts.live.status()["constitution"]
        digest = request.query_params.get("digest") or active
        view = self._shown("policy" if digest == active else f"policy {digest}"[:ID_CHARS_MAX])
        counts = self._parts.tally.read()
        constitution = kept(self._parts.home, digest) if digest else None
        if constitution is None and digest != active:
            raise HTTPException(404, f"the home keeps no constitution {safe(digest)}")
        fired = {rule: count for (under, rule), count in counts.rules.items() if under == digest}
        known = {rule.name for rule in constitution.rules} if constitution else set()
        return self._render(
            request,
            "policy.html",
            view=view,
            digest=digest,
            active=active,
            constitution=constitution,
            fired=fired,
            gates=sorted(set(fired) - known),
            under=counts.constitutions.get(digest),
            codes=counts.codes.most_common(40),
            policies=list(reversed(counts.policies)),
            **self._far(),
        )

    def source(self, request: Request) -> Response:
        """One file of a constitution that the home keeps."""
        digest, name = _given(request, "digest"), _given(request, "file")
        line = _number(request, "line")
        view = self._shown(f"constitution {digest} {name}")
        constitution = kept(self._parts.home, digest)
        if constitution is None or name not in constitution.files:
            raise HTTPException(404, f"the home keeps no file {safe(name)} of a constitution {safe(digest)}")
        lines = source(constitution.files, name, [line] if line else [], whole=True)
        return self._render(request, "source.html", view=view, constitution=constitution, name=name, lines=lines)

    def proof(self, request: Request) -> Response:
        """The three verdicts, what they rest on, and what they cannot exclude."""
        view = self._shown("proof")
        try:
            note = (self._parts.home / "checkpoint").read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            note = []
        try:
            key = (self._parts.home / "keys" / "log.vkey").read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            key = ""
        return self._render(request, "proof.html", view=view, note=note, key=key)

    # --- dead letters ----------------------------------------------------------------------------------------------

    def dead(self, request: Request) -> Response:
        """What could not be delivered, and the way to have it decided again."""
        view = self._shown("dead letters")
        after = _number(request, "after")
        found = dead_letters_from(self._parts.home, -1 if after is None else after, LETTERS_SHOWN_MAX + 1)
        shown = found[:LETTERS_SHOWN_MAX]
        more = shown[-1][0] if len(found) > len(shown) else None
        return self._render(request, "dead.html", view=view, letters=[letter for _, letter in shown], more=more)

    async def replay(self, request: Request) -> Response:
        """Decides one dead letter anew."""
        form = await self._form(request)
        if request.state.rights != REPLAY:
            raise HTTPException(403, "this token is for reading only: start the console with --allow-replay")
        message_id = form.get("id", "")
        if not 0 < len(message_id) <= ID_CHARS_MAX:
            raise HTTPException(400, "the form names no message")
        return await run_sync(partial(self._replayed, request, message_id))

    def _replayed(self, request: Request, message_id: str) -> Response:
        view = self._shown(f"replay of message {message_id}")
        try:
            receipt = change(self._parts.session, "replay", {"id": message_id})
        except KeyError:
            raise HTTPException(404, f"there is no dead letter {safe(message_id)}") from None
        return self._render(request, "replayed.html", view=view, receipt=receipt)

    async def verify(self, request: Request) -> Response:
        """Verifies again; what takes long goes on in the background."""
        form = await self._form(request)
        await self._parts.verifier.ask(VERIFY_SECONDS_MAX)
        return RedirectResponse(_ours(form.get("back", "")), 303)

    async def _form(self, request: Request) -> Mapping[str, str]:
        """What a form of ours holds. Raises: HTTPException, when it is none of ours."""
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > FORM_BYTES_MAX:
                raise HTTPException(413, "a form has at most 16 KB")
        form = {name: values[0] for name, values in parse_qs(body.decode("utf-8", "replace")).items()}
        if not same(form.get("key", ""), form_key(request.state.token)):
            raise HTTPException(
                403, "this form is not the console's own, or is of an earlier start: load the page again"
            )
        return form


def _here(request: Request) -> str:
    """The address of this page, without what asks for a part of it."""
    pairs = [(name, value) for name, value in request.query_params.multi_items() if name != "part"]
    return f"{request.url.path}?{urlencode(pairs)}" if pairs else request.url.path


def _ours(address: str) -> str:
    """The address, if it is one of a page of ours; else the first page."""
    path, _, query = address.partition("?")
    return f"{path}?{urlencode(parse_qsl(query))}" if path in PATHS and query else path if path in PATHS else "/"


def _query(text: str) -> Query:
    if len(text) > QUERY_CHARS_MAX:
        raise BadQuery(f"the query has {len(text)} characters", f"write at most {QUERY_CHARS_MAX}")
    return parse([text] if text else [], now=datetime.now(UTC))


def _finds_itself(query: Query) -> bool:
    """Whether it looks for words anywhere, which stand in the record of this very view too."""
    fields = {term.field for term in query.terms}
    return None in fields and not fields & {"kind", "command", "what"}


def _number(request: Request, name: str) -> int | None:
    text = request.query_params.get(name, "")
    if text == "":
        return None
    if not (text.isascii() and text.isdecimal()):
        raise HTTPException(400, f"{name} has to be a whole number, from 0")
    if len(text) > SEQ_DIGITS_MAX:
        raise HTTPException(404, f"no log has so many records: {name} has {len(text)} digits")
    return int(text)


def _given(request: Request, name: str) -> str:
    text = request.query_params.get(name, "")
    if not 0 < len(text) <= ID_CHARS_MAX:
        raise HTTPException(400, f"the address needs {name}=..., of at most {ID_CHARS_MAX} characters")
    return text


def _by_agent(counts: Counts) -> tuple[dict[str, Count], dict[str, Count]]:
    """Decisions on what each agent sent, and on what was sent to it."""
    sent: dict[str, Count] = {}
    received: dict[str, Count] = {}
    for (sender, recipient), count in counts.pairs.items():
        for side, name in ((sent, sender), (received, recipient)):
            side.setdefault(name, Count()).verdicts.update(count.verdicts)
    return sent, received
