"""A real browser for tests: Chromium without a window, driven over its pipe (DevTools protocol), by nothing of ours.

It needs no package: one JSON document after the other, each ended by a NUL, on two pipes. Not here: what is tested.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

ANSWER_SECONDS_MAX: Final = 60.0
LOOK_SECONDS: Final = 0.05
PROGRAMS: Final = ("chromium", "chromium-browser", "google-chrome", "chrome")
#: Keys by name, as a keyboard sends them.
KEYS: Final = {
    "Enter": ("Enter", 13, "\r"),
    "Escape": ("Escape", 27, ""),
    "j": ("KeyJ", 74, "j"),
    "k": ("KeyK", 75, "k"),
}


def chromium() -> str | None:
    """Where it is; None on a machine without one."""
    return next((found for name in PROGRAMS if (found := shutil.which(name)) is not None), None)


class Page:
    """One page of a browser; `events` has all that the browser told of it, in order."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back = to, back
        self._rest = b""
        self._number = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []

    def attach(self) -> None:
        """A new page, of which everything is told that happens."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """What the browser answers to one command; it has to be able to."""
        told = self._ask(method, params)
        assert "error" not in told, told
        result: dict[str, Any] = told["result"]
        return result

    def _ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        request: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            request["sessionId"] = self._session
        os.write(self._to, json.dumps(request).encode() + b"\0")
        while True:
            told = self._next()
            if told.get("id") == self._number:
                return told
            self.events.append(told)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            read = os.read(self._back, 1 << 16)
            assert read, "the browser ended"
            self._rest += read
        line, _, self._rest = self._rest.partition(b"\0")
        told: dict[str, Any] = json.loads(line)
        return told

    def open(self, url: str) -> None:
        """Goes there, and waits until it is loaded."""
        self.ask("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def value(self, expression: str) -> Any:
        """What an expression is on the page."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, expression: str) -> None:
        """Waits until it is true on the page, or on the one that comes after it."""
        end = time.monotonic() + ANSWER_SECONDS_MAX
        question = {"expression": f"Boolean({expression})", "returnByValue": True}
        while self._ask("Runtime.evaluate", question).get("result", {}).get("result", {}).get("value") is not True:
            assert time.monotonic() < end, f"never so: {expression}\n{self.value('document.body.innerText')}"
            time.sleep(LOOK_SECONDS)

    def press(self, key: str) -> None:
        """One key, down and up."""
        code, number, text = KEYS[key]
        common = {"key": key, "code": code, "windowsVirtualKeyCode": number}
        self.ask("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        self.ask("Input.dispatchKeyEvent", type="keyUp", **common)

    def told(self, method: str) -> list[dict[str, Any]]:
        """The parameters of all events of one kind so far."""
        return [event["params"] for event in self.events if event.get("method") == method]


@contextmanager
def browsing(program: str, folder: Path) -> Iterator[Page]:
    """A browser of its own, with nothing of anybody's in it; it and its helpers are gone at the end."""
    to_browser, to = os.pipe()
    back, from_browser = os.pipe()
    root = ["--no-sandbox"] if os.geteuid() == 0 else []  # in a container, as root, there is no other way
    line = [
        *(program, "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={folder}", *root),
        *("--disable-gpu", "--disable-extensions", "--no-first-run", "--disable-background-networking"),
        *("--disable-dev-shm-usage", "--window-size=1200,900", "about:blank"),
    ]
    # The browser reads 3 and writes 4. The shell puts them there, whatever they are here.
    move = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
    with (folder.parent / "browser.log").open("ab") as log:
        process = subprocess.Popen(
            ["/bin/bash", "-c", move, "browser", *line],
            pass_fds=(to_browser, from_browser),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    os.close(to_browser)
    os.close(from_browser)
    page = Page(to, back)
    try:
        page.attach()
        yield page
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(to)
        os.close(back)
