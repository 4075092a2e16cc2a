"""`eab console` page by page, in this process: who is let in, what is recorded, what is shown and what never is."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import httpx
import pytest

from enhanced_agent_bus import Message, Retry
from enhanced_agent_bus.cli import access
from enhanced_agent_bus.cli.audit.verify import verify_home
from enhanced_agent_bus.cli.session import Session
from enhanced_agent_bus.console import lists
from enhanced_agent_bus.console.guard import HEADERS, Tokens
from enhanced_agent_bus.console.server import listening, make_app, server_of
from enhanced_agent_bus.console.verifying import Verification, Verifier
from enhanced_agent_bus.ledger.lock import HomeLock
from tests.developer import log, small_bus, until
from tests.support import ADMIT_ALL, as_killed, write_constitution

HOSTILE = "\x1b[2J\x1b]0;owned\x07\r\n\x9b31m\u2028\u202e\x7f<script>alert(1)</script>'\"><img src=x onerror=alert(2)>"
SECRET = "the-secret-of-the-payload"
QUIET = """
# METADATA
# title: Nobody is loud
package bus.rules.quiet

default admit := false

admit if not object.get(input.message.payload, "loud", false)

code := "too_loud<script>"

message := sprintf("it says %v", [input.message.payload.text])
"""
IDLE = "admit if is_string(input.message.type)"
HOLD = """
admit if is_string(input.message.id)

hold contains {"approvers": 1, "roles": ["boss"], "expires_in": 600} if object.get(input.message.payload, "big", false)

code := "too_big"
"""
RULES = {"everything": ADMIT_ALL, "quiet": QUIET, "big": HOLD, "idle": IDLE}
PAGES = (
    "/",
    "/?q=verdict:refuse",
    "/agents",
    "/agent?id=desk",
    "/traffic",
    "/dead",
    "/policy",
    "/proof",
    "/record?seq=1",
)


class Ids(NamedTuple):
    """The messages of the home below."""

    asked: str
    refused: str
    broken: str
    held: str


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ids]:
    """A folder with a home: a request was answered and led on, one was refused, one failed, one waits."""
    folder = tmp_path_factory.mktemp("lived")
    return folder, asyncio.run(_live(folder))


async def _live(folder: Path) -> Ids:
    error = type(f"Broken{HOSTILE}", (Exception,), {})

    async def book(message: Message) -> dict[str, Any]:
        await booker.send("hotel", {"nights": 2}, id="room")
        return {"booked": message.payload["trip"]}

    async def fail(_: Message) -> None:
        raise error(HOSTILE)

    async with small_bus(folder, RULES) as bus:
        desk = await bus.register("desk", tenant="acme", roles=["planner"])
        booker = await bus.register("booker", handler=book, tenant="acme")
        await bus.register("hotel", handler=lambda _: None, tenant="acme")
        await bus.register("boss", tenant="acme", roles=["boss"])
        await bus.register("fax", handler=fail, tenant="acme", retry=Retry.immediate(attempts=2))
        reply = await desk.request("booker", {"trip": 7, "text": SECRET}, timeout=20)
        refused = await desk.send("booker", {"loud": True, "text": HOSTILE}, id="order-7")
        broken = await desk.send("fax", {"text": HOSTILE})
        assert (await broken.outcome(timeout=20)).state == "dead_lettered"
        held = await desk.send("booker", {"big": True})
        assert reply.cause is not None
    return Ids(reply.cause, refused.message_id, broken.message_id, held.message_id)


@pytest.fixture
def home(lived: tuple[Path, Ids], tmp_path: Path) -> Path:
    """A copy of that home."""
    shutil.copytree(lived[0] / "home", tmp_path / "home", ignore=shutil.ignore_patterns("control.sock"))
    return tmp_path / "home"


@pytest.fixture
def ids(lived: tuple[Path, Ids]) -> Ids:
    """Its messages."""
    return lived[1]


class Console(httpx.Client):
    """A browser that has not been let in yet, and the tokens that would let it in."""

    def __init__(self, tokens: Tokens, port: int) -> None:
        self.tokens = tokens
        self.port = port
        self.origin = f"http://127.0.0.1:{port}"
        super().__init__(base_url=self.origin, trust_env=False, follow_redirects=True, timeout=60)

    def enter(self, *, replay: bool = False) -> Console:
        """Follows the address that the command prints."""
        token = (self.tokens.replay if replay else self.tokens.read) or ""
        assert self.get("/", params={"token": token}).status_code == 200
        return self

    def post_form(self, path: str, *, origin: str | None = "", **form: str) -> httpx.Response:
        """Posts a form; as from a page of its own, unless another origin is given, or none."""
        headers = {} if origin is None else {"Origin": origin or self.origin}
        return self.post(path, content=urlencode(form), headers=headers, follow_redirects=False)

    def key(self) -> str:
        """What the forms of its pages hold."""
        found = re.search(r'name="key" value="([0-9a-f]{64})"', self.get("/dead").text)
        assert found is not None
        return found[1]


@contextmanager
def serving(home: Path, *, replay: bool = True, **options: Any) -> Iterator[Console]:
    """The console on a home, served as the command serves it."""
    tokens = Tokens.make(replay=replay)
    with listening(0) as bound:
        port = bound.getsockname()[1]
        server = server_of(make_app(Session(home, json=False), tokens=tokens, port=port, **options))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            with Console(tokens, port) as console:
                yield console
        finally:
            server.should_exit = True
            thread.join()


def wait(condition: Any) -> None:
    """Waits for what another task of the console does."""
    asyncio.run(until(condition, 60))


@pytest.fixture(scope="module")
def reader(lived: tuple[Path, Ids], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Console]]:
    """A console for tests that only look, on a copy of the home; its log has been counted and verified."""
    home = tmp_path_factory.mktemp("read") / "home"
    shutil.copytree(lived[0] / "home", home, ignore=shutil.ignore_patterns("control.sock"))
    with serving(home, replay=False) as console:
        console.enter()
        wait(lambda: "still being counted" not in console.get("/traffic").text)
        wait(lambda: "verified at" in console.get("/").text)
        yield home, console


@pytest.fixture
def stranger(reader: tuple[Path, Console]) -> Iterator[tuple[Path, Console]]:
    """Another browser at that console, which has not been let in."""
    home, console = reader
    with Console(console.tokens, console.port) as other:
        yield home, other


def views(home: Path) -> list[str]:
    """What the log says was shown."""
    return [record["what"] for record in log(home, "access", command="console")]


# --- who is let in ---------------------------------------------------------------------------------------------------


def test_only_who_has_the_token_is_let_in(stranger: tuple[Path, Console]) -> None:
    """Without it, or with another, nothing is shown and nothing recorded; with it in the address it becomes a cookie.

    The cookie is out of reach of scripts and of other sites, and the address that is left does not have the token.
    """
    home, console = stranger
    before = views(home)
    for path in (*PAGES, "/news", "/nowhere", "/source?digest=x&file=y"):
        for headers in ({}, {"Authorization": "Bearer no"}, {"Cookie": f"eab-console-{console.port}=no"}):
            answer = console.get(path, headers=headers)
            assert answer.status_code == 401
            assert "desk" not in answer.text
    assert console.get("/?token=no").status_code == 401
    assert views(home) == before
    into = console.get("/agent", params={"token": console.tokens.read, "id": "desk"}, follow_redirects=False)
    assert (into.status_code, into.headers["location"]) == (303, "/agent?id=desk")
    assert "HttpOnly" in into.headers["set-cookie"]
    assert "SameSite=strict" in into.headers["set-cookie"]
    assert console.get("/agent?id=desk").status_code == 200
    console.cookies.clear()
    assert console.get("/agents", headers={"Authorization": f"Bearer {console.tokens.read}"}).status_code == 200


def test_a_name_that_somebody_else_points_here_is_not_ours(stranger: tuple[Path, Console]) -> None:
    """The Host header has to be this machine's, with the token too; so no other site can be made to look like ours."""
    _, console = stranger
    console.enter()
    for host in ("evil.example", f"evil.example:{console.port}", "127.0.0.1", f"127.0.0.1:{console.port + 1}", ""):
        assert console.get("/agents", headers={"Host": host}).status_code == 421
    assert console.get("/agents", headers={"Host": f"localhost:{console.port}"}).status_code == 200
    assert console.request("OPTIONS", "/agents").status_code == 405


def test_every_answer_says_that_nothing_else_may_be_loaded_or_run(stranger: tuple[Path, Console]) -> None:
    """Pages, files, refusals and errors: no outside assets, no frames, no inline scripts, no other origin."""
    _, console = stranger
    refused = console.get("/")
    console.enter()
    answers = [
        refused,
        *(console.get(path) for path in (*PAGES, "/static/console.js", "/nowhere", "/message?id=no")),
    ]
    for answer in answers:
        assert dict(HEADERS).items() <= {name.title(): value for name, value in answer.headers.items()}.items() or all(
            answer.headers[name] == value for name, value in HEADERS.items()
        )
        assert not [name for name in answer.headers if name.startswith("access-control-")]
        assert not re.search(
            r"<script(?! src=\"/static/)|<[^>]+ on[a-z]+=|<[^>]+ style=|<style|javascript:", answer.text
        )
        assert not re.search(r"(?:src|href|action)=\"(?:https?:)?//", answer.text)


# --- what is recorded ------------------------------------------------------------------------------------------------


def test_a_view_is_one_access_record_and_asking_for_news_is_none(reader: tuple[Path, Console], ids: Ids) -> None:
    """Whatever page it is; the log says what was looked at. Files of ours and a page's own questions add nothing."""
    home, console = reader
    before = len(views(home))
    for count, path in enumerate((*PAGES, f"/message?id={ids.asked}", f"/message?id={ids.refused}&part=1"), before + 1):
        page = console.get(path)
        assert page.status_code == 200
        assert len(views(home)) == count
    assert views(home)[before:] == [
        *("log kind:decision", "log verdict:refuse", "agents", "agent desk", "traffic", "dead letters", "policy"),
        *("proof", "record 1", f"message {ids.asked}", f"message {ids.refused}"),
    ]
    view = re.search(r'data-view="([^"]+)"', console.get("/").text)
    assert view is not None
    count = len(views(home))
    for _ in range(3):
        assert console.get("/news", params={"view": view[1], "after": "0"}).json()["rows"]
    assert console.get("/static/console.css").status_code == 200
    assert len(views(home)) == count
    gone = console.get("/news", params={"view": "a-page-that-nobody-opened", "after": "0"})
    assert (gone.status_code, gone.json()) == (410, {"gone": True})


def test_what_cannot_be_recorded_is_not_shown(home: Path, ids: Ids, monkeypatch: pytest.MonkeyPatch) -> None:
    """While somebody holds the home who does not answer, every page says that and nothing of the log."""
    monkeypatch.setattr(access, "PATIENCE_SECONDS", 0.1)
    with serving(home) as console:
        console.enter()
        lock = HomeLock.take(home)
        try:
            for path in ("/", "/agents", "/traffic", "/dead", "/policy", "/proof", f"/message?id={ids.asked}"):
                answer = console.get(path)
                assert answer.status_code == 503
                assert "is open in another process" in answer.text
                assert not re.search(r"booker|acme|too_loud|order-7", answer.text)
        finally:
            lock.release()
        assert console.get("/agents").status_code == 200


async def test_beside_a_running_bus_it_records_through_it_and_shows_what_comes(tmp_path: Path) -> None:
    """The page follows: a decision made after it was opened is among the news. An agent is live, with its breaker."""
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", handler=lambda _: None, tenant="acme")
        await (await desk.send("booker", {"trip": 1})).outcome(timeout=10)

        def look() -> tuple[str, dict[str, Any], str]:
            with serving(tmp_path / "home") as console:
                page = console.enter().get("/?q=kind:decision")
                found = re.search(r'data-view="([^"]+)" data-after="(\d+)"', page.text)
                assert found is not None
                asyncio.run_coroutine_threadsafe(desk.send("booker", {"trip": 2}, id="late"), loop).result(10)
                news = console.get("/news", params={"view": found[1], "after": found[2]}).json()
                return page.text, news, console.get("/agent?id=booker").text

        loop = asyncio.get_running_loop()
        page, news, agent = await asyncio.to_thread(look)
    assert "desk/late" not in page
    assert "desk/late" in news["rows"]
    assert "running" in news["standing"]
    assert re.search(r"<dt>live</dt><dd>yes</dd>.*<dt>breaker</dt><dd>closed</dd>", agent, re.DOTALL)
    assert views(tmp_path / "home")[-1] == "agent booker"
    assert len(log(tmp_path / "home", "opened")) == 1  # it was asked, and no other was opened


# --- what is shown ---------------------------------------------------------------------------------------------------


def text_of(page: str) -> str:
    """What a reader sees: no tags, single spaces."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def test_the_log_is_text_and_never_markup(home: Path, ids: Ids) -> None:
    """Tags, escapes and separators in errors, codes, payloads, and questions are shown as what they are."""
    with serving(home, payload=True) as console:
        console.enter()
        asked = console.get("/", params={"q": f'"{HOSTILE[-60:]}"'})
        console.get("/", params={"q": '"<script>\u2028\x1b[2J"'})
        pages = [asked, *(console.get(path) for path in (*PAGES, "/?q=", "/?q=kind:access", "/?q=kind:outcome"))]
        pages += [console.get("/message", params={"id": each, "payload": "1"}) for each in ids]
        pages.append(console.get("/message", params={"id": f"no<script>{HOSTILE}"}))
        pages.append(console.get("/agent", params={"id": f"no<script>{HOSTILE}"}))
        for page in pages:
            assert "<script>" not in page.text
            assert "<img" not in page.text
            assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e]", page.text)
        assert "&lt;script&gt;alert(1)" in console.get(f"/message?id={ids.broken}").text
        assert "too_loud&lt;script&gt;" in console.get(f"/message?id={ids.refused}").text


def test_it_says_who_allowed_a_message_and_under_which_rules(reader: tuple[Path, Console], ids: Ids) -> None:
    """For an allow every rule of the constitution that decided, and what came of it; each links to its source."""
    home, console = reader
    digest = log(home, "policy", event="activated")[0]["digest"]
    page = console.get(f"/message?id={ids.asked}")
    said = text_of(page.text)
    assert "✓ allowed by all 4 rules" in said
    assert "✓ shape ✓ identity ✓ room ✓ time ✓ stops ✓ constitution ✓ policy" in said
    assert digest in said
    assert re.search(r"everything .* quiet Nobody is loud .* big .* idle", said)
    assert "It is now delivered" in said
    assert "booker → hotel: command" in said
    assert "booker → desk: response, the answer" in said
    source = console.get("/source", params={"digest": digest, "file": "bus/rules/quiet/quiet.rego"})
    assert "Nobody is loud" in source.text
    assert console.get("/source", params={"digest": digest, "file": "../../home.json"}).status_code == 404
    assert console.get("/source", params={"digest": "../keys", "file": "log.key"}).status_code == 404


def test_it_says_which_line_of_which_rule_refused_or_held(reader: tuple[Path, Console], ids: Ids) -> None:
    """With the code, the line marked in the source that the home keeps, and the principle in words."""
    _, console = reader
    page = console.get(f"/message?id={ids.refused}").text
    assert "✕ refused by rule quiet" in text_of(page)
    assert "✓ stops ✓ constitution ✕ policy refused" in text_of(page)
    assert "bus/rules/quiet/quiet.rego:8" in page
    assert re.search(r'class="line marked"><i>8</i>admit if not object', page)
    held = text_of(console.get(f"/message?id={ids.held}").text)
    assert "held by rule big" in held
    assert "too_big" in held
    assert "waits for 1 approval of agents with the role boss" in held
    broken = text_of(console.get(f"/message?id={ids.broken}").text)
    assert "It is now dead-lettered" in broken
    assert broken.count("! failed") + broken.count("dead-lettered attempts_exhausted") == 2


def test_the_payload_is_shown_only_where_it_was_offered_and_recorded(
    reader: tuple[Path, Console], home: Path, ids: Ids
) -> None:
    """Without --payload no address shows it; with it, on demand, and each showing is a record of its own."""
    for path in ("/?q=", "/agent?id=booker", f"/message?id={ids.asked}", f"/message?id={ids.asked}&payload=1"):
        assert SECRET not in reader[1].get(path).text
    with serving(home, payload=True) as console:
        page = console.enter().get(f"/message?id={ids.asked}").text
        assert SECRET not in page
        assert "Show payload" in page
        for _ in range(2):
            assert SECRET in console.get(f"/message?id={ids.asked}&payload=1").text
    assert [what for what in views(home) if "payload" in what] == [f"payload of message {ids.asked}"] * 2


def test_the_policy_page_names_the_rules_that_never_spoke(reader: tuple[Path, Console]) -> None:
    """Beside what the others did, with the weakenings in force and every change of the constitution."""
    _, console = reader
    said = text_of(console.get("/policy").text)
    for rule, did in (("quiet", "✕ 1 refused"), ("big", "‖ 1 held"), ("idle", "○ never"), ("everything", "○ never")):
        assert re.search(rf"{rule} [^○✕‖]*{did}", said), said
    assert "constitution_folder" in said
    assert "activated" in said


def test_traffic_is_drawn_and_listed_with_what_was_refused(reader: tuple[Path, Console]) -> None:
    """Every pair is in the table and in the drawing; the refused part is dashed and crossed in both words and shape."""
    _, console = reader
    page = console.get("/traffic").text
    drawn = re.findall(r'data-from="([^"]+)" data-to="([^"]+)"((?:(?!</a>).)*)</a>', page, re.DOTALL)
    pairs = {("desk", "booker"), ("booker", "hotel"), ("booker", "desk"), ("desk", "fax")}
    assert {(sender, recipient) for sender, recipient, _ in drawn} == pairs
    crossed = [(sender, recipient) for sender, recipient, curve in drawn if 'class="refused"' in curve and "✕" in curve]
    assert crossed == [("desk", "booker")]
    said = text_of(page)
    assert re.search(r"desk booker ✓ \d+ allowed ‖ 1 held ✕ 1 refused", said)
    assert "booker hotel ✓ 1 allowed" in said


def test_an_agents_page_has_its_registration_counts_and_decisions(reader: tuple[Path, Console]) -> None:
    """Of one that is registered; a name that nobody ever had is 404."""
    _, console = reader
    said = text_of(console.get("/agent?id=desk").text)
    assert "tenant acme roles planner" in said
    assert re.search(r"on what it sent .*✕ 1 refused", said)
    assert "quiet: too_loud" in said
    assert console.get("/agent?id=nobody-ever").status_code == 404
    assert console.get("/agent").status_code == 400


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which an id came twice, a message was no message, and the constitution changed."""
    folder = tmp_path_factory.mktemp("troubled")

    async def live() -> None:
        async with small_bus(folder, RULES) as bus:
            desk = await bus.register("desk", tenant="acme")
            await bus.register("hotel", handler=lambda _: None, tenant="acme")
            first = await desk.send("hotel", {"nights": 2}, id="twice")
            assert (await first.outcome(timeout=20)).state == "delivered"
            assert (await desk.send("hotel", {"nights": 3}, id="twice")).code == "replayed"
            assert (await desk.send("hotel", {"nights": float("nan")})).code == "malformed"
            await bus.activate(write_constitution(folder / "next", {"everything": ADMIT_ALL}))

    asyncio.run(live())
    return folder / "home"


def test_an_id_that_came_again_does_not_hide_what_was_decided_first(troubled: Path) -> None:
    """The message is the first that came with it: its allow is shown, and that others were refused beside it."""
    with serving(troubled) as console:
        page = console.enter().get("/message?id=desk/twice").text
    again = next(record["seq"] for record in log(troubled, "decision") if record["code"] == "replayed")
    assert "✓ allowed by all 4 rules" in text_of(page)
    assert "It is now delivered" in text_of(page)
    assert f"came again with other content, which was refused: seq {again}" in text_of(page)


def test_what_named_nobody_is_no_traffic(troubled: Path) -> None:
    """What was refused before anybody looked for its recipient went to no one, and is not said to go to "nobody"."""
    with serving(troubled) as console:
        console.enter()
        wait(lambda: "1 message was refused before anybody looked for its recipient" in console.get("/traffic").text)
        assert re.findall(r'data-from="([^"]+)" data-to="([^"]+)"', console.get("/traffic").text) == [("desk", "hotel")]
        assert "desk → not looked up" in text_of(console.get("/").text)


def test_a_constitution_of_before_has_its_own_page(troubled: Path) -> None:
    """A message leads to the one that decided it, with the rules and counts of that one; an unknown one is 404."""
    digest = log(troubled, "policy", event="activated")[0]["digest"]
    with serving(troubled) as console:
        page = console.enter().get("/message?id=desk/twice").text
        assert f'href="/policy?digest={digest}"' in page
        said = text_of(console.get("/policy", params={"digest": digest}).text)
        assert "A constitution that is not the active one" in said
        assert "quiet" in said
        assert "quiet" not in text_of(console.get("/policy").text).split("Changes of the constitution")[0]
        assert console.get("/policy?digest=zz").status_code == 404
    assert f"policy {digest}" in views(troubled)


def test_a_word_is_not_found_in_the_record_of_its_own_search(reader: tuple[Path, Console]) -> None:
    """Who looked is left out where words are looked for, unless it is asked for; the page says so."""
    _, console = reader
    page = console.get("/", params={"q": "a-word-that-stands-nowhere"}).text
    assert "No record matches" in text_of(page)
    assert "Records of who looked are left out" in text_of(page)
    assert "No record matches" not in console.get("/", params={"q": "a-word-that-stands-nowhere kind:access"}).text


def test_a_question_that_cannot_be_asked_is_answered_beside_the_search(reader: tuple[Path, Console]) -> None:
    """As `audit search` answers it; an over-long one too, and a number that is none."""
    _, console = reader
    wrong = console.get("/", params={"q": "verdit:refuse"})
    assert wrong.status_code == 400
    assert "the nearest is" in wrong.text
    assert console.get("/", params={"q": "x" * 401}).status_code == 400
    assert console.get("/", params={"q": "", "before": "-1"}).status_code == 400
    assert console.get("/record?seq=99999999").status_code == 404
    assert "26 digits" in console.get(f"/record?seq={'9' * 26}").text
    assert "There is no page /nowhere" in text_of(console.get("/nowhere").text)


def test_pages_are_bounded_and_lead_on(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page has so many rows, and looks back so far; links to older ones reach every record, once."""
    monkeypatch.setattr(lists, "LOOKED_RECORDS_MAX", 7)
    with serving(home) as console:
        console.enter()
        size, seen, path = len(log(home)), list[int](), "/?q=kind:decision"
        decisions = [record["seq"] for record in log(home, "decision")]
        while path:
            page = console.get(path).text
            found = [int(seq) for seq in re.findall(r'<tr class="\w+" data-seq="(\d+)"', page)]
            assert len(found) <= 7
            seen += found
            older = re.search(r'href="(/\?q=[^"]+before=\d+)"', page)
            path = older[1].replace("&amp;", "&") if older else ""
        assert sorted(seen) == decisions
        assert len(seen) < size


# --- the verdicts ----------------------------------------------------------------------------------------------------


def test_the_verdicts_are_those_of_audit_verify(home: Path) -> None:
    """A whole log is ok in three words; it is verified again on demand, and says when records came since."""
    with serving(home) as console:
        console.enter()
        wait(lambda: "verified at" in console.get("/").text)
        said = text_of(console.get("/proof").text)
        assert "✓ Integrity ok ✓ Completeness ok ✓ Time ok" in said
        assert "no outside checkpoint vouches for it" in said
        wait(lambda: "newer since" in console.get("/").text)  # by what was shown meanwhile
        first = re.search(r"(\d+) records? verified", said)
        assert first is not None
        assert console.post_form("/verify", key=console.key(), back="//evil.example/").headers["location"] == "/"
        here = f"/message?{urlencode({'id': 'desk/order-7'})}"
        assert console.post_form("/verify", key=console.key(), back=here).headers["location"] == here
        wait(lambda: f" {first[1]} record" not in text_of(console.get("/").text))
        size = len(log(home))
        again = console.post_form("/verify", key=console.key(), back="/proof").headers["location"]
        found = re.search(r"records ([\d,]+), verified at", text_of(console.get(again).text))
        assert found is not None
        assert int(found[1]) >= size  # the page that it leads back to has what was found


def test_under_a_bad_verdict_nothing_is_said_to_be_so(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a log that still takes records is bad, each verdict says what was looked for, and that it is not so."""
    found = verify_home(home)
    bad = {"seq": 3, "seq_to": 3, "damage": "bypass", "why": "delivered without a decision"}
    verdict = found | {"completeness": "bad", "first_bad": bad, "witnesses": []}

    async def verified(_: Verifier) -> Verification:
        return Verification(datetime.now(UTC), 0.1, verdict)

    monkeypatch.setattr(Verifier, "_verify", verified)
    with serving(home) as console:
        console.enter()
        wait(lambda: "✕ Completeness bad" in text_of(console.get("/proof").text))
        said = text_of(console.get("/proof").text)
    assert "Completeness bad Looked for, and not found to be so: Records are numbered" in said
    assert "Integrity ok Every record has" in said
    assert "it is evidence" in said


def test_an_altered_record_is_bad_and_named(home: Path) -> None:
    """By its seq and its damage, also where nothing else can be shown."""
    seq = log(home, "decision")[0]["seq"]
    with sqlite3.connect(home / "bus.db") as database:
        body = database.execute("SELECT body FROM records WHERE seq = ?", (seq,)).fetchone()[0]
        database.execute("UPDATE records SET body = ? WHERE seq = ?", (body.replace(b"allow", b"ALLOW"), seq))
    database.close()
    with serving(home) as console:
        headers = {"Authorization": f"Bearer {console.tokens.read}"}
        wait(lambda: "first bad" in console.get("/proof", headers=headers).text)
        answer = console.get("/proof", headers=headers)
        assert answer.status_code == 503  # such a log takes no more records, so no view of it is recorded
        assert "what was signed" in answer.text
        bad = verify_home(home)["first_bad"]
        assert f"first bad: seq {bad['seq']}" in text_of(answer.text)
        assert f", {bad['damage']}" in text_of(answer.text)
        assert "✕ Integrity bad" in text_of(answer.text)
        assert "booker" not in answer.text
        assert "it is evidence" in answer.text
        assert f"Seq {bad['seq']}: {bad['damage']}" in text_of(answer.text)


def test_an_outside_checkpoint_anchors_the_log(home: Path, tmp_path: Path) -> None:
    """Given one that was kept, the banner says what it vouches for and what is unanchored behind it."""
    kept = tmp_path / "kept.txt"
    shutil.copy(home / "checkpoint", kept)
    size = int(kept.read_text().splitlines()[1])
    with serving(home, checkpoint=kept) as console:
        console.enter()
        wait(lambda: "verified at" in console.get("/").text)
        said = text_of(console.get("/proof").text)
    assert f"outside checkpoint signs the first {size}" in said
    assert f"unanchored after seq {size}" in said  # the record of the checkpoint is its last


@pytest.mark.parametrize("by", ["checkpoint", "witness"])
def test_nothing_is_written_into_a_log_that_was_cut(by: str, home: Path, tmp_path: Path) -> None:
    """What a view appends would take the place of what is vouched for from outside: nothing is shown then."""
    older = as_killed(home, tmp_path / "older", "lock")
    with serving(home) as console:
        console.enter()
        assert console.get("/").status_code == 200
    kept = Path(shutil.copy(home / "checkpoint", tmp_path / "kept.txt"))
    before = log(older)
    assert int(kept.read_text().splitlines()[1]) > len(before)
    if by == "witness":
        (older / "eab.toml").write_text(f'[audit]\nwitnesses = ["file:{kept}"]\n')
    with serving(older, checkpoint=kept if by == "checkpoint" else None) as console:
        for page in ("/", "/proof", "/dead"):
            answer = console.get(page, params={"token": console.tokens.read or ""})
            said = text_of(answer.text)
            assert (answer.status_code >= 400, "its end was cut off" in said, "it is evidence" in said) == (True,) * 3
            assert "anchored to its end" not in said
    assert log(older) == before


# --- replay ----------------------------------------------------------------------------------------------------------


def test_a_replay_needs_the_second_token_our_own_form_and_our_own_origin(home: Path, ids: Ids) -> None:
    """Anything else changes nothing; the real one is decided anew, and the page says what became of it."""
    with serving(home) as console:
        console.enter()
        assert "/dead/replay" not in console.get("/dead").text
        assert console.post_form("/dead/replay", key=console.key(), id=ids.broken).status_code == 403
        console.cookies.clear()
        console.enter(replay=True)
        assert "/dead/replay" in console.get("/dead").text
        key = console.key()
        for origin in (None, "http://evil.example", "null", f"http://127.0.0.1:{console.port + 1}"):
            assert console.post_form("/dead/replay", origin=origin, key=key, id=ids.broken).status_code == 403
        for wrong in ("", "0" * 64, "é"):
            assert console.post_form("/dead/replay", key=wrong, id=ids.broken).status_code == 403
        assert console.get("/dead/replay").status_code == 405
        assert console.post_form("/dead/replay", key=key, id="x" * 20_000).status_code == 413
        assert console.post_form("/dead/replay", key=key, id="no/such").status_code == 404
        assert log(home, "decision", why="replay") == []
        done = console.post_form("/dead/replay", key=key, id=ids.broken)
        assert done.status_code == 200
        assert "was decided anew" in text_of(done.text)
        [decision] = log(home, "decision", why="replay")
        assert decision["message_id"] == ids.broken
        assert f"replay of message {ids.broken}" in views(home)
        assert "There are no dead letters" in console.get("/dead").text


def test_without_allow_replay_there_is_no_second_token(reader: tuple[Path, Console]) -> None:
    """And so nobody who could replay."""
    _, console = reader
    assert console.tokens.replay is None
    assert "You are reading" in console.get("/dead").text


def test_news_of_a_quiet_page_has_no_rows(reader: tuple[Path, Console]) -> None:
    """A page that does not follow is told of the verdicts alone."""
    _, console = reader
    view = re.search(r'data-view="([^"]+)"', console.get("/").text)
    assert view is not None
    news = console.get("/news", params={"view": view[1], "after": "0", "top": "1"}).json()
    assert set(news) == {"banner", "standing"}
    assert json.dumps(news)
