"""Chromium without a window, driven by its own protocol over two pipes."""

import base64
import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_APT = ("apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=60")
_KEYS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "End": 35, "Home": 36, "Tab": 9}


def find_chromium() -> str:
    """Return the browser's path, installing it as root where it is missing. Skip without one, in CI fail."""
    for attempt in range(2):
        if found := next((path for name in _NAMES if (path := shutil.which(name))), None):
            return found
        if attempt or os.geteuid() != 0 or shutil.which("apt-get") is None:
            break
        env = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
        for command in ([*_APT, "update"], [*_APT, "--no-install-recommends", "install", "chromium"]):
            subprocess.run(command, env=env, capture_output=True, check=False, timeout=300)
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("no Chromium here, and it could not be installed")
    raise AssertionError


class Tab:
    """One page of the browser. `problems` are its errors, `requests` what it asked for."""

    def __init__(self, browser: "Browser", session: str) -> None:
        self._browser, self._session = browser, session
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol."""
        return self._browser.call(method, self._session, **params)

    def open(self, file: Path | str, *, width: int = 900, dark: bool = False) -> None:
        """Open a file or an address on a screen of some width."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=1000, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self._browser.events.clear()
        self.call("Page.navigate", url=file if isinstance(file, str) else file.resolve().as_uri())
        self._browser.wait_for("Page.loadEventFired")

    def run(self, script: str) -> Any:
        """Return what an expression of JavaScript gives."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def press(self, key: str) -> None:
        """Press a key as a person does."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=_KEYS[key])

    def regions(self) -> list[str]:
        """Return the names of all regions with a heading, as a screen reader lists them."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [node["name"]["value"] for node in nodes if node.get("role", {}).get("value") == "region"]

    def serious_issues(self, part: str) -> list[str]:
        """Return what axe-core calls serious or critical in a part of the page."""
        spec = importlib.util.find_spec("axe_core_python")
        assert spec is not None
        assert spec.submodule_search_locations
        self.run((Path(spec.submodule_search_locations[0]) / "axe.min.js").read_text(encoding="utf-8") + ";0")
        found = self.run(f"axe.run({part!r}, {{resultTypes: ['violations']}}).then(r => r.violations)")
        bad = [issue for issue in found if issue["impact"] in ("serious", "critical")]
        return [
            f"{issue['id']}: {node['html'][:200]} {node['failureSummary']}" for issue in bad for node in issue["nodes"]
        ]

    def pdf(self) -> bytes:
        """Return the page as it is printed."""
        return base64.b64decode(self.call("Page.printToPDF")["data"])

    @property
    def problems(self) -> list[Any]:
        """Errors and warnings that the page has caused."""
        kinds = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
        return [event["params"] for event in self._browser.events if event["method"] in kinds]

    @property
    def requests(self) -> list[str]:
        """Addresses that the page has asked for, without those that hold their own content."""
        sent = [event["params"] for event in self._browser.events if event["method"] == "Network.requestWillBeSent"]
        urls: list[str] = [event["request"]["url"] for event in sent]
        return [url for url in urls if not url.startswith("data:")]


class Browser:
    """Connection to a running browser."""

    def __init__(self, inbound: int, outbound: int) -> None:
        self._read, self._write = os.fdopen(inbound, "rb", buffering=0), os.fdopen(outbound, "wb", buffering=0)
        self._buffer, self._number = b"", 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        self._write.write(json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer)
                return dict(answer["result"])
            self.events.append(answer)

    def wait_for(self, event: str) -> None:
        """Wait for an event, which may have happened."""
        while not any(one.get("method") == event for one in self.events):
            self.events.append(self._receive())

    def new_tab(self) -> Tab:
        """Open an empty page."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        return Tab(self, self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = self._read.read(1 << 20)
            assert part, "the browser has ended"
            self._buffer += part
        whole, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(whole))

    def close(self) -> None:
        """End the browser and both pipes."""
        with contextlib.suppress(AssertionError, OSError):
            self.call("Browser.close")
        self._read.close()
        self._write.close()


@contextlib.contextmanager
def running_browser(profile: Path) -> Iterator[Browser]:
    """Run a browser that can reach no network."""
    program = find_chromium()
    (commands, to_browser), (answers, from_browser) = os.pipe(), os.pipe()
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
    # A proxy that nobody answers at: whatever the page asks for from outside fails, and is seen.
    apart = ("--disable-background-networking", "--proxy-server=127.0.0.1:9", f"--user-data-dir={profile}")
    shell = f'exec "$0" "$@" 3<&{commands} 4>&{from_browser}'
    process = subprocess.Popen(
        ["bash", "-c", shell, program, *flags, *apart, "--remote-debugging-pipe"],
        pass_fds=(commands, from_browser),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(commands)
    os.close(from_browser)
    browser = Browser(answers, to_browser)
    try:
        yield browser
    finally:
        browser.close()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
