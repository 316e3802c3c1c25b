"""A headless Chromium that tests look at pages with, spoken to over a pipe in its DevTools protocol.

https://chromedevtools.github.io/devtools-protocol/; messages are JSON with a zero byte after each.
"""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SECONDS = 30.0
OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
    *("--no-first-run", "--disable-extensions", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--remote-debugging-pipe"),
)


def find_chromium() -> str | None:
    """Return the browser's program, or None where there is none."""
    named = os.environ.get("CHROMIUM")
    return named or next(filter(None, map(shutil.which, NAMES)), None)


class Refused(Exception):
    """The browser did not do what it was told, perhaps because the page is being loaded anew."""


class Browser:
    """A browser without a window.

    Args:
        program: The browser's program.
        profile: An empty folder for what it keeps.
    """

    def __init__(self, program: str, profile: Path) -> None:
        down_read, self._down = os.pipe()
        self._up, up_write = os.pipe()
        command = f'exec "$0" "$@" 3<&{down_read} 4>&{up_write}'  # where the browser expects them
        options = [*OPTIONS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", command, program, *options], pass_fds=(down_read, up_write), stderr=subprocess.DEVNULL
        )
        os.close(down_read)
        os.close(up_write)
        os.set_blocking(self._up, False)
        self._number, self._rest = 0, b""
        self.events: list[dict[str, Any]] = []

    def close(self) -> None:
        """End the browser."""
        self._process.kill()
        self._process.wait()
        os.close(self._down)
        os.close(self._up)

    def ask(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Send a command and return what it answers; events that come before are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        os.write(self._down, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            for answer in self._read():
                if answer.get("id") == self._number:
                    if "error" in answer:
                        raise Refused(f"{method}: {answer['error']['message']}")
                    return dict(answer["result"])
                self.events.append(answer)
            time.sleep(0.005)
        raise TimeoutError(f"{method}: no answer in {SECONDS:g} s")

    def _read(self) -> Iterator[dict[str, Any]]:
        try:
            self._rest += os.read(self._up, 1 << 20)
        except BlockingIOError:
            return
        *whole, self._rest = self._rest.split(b"\0")
        yield from map(json.loads, whole)

    @contextmanager
    def page(self, url: str, *, width: int = 1200, height: int = 900, dark: bool = False) -> Iterator["Tab"]:
        """Open a page in a tab of its own, and close it at the end."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = Tab(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            tab.ask(f"{domain}.enable")
        tab.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        tab.ask("Emulation.setEmulatedMedia", features=[scheme])
        tab.ask("Page.navigate", url=url)
        tab.wait("document.readyState === 'complete' && location.href !== 'about:blank'")
        yield tab
        self.ask("Target.closeTarget", targetId=target)
        self.events = [event for event in self.events if event.get("sessionId") != session]


class Tab:
    """One page in the browser."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command to the page."""
        return self._browser.ask(method, self._session, **parameters)

    def run(self, expression: str) -> Any:
        """Return the value of an expression, or of what it promises."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = SECONDS) -> None:
        """Wait until an expression is true; while a page loads anew it is not."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with suppress(Refused):
                answer = self.ask("Runtime.evaluate", expression=condition, returnByValue=True)
                if answer["result"].get("value") is True:
                    return
            time.sleep(0.03)
        raise TimeoutError(f"{condition}: not in {seconds:g} s")

    def press(self, key: str) -> None:
        """Press a key: Tab or Enter."""
        code, text = {"Tab": (9, ""), "Enter": (13, "\r")}[key]
        pressed = {"key": key, "code": key, "windowsVirtualKeyCode": code, "text": text}
        for kind in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, **pressed)

    def go_offline(self) -> None:
        """Take the network away."""
        limits = {"latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        self.ask("Network.emulateNetworkConditions", offline=True, **limits)

    def picture(self, path: Path) -> None:
        """Write what the page looks like from top to bottom, as PNG."""
        shown = self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shown["data"]))

    def _of(self, method: str) -> list[dict[str, Any]]:
        own = [event for event in self._browser.events if event.get("sessionId") == self._session]
        return [event["params"] for event in own if event["method"] == method]

    @property
    def errors(self) -> list[str]:
        """Whatever the console shows as wrong."""
        self.run("0")  # events up to now
        thrown = [str(event["exceptionDetails"]) for event in self._of("Runtime.exceptionThrown")]
        entries = [event["entry"] for event in self._of("Log.entryAdded")]
        said = [event for event in self._of("Runtime.consoleAPICalled") if event["type"] in ("error", "warning")]
        return [*thrown, *(entry["text"] for entry in entries if entry["level"] != "info"), *map(str, said)]

    @property
    def requests(self) -> list[str]:
        """Every address that was asked for, as often as it was."""
        self.run("0")
        return [event["request"]["url"] for event in self._of("Network.requestWillBeSent")]
