"""A headless Chromium, driven through the W3C WebDriver protocol without further packages."""

import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ARGUMENTS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
START_SECONDS = 240  # long enough for a busy machine


class Browser:
    """A browser with one page open at a time.

    Args:
        driver: address of a running chromedriver.
        program: path of the Chromium executable.
    """

    def __init__(self, driver: str, program: str) -> None:
        chrome = {"binary": program, "args": ARGUMENTS}
        logs = {"goog:loggingPrefs": {"browser": "ALL"}}
        wanted = {"browserName": "chrome", "goog:chromeOptions": chrome, **logs}
        self._base = f"{driver}/session"
        self._base += "/" + self._call("", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]

    def open(self, file: Path) -> None:
        """Load a local page."""
        self._call("/url", {"url": file.resolve().as_uri()})

    def ask(self, script: str) -> Any:
        """Run a script in the page and return its result."""
        return self._call("/execute/sync", {"script": script, "args": []})

    def developer(self, command: str, **parameters: object) -> Any:
        """Send a command of the DevTools protocol."""
        return self._call("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def hover(self, selector: str) -> None:
        """Move the pointer onto the first element that matches a CSS selector."""
        place = self.ask(
            f"const e = document.querySelector('{selector}');"
            "e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2];"
        )
        x, y = map(round, place)
        move = {"type": "pointerMove", "duration": 0, "x": x, "y": y, "origin": "viewport"}
        pointer = {"type": "pointer", "id": "mouse", "actions": [move]}
        self._call("/actions", {"actions": [pointer]})

    def complaints(self) -> list[str]:
        """Errors in the console of the page, including failed requests."""
        entries = self._call("/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]

    def quit(self) -> None:
        """Close the browser."""
        request = urllib.request.Request(self._base, method="DELETE")
        urllib.request.urlopen(request, timeout=START_SECONDS).close()

    def _call(self, path: str, body: dict[str, object]) -> Any:
        request = urllib.request.Request(
            self._base + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=START_SECONDS) as response:
            return json.load(response)["value"]


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A browser; the test is skipped where Chromium or its driver is not installed."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("needs Chromium and its driver: apt-get install chromium chromium-driver")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_for(address)
        browser = Browser(address, program)
        try:
            yield browser
        finally:
            browser.quit()
    finally:
        process.terminate()
        process.wait()


def _wait_for(address: str) -> None:
    limit = time.monotonic() + START_SECONDS
    while True:
        try:
            urllib.request.urlopen(f"{address}/status", timeout=5).close()
            return
        except OSError:
            if time.monotonic() > limit:
                raise
            time.sleep(0.1)
