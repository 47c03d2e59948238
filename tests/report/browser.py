"""A real browser for tests: Chromium without a window, spoken to over a pipe in its DevTools protocol."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PAPER = 688
"""CSS pixels across A4 between margins of 14 mm."""
PATIENCE = 120
"""Seconds after which a browser that does not answer is given up."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass
class Drawn:
    """A page as it was drawn.

    Attributes:
        width, scroll_width: of the window, and how wide the page became, CSS pixels.
        png, pdf: bytes of the picture of the whole page, and of its print.
        broken_images: that could not be shown.
        hidden_in_print, beyond_paper: pictures, tables and folded parts that are not printed, or only in part.
        said: what stood in the console, errors of scripts among it.
    """

    width: int
    scroll_width: int
    png: bytes
    pdf: bytes
    broken_images: int
    hidden_in_print: int
    beyond_paper: int
    said: list[str] = field(default_factory=list)


def installed() -> str | None:
    """The path of a Chromium; None where there is none."""
    return next((path for path in map(shutil.which, BROWSERS) if path), None)


class Browser:
    """One Chromium; a page at a time."""

    def __init__(self, send: int, receive: int) -> None:
        self._send, self._receive = send, receive
        self._numbers, self._buffer = itertools.count(1), b""
        self._said: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def draw(self, page: Path, width: int) -> Drawn:
        """Open a file in a window of `width` CSS pixels, a phone's where it is narrow; it stays open."""
        self._said = []
        self.call("Emulation.setEmulatedMedia", media="")
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        self.call("Page.navigate", url=page.resolve().as_uri())
        while self.value("document.readyState") != "complete":
            time.sleep(0.02)
        found = self.value("({wide: document.documentElement.scrollWidth, high: document.documentElement.scrollHeight,"
                           " broken: [...document.images].filter(i => !i.naturalWidth).length})")  # fmt: skip
        clip = {"x": 0, "y": 0, "width": width, "height": found["high"], "scale": 1}
        shot = self.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        pdf = self.call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)
        self.call("Emulation.setEmulatedMedia", media="print")
        self.call("Emulation.setDeviceMetricsOverride", **metrics | {"width": PAPER, "mobile": False})
        hidden, beyond = (
            self.value(f"[...document.querySelectorAll('figure, table, .body')].filter(e => {test}).length")
            for test in ("!e.offsetHeight", "e.getBoundingClientRect().right > innerWidth + 1")
        )
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        return Drawn(width, found["wide"], base64.b64decode(shot["data"]), base64.b64decode(pdf["data"]),
                     found["broken"], hidden, beyond, self._said)  # fmt: skip

    def value(self, expression: str) -> Any:
        """What an expression gives in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command to the page, and its answer."""
        return self._call(method, self._session, **parameters)

    def _call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters, **({"sessionId": session} if session else {})}
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return dict(answer["result"])
            if answer.get("method") in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
                self._said.append(json.dumps(answer["params"]))

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._receive], [], [], PATIENCE)
            assert ready, f"the browser has not answered for {PATIENCE} s"
            read = os.read(self._receive, 1 << 16)
            assert read, "the browser ended"
            self._buffer += read
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))


@contextmanager
def browser(path: str, profile: Path) -> Iterator[Browser]:
    """Start the Chromium at `path`, end it after the body."""
    commands, send = os.pipe()
    receive, answers = os.pipe()

    def hand_over() -> None:
        # The protocol's pipe is read at 3 and written at 4; both are moved out of the way of one another first.
        high = [os.dup2(commands, 100), os.dup2(answers, 101)]
        os.dup2(high[0], 3)
        os.dup2(high[1], 4)

    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    process = subprocess.Popen(
        [path, *flags, "--remote-debugging-pipe", f"--user-data-dir={profile}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        close_fds=False,
        preexec_fn=hand_over,
    )
    os.close(commands)
    os.close(answers)
    try:
        yield Browser(send, receive)
    finally:
        os.close(send)
        os.close(receive)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
