"""The console in a real browser: the page follows by itself, explains by keyboard, and loads nothing but its own."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from enhanced_agent_bus import Agent
from enhanced_agent_bus.cli.session import Session
from enhanced_agent_bus.console.guard import Tokens
from enhanced_agent_bus.console.server import listening, make_app, server_of
from tests.browser import Page, browsing, chromium
from tests.developer import log, small_bus
from tests.support import ADMIT_ALL

PROGRAM = chromium()
QUIET = (
    'admit if not object.get(input.message.payload, "loud", false)\n\ncode := "too_loud<img src=x onerror=alert(1)>"'
)


@pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine (Debian: apt install chromium)")
async def test_a_page_follows_explains_and_loads_nothing_else(tmp_path: Path) -> None:
    """Beside a running bus: a decision appears without a reload; keys open and close its explanation; replay works.

    Nothing is asked of anybody else, no rule of the page's own policy is broken, no script fails, and what the log
    holds is never markup.
    """
    assert PROGRAM is not None
    async with small_bus(tmp_path, {"everything": ADMIT_ALL, "quiet": QUIET}) as bus:
        desk = await bus.register("desk", tenant="acme")
        booker = await bus.register("booker", handler=_fail, tenant="acme", retry=None)
        await (await desk.send("booker", {"trip": 1}, id="first")).outcome(timeout=30)
        tokens = Tokens.make(replay=True)
        with listening(0) as bound:
            port = bound.getsockname()[1]
            server = server_of(make_app(Session(tmp_path / "home", json=False), tokens=tokens, port=port))
            serving = asyncio.create_task(asyncio.to_thread(server.run, [bound]))
            try:
                address = f"http://127.0.0.1:{port}"
                loop = asyncio.get_running_loop()
                await asyncio.to_thread(_browse, PROGRAM, tmp_path, f"{address}/?token={tokens.replay}", desk, loop)
            finally:
                server.should_exit = True
                await serving
        assert booker.id == "booker"
    [again] = log(tmp_path / "home", "decision", why="replay")
    assert again["message_id"] == "desk/first"
    assert log(tmp_path / "home", "access", what="message desk/late")


async def _fail(_: object) -> None:
    raise ValueError


def _browse(program: str, folder: Path, address: str, desk: Agent, loop: asyncio.AbstractEventLoop) -> None:
    with browsing(program, folder / "profile") as page:
        page.open(address)
        assert page.value("location.search") == ""  # the token is out of the address
        assert page.value("document.cookie") == ""  # and out of reach of scripts
        sent = desk.send("booker", {"loud": True}, id="late")
        asyncio.run_coroutine_threadsafe(sent, loop).result(30)
        page.until("document.querySelector('tr.new')?.innerText.includes('desk/late')")
        assert page.value("document.querySelectorAll('img').length") == 0
        _explain(page)
        page.until("document.getElementById('banner').innerText.includes('verified at')")
        _replay(page)
        _nothing_else(page, urlsplit(address).netloc)


def _explain(page: Page) -> None:
    """By keyboard alone."""
    page.press("j")
    assert page.value("document.activeElement.innerText") == "desk/late"
    page.press("Enter")
    page.until("!document.getElementById('drawer').hidden")
    said = page.value("document.getElementById('drawer').innerText")
    assert "refused by rule quiet" in " ".join(said.split())
    assert "too_loud<img src=x onerror=alert(1)>" in said
    assert page.value("document.querySelectorAll('#drawer .line.marked').length") == 1
    assert page.value("location.pathname") == "/"
    page.press("Escape")
    assert page.value("document.getElementById('drawer').hidden")
    assert page.value("document.activeElement.innerText") == "desk/late"


def _replay(page: Page) -> None:
    page.value("void document.querySelector('nav a[href=\"/dead\"]').click()")
    page.until("document.querySelector('summary')?.innerText.includes('Replay')")
    page.value("void document.querySelector('summary').click()")
    page.value("void document.querySelector('main form button').click()")
    page.until("document.body.innerText.includes('was decided anew')")


def _nothing_else(page: Page, ours: str) -> None:
    asked = {urlsplit(event["request"]["url"]).netloc for event in page.told("Network.requestWillBeSent")}
    assert asked == {ours}
    assert page.told("Runtime.exceptionThrown") == []
    assert [event["entry"]["text"] for event in page.told("Log.entryAdded")] == []
