"""Drives a headless Chromium over WebDriver: enough of it to open a page, ask it, and take its picture.

Debian's packages ``chromium`` and ``chromium-driver`` bring what it needs. The protocol is W3C WebDriver; the
commands of the browser's own protocol go through ChromeDriver's ``goog/cdp`` (dark mode, a phone's screen).
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Final

__all__ = ["Browser", "missing"]

_PATIENCE_S: Final = 60.0

_FLAGS: Final = (
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)


def missing() -> str:
    """Say which program isn't there, and how to get it; "" if all are."""
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"no {' and no '.join(absent)}: apt-get install chromium chromium-driver" if absent else ""


class Browser:
    """A browser of its own, with a fresh profile, for the length of a ``with`` block.

    Methods raise RuntimeError with the driver's words if it refuses or a script throws.
    """

    def __enter__(self) -> Browser:
        self._stack = ExitStack()
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def open(self, url: str) -> None:
        """Go to a page and wait until it is loaded."""
        self._ask("POST", "/url", {"url": url})

    def run(self, script: str) -> Any:  # noqa: ANN401 - whatever JSON it is
        """Run the body of a JavaScript function in the page; return what it returns."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": []})

    def console(self) -> list[str]:
        """Return what the page wrote to the console at level SEVERE since the last call: errors."""
        entries = self._ask("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]

    def screen(self, width: int, height: int, *, is_phone: bool = False, is_dark: bool = False) -> None:
        """Set the page's width and height in CSS pixels, and what it is shown on."""
        metrics = {
            "width": width,
            "height": height,
            "deviceScaleFactor": 2 if is_phone else 1,
            "mobile": is_phone,
        }
        self._cdp("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self._cdp("Emulation.setEmulatedMedia", {"features": [scheme]})

    def picture(self) -> bytes:
        """Return a PNG of what the screen shows."""
        return base64.b64decode(self._ask("GET", "/screenshot"))

    # -- inside ---------------------------------------------------------------------------------

    def _start(self) -> None:
        profile = self._stack.enter_context(
            tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        )
        driver = subprocess.Popen(
            ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._stack.callback(_end, driver)
        self._base = f"http://127.0.0.1:{_port_of(driver)}/session"
        flags = [*_FLAGS, f"--user-data-dir={profile}", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        wished = {
            "browserName": "chrome",
            "goog:chromeOptions": {"binary": shutil.which("chromium"), "args": flags},
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        session = self._ask("POST", "", {"capabilities": {"alwaysMatch": wished}})
        self._base += "/" + session["sessionId"]
        self._stack.callback(self._ask, "DELETE", "")

    def _cdp(self, command: str, parameters: dict[str, Any]) -> None:
        self._ask("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:  # noqa: ANN401
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._base + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=_PATIENCE_S) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            with error:
                value = json.load(error)["value"]
            raise RuntimeError(f"{value['error']}: {value['message']}") from None


def _port_of(driver: subprocess.Popen[str]) -> int:
    """Read the driver's output up to the line that says its port."""
    assert driver.stdout is not None
    for line in driver.stdout:
        if "started successfully on port" in line:
            return int(line.strip().rstrip(".").split()[-1])
    raise RuntimeError(f"chromedriver ended with code {driver.wait()} before it listened")


def _end(driver: subprocess.Popen[str]) -> None:
    driver.terminate()
    try:
        driver.wait(10)
    except subprocess.TimeoutExpired:
        driver.kill()
        driver.wait()
    if driver.stdout is not None:
        driver.stdout.close()
