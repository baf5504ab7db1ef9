"""A headless Chromium driven over its DevTools protocol: what a page logs, asks the network for, and shows."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

from websockets.sync.client import ClientConnection, connect

EXECUTABLE = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_WATCHED = ("Page", "Runtime", "Log", "Network", "Audits")
_PATIENCE = 60.0
"""Seconds that anything may take: the machine may be busy."""


class Browser:
    """One page in one browser process; ends it with the block."""

    def __enter__(self) -> Self:
        if EXECUTABLE is None:
            raise FileNotFoundError("no chromium on PATH")
        self._home = tempfile.mkdtemp(prefix="alignflow-chromium-")
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--no-first-run"]
        options += ["--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"]
        self._process = subprocess.Popen(
            [EXECUTABLE, *options, f"--user-data-dir={self._home}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"HOME": self._home},
            start_new_session=True,
        )
        self._numbers = itertools.count(1)
        self.events: list[dict[str, Any]] = []
        try:
            self._socket = self._attach()
            for domain in _WATCHED:
                self.ask(f"{domain}.enable")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "_socket"):
            self._socket.close()
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._home, ignore_errors=True)

    def _attach(self) -> ClientConnection:
        """Connect to the browser's one page."""
        file = Path(self._home) / "DevToolsActivePort"
        deadline = time.monotonic() + _PATIENCE
        while not (file.is_file() and file.read_text().count("\n")):
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise TimeoutError("chromium did not open its debugging port")
            time.sleep(0.05)
        port, path = file.read_text().split("\n")[:2]
        with connect(f"ws://127.0.0.1:{port}{path}", open_timeout=_PATIENCE) as whole:
            while not (pages := _pages(whole)):
                if time.monotonic() > deadline:
                    raise TimeoutError("chromium opened no page")
                time.sleep(0.05)
        return connect(f"ws://127.0.0.1:{port}/devtools/page/{pages[0]}", max_size=2**28, open_timeout=_PATIENCE)

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One call; events that come before its reply are kept."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(_PATIENCE))
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return dict(message["result"])
            self.events.append(message)

    def open(self, where: Path | str) -> None:
        """Load a file or an address, and wait until it is there."""
        self.events.clear()
        self.ask("Page.navigate", url=where if isinstance(where, str) else where.resolve().as_uri())
        deadline = time.monotonic() + _PATIENCE
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{where} did not load")
            self.events.append(json.loads(self._socket.recv(_PATIENCE)))

    def wait(self, condition: str, seconds: float = _PATIENCE) -> None:
        """Until an expression in the page is true; TimeoutError with what the page shows if it never is."""
        deadline = time.monotonic() + seconds
        while not self.run(condition):
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"never true: {condition}; the page says {self.run('document.body.innerText')[:600]!r}"
                )
            time.sleep(0.2)

    def run(self, script: str) -> Any:
        """The value of an expression in the page; a promise is waited for."""
        reply = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in reply:
            raise RuntimeError(json.dumps(reply["exceptionDetails"])[:500])
        return reply["result"].get("value")

    def type(self, selector: str, text: str) -> None:
        """Put text into a field as a person would: focus, replace, hear."""
        self.run(f"(() => {{ const f = document.querySelector({json.dumps(selector)}); f.focus(); f.select(); }})()")
        self.ask("Input.insertText", text=text)

    def choose(self, selector: str, value: str) -> None:
        """Choose an option of a list."""
        self.run(
            f"(() => {{ const f = document.querySelector({json.dumps(selector)}); f.value = {json.dumps(value)};"
            " f.dispatchEvent(new Event('input', { bubbles: true })); })()"
        )

    def resize(self, width: int, height: int, mobile: bool = False) -> None:
        """A screen of that size, in CSS pixels."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)

    def screenshot(self, path: Path, selector: str | None = None, tallest: int = 6000) -> Path:
        """The page, or one element of it, as PNG, cut to a height."""
        element = f"document.querySelector({json.dumps(selector)})" if selector else "document.documentElement"
        box = self.run(
            f"(() => {{ const r = {element}.getBoundingClientRect();"
            " return [r.left + scrollX, r.top + scrollY, r.width, r.height]; })()"
        )
        clip = {"x": box[0], "y": box[1], "width": box[2], "height": min(box[3], tallest), "scale": 1}
        shot = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    def print(self, path: Path) -> Path:
        """The page as a PDF, as its print style has it."""
        shot = self.ask("Page.printToPDF", preferCSSPageSize=True, printBackground=True)
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    def complaints(self) -> list[str]:
        """Errors and warnings of the console, exceptions, and what the content policy stopped."""
        found = []
        for event in self.events:
            kind, told = event["method"], event.get("params", {})
            if kind == "Runtime.exceptionThrown":
                found.append(json.dumps(told["exceptionDetails"])[:300])
            elif kind == "Runtime.consoleAPICalled" and told["type"] in {"error", "warning", "assert"}:
                found.append(f"console.{told['type']}: {json.dumps(told['args'])[:300]}")
            elif kind == "Log.entryAdded" and told["entry"]["level"] in {"error", "warning"}:
                found.append(f"{told['entry']['source']}: {told['entry']['text']}")
            elif kind == "Audits.issueAdded":
                found.append(f"issue: {json.dumps(told['issue'])[:300]}")
        return found

    def stopped(self) -> list[str]:
        """Addresses whose request the content policy stopped before it left."""
        sent = {one["requestId"]: one["request"]["url"] for one in self._told("Network.requestWillBeSent")}
        failed = self._told("Network.loadingFailed")
        return [sent[one["requestId"]] for one in failed if one.get("blockedReason") == "csp"]

    def requests(self) -> list[str]:
        """Addresses that the page asked for, its own included."""
        return [one["request"]["url"] for one in self._told("Network.requestWillBeSent")]

    def _told(self, method: str) -> list[dict[str, Any]]:
        return [event["params"] for event in self.events if event["method"] == method]


def _pages(browser: ClientConnection) -> list[str]:
    """Ids of the pages that a browser has."""
    browser.send(json.dumps({"id": 0, "method": "Target.getTargets"}))
    reply = json.loads(browser.recv(_PATIENCE))
    return [one["targetId"] for one in reply["result"]["targetInfos"] if one["type"] == "page"]
