"""A real browser, driven over a pipe by the Chrome DevTools Protocol."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TIMEOUT = 60


class Page:
    """One page of a headless browser, and what happened on it.

    Attributes:
        events: every event that the browser told of, as the protocol names them.
    """

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self.events: list[dict[str, Any]] = []
        self._to, self._from, self._rest, self._number = to_browser, from_browser, b"", 0
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol on the page; its result."""
        return self._ask(method, self._session, **params)

    def open(self, path: Path, fragment: str = "") -> float:
        """Load a file and wait until it is there; the seconds that it took."""
        self._load("about:blank")  # from one fragment of a page to another nothing loads
        return self._load(path.as_uri() + fragment)

    def loads_after(self, expression: str, seconds: float) -> bool:
        """Whether the page loads itself again within some seconds after an expression."""
        self.events.clear()
        self.evaluate(expression)
        deadline = time.perf_counter() + seconds
        try:
            while not self.of("Page.loadEventFired"):
                self._read(deadline)
        except TimeoutError:
            return False
        return True

    def screenshot(self, path: Path) -> None:
        """A picture of the whole page, as PNG."""
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 8000), "scale": 1}
        shot = self.ask("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def evaluate(self, expression: str) -> Any:
        """What a JavaScript expression is on the page, or comes to be if it is a promise."""
        result = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def of(self, *methods: str) -> list[dict[str, Any]]:
        """The events of some names."""
        return [event["params"] for event in self.events if event["method"] in methods]

    def _load(self, url: str) -> float:
        self.events.clear()
        start = time.perf_counter()
        self.ask("Page.navigate", url=url)
        while not self.of("Page.loadEventFired"):
            self._read(start + TIMEOUT)
        return time.perf_counter() - start

    def _ask(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        message |= {} if session is None else {"sessionId": session}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        deadline = time.perf_counter() + TIMEOUT
        while True:
            answer = self._read(deadline)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _read(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            left = deadline - time.perf_counter()
            if left <= 0 or not select.select([self._from], [], [], left)[0]:
                raise TimeoutError(f"the browser said nothing for {TIMEOUT} s")
            part = os.read(self._from, 1 << 20)
            if not part:
                raise EOFError("the browser has ended")
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        answer = json.loads(message)
        if "method" in answer:
            self.events.append(answer)
        return answer


@contextmanager
def browser_page(profile: Path) -> Iterator[Page]:
    """A page of a browser that is started for it.

    Args:
        profile: a folder for what the browser keeps.
    """
    assert CHROMIUM is not None
    hears, to_browser = os.pipe()
    from_browser, says = os.pipe()
    options = f"--headless --no-sandbox --disable-gpu --remote-debugging-pipe --user-data-dir={profile}"
    process = subprocess.Popen(
        # The protocol's pipes are the descriptors 3 and 4.
        ["bash", "-c", f'exec "$0" {options} 3<&{hears} 4>&{says}', CHROMIUM],
        pass_fds=(hears, says),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(hears)
    os.close(says)
    try:
        yield Page(to_browser, from_browser)
    finally:
        process.kill()
        process.wait()
        os.close(to_browser)
        os.close(from_browser)
