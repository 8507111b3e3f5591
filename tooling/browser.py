"""Drives Chromium, without a window, by its DevTools protocol over a pipe: pages as their readers see them.

Needs the program ``chromium``, which Debian and Ubuntu package, and nothing of Python beyond the standard library.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
)
CHUNK = 1 << 16


class BrowserError(Exception):
    """The browser refused a command, or ended."""


def find_browser() -> str | None:
    """Path of the program; ``None`` if none is installed."""
    return next((path for path in map(shutil.which, PROGRAMS) if path is not None), None)


@dataclass
class Tab:
    """A tab of a ``Browser``.

    Attributes:
        browser: whose.
        session: the protocol's name of this tab.
        errors: what went wrong in pages since the list was last emptied.
    """

    browser: Browser
    session: str
    errors: list[str] = field(default_factory=list)
    _loaded: int = 0

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Run a command of the protocol, such as ``Page.navigate``."""
        return self.browser.call(method, session=self.session, **parameters)

    def open(self, url: str) -> None:
        """Go to a page; returns when it has loaded."""
        before = self._loaded
        self.call("Page.navigate", url=url)
        while self._loaded == before:
            self.browser.wait_for_event()

    def resize(self, width: int, height: int = 900, *, phone: bool = False) -> None:
        """Set the size of the page's window, in CSS pixels.

        Args:
            phone: behave like a phone: touch, and the page's ``viewport`` counts.
        """
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)

    def prefer(self, scheme: str) -> None:
        """Set the preferred colours: ``light`` or ``dark``."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; of a promise, once it is there.

        Raises:
            BrowserError: it raises.
        """
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise BrowserError(_exception_text(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def screenshot(self, file: Path) -> None:
        """Write what is visible to a PNG file."""
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def take(self, method: str, event: Mapping[str, Any]) -> None:
        """Handle an event of the tab."""
        match method:
            case "Page.loadEventFired":
                self._loaded += 1
            case "Runtime.exceptionThrown":
                self.errors.append(_exception_text(event["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if event["type"] in ("error", "assert"):
                texts = (str(argument.get("value", argument.get("description", ""))) for argument in event["args"])
                self.errors.append(f"console.{event['type']}: {' '.join(texts)}")
            case "Log.entryAdded" if event["entry"]["level"] == "error":
                self.errors.append(f"{event['entry']['text']} {event['entry'].get('url', '')}".strip())
            case "Network.responseReceived" if event["response"]["status"] >= 400:
                self.errors.append(f"{event['response']['status']}: {event['response']['url']}")
            case "Network.loadingFailed" if not event.get("canceled"):
                self.errors.append(f"request failed: {event['errorText']}")


@dataclass
class Browser:
    """A running browser; see ``browser``.

    Attributes:
        requests: file descriptor to which commands are written.
        answers: file descriptor from which answers and events are read.
    """

    requests: int
    answers: int
    _number: int = 0
    _buffer: bytes = b""
    _tabs: dict[str, Tab] = field(default_factory=dict)
    _results: dict[int, dict[str, Any]] = field(default_factory=dict)

    def new_tab(self) -> Tab:
        """Open a tab whose errors are collected."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = self._tabs[session] = Tab(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            tab.call(f"{domain}.enable")
        return tab

    def call(self, method: str, *, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Run a command and wait for its answer.

        Raises:
            BrowserError: the browser refuses it, or has ended.
        """
        self._number += 1
        number = self._number
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.requests, data) :]
        while number not in self._results:
            self.wait_for_event()
        answer = self._results.pop(number)
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def wait_for_event(self) -> None:
        """Handle the next message of the browser."""
        while b"\0" not in self._buffer:
            data = os.read(self.answers, CHUNK)
            if not data:
                raise BrowserError("the browser has ended")
            self._buffer += data
        text, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(text)
        if "id" in message:
            self._results[message["id"]] = message
        elif (tab := self._tabs.get(message.get("sessionId", ""))) is not None:
            tab.take(message["method"], message["params"])


@contextmanager
def browser(program: str) -> Iterator[Browser]:
    """Start a browser with an empty profile; it ends with the block.

    Args:
        program: from ``find_browser``.
    """
    with ExitStack() as stack:
        profile = stack.enter_context(tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True))
        (to_browser, requests), (answers, from_browser) = _pipe(), _pipe()
        for descriptor in (requests, answers):
            stack.callback(os.close, descriptor)

        def connect() -> None:  # the protocol's numbers of the pipe's ends
            os.dup2(to_browser, 3)
            os.dup2(from_browser, 4)

        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses to run as root with one
        command = [program, *OPTIONS, *sandbox, f"--user-data-dir={profile}", "about:blank"]
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(
            command, stdin=quiet, stdout=quiet, stderr=quiet, pass_fds=(3, 4), preexec_fn=connect
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        for descriptor in (to_browser, from_browser):
            os.close(descriptor)
        yield Browser(requests, answers)


def _pipe() -> tuple[int, int]:
    """The ends of a pipe, with numbers above the two that the browser uses."""
    ends = os.pipe()
    moved = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return moved[0], moved[1]


def _exception_text(details: Mapping[str, Any]) -> str:
    return str(details.get("exception", {}).get("description") or details.get("text", "exception"))
