"""Headless Chromium through its debugging pipe: no driver, no package, no port."""

import base64
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_TIMEOUT_S = 20.0


class Page:
    """One browser with one page."""

    def __init__(
        self, executable: str = "chromium", *, width: int = 1100, height: int = 900
    ) -> None:
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_browser, self._write_fd = os.pipe()
        self._read_fd, from_browser = os.pipe()
        # The browser reads commands from descriptor 3 and answers on 4.
        command = (
            f"exec {executable} --headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage "
            "--no-first-run --no-default-browser-check --disable-background-networking "
            "--disable-component-update --disable-sync --hide-scrollbars --remote-debugging-pipe "
            f"--user-data-dir={self._profile.name} --window-size={width},{height} about:blank "
            f"3<&{to_browser} 4>&{from_browser}"
        )
        self._process = subprocess.Popen(
            ["bash", "-c", command],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._number = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self._changed = threading.Condition()
        self.console: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._session: str | None = None
        (target,) = [
            t for t in self.send("Target.getTargets")["targetInfos"] if t["type"] == "page"
        ]
        attached = self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "DOM", "Log", "Accessibility"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Run one command of the DevTools protocol."""
        with self._changed:
            self._number += 1
            number = self._number
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write_fd, json.dumps(message).encode() + b"\0")
        with self._changed:
            if not self._changed.wait_for(lambda: number in self._answers, _TIMEOUT_S):
                raise TimeoutError(f"the browser did not answer {method}")
            answer = self._answers.pop(number)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    def open(self, url: str) -> None:
        """Go to an address and wait for its scripts."""
        self.run("window.isOld = true")
        self.send("Page.navigate", url=url)
        self.wait("!window.isOld && document.readyState === 'complete'")

    def run(self, expression: str) -> Any:
        """Value of a JavaScript expression; promises are awaited."""
        answer = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait(self, expression: str) -> None:
        """Wait until an expression is true."""
        self.wait_for(lambda: bool(self.run(expression)), expression)

    def wait_for(self, test: Callable[[], bool], what: str) -> None:
        """Wait until something is so."""
        end = time.monotonic() + _TIMEOUT_S
        while time.monotonic() < end:
            if test():
                return
            time.sleep(0.05)
        raise TimeoutError(f"never became true: {what}")

    def write(self, text: str) -> None:
        """Type into what has the focus."""
        self.send("Input.insertText", text=text)

    def press(self, key: str, *, control: bool = False) -> None:
        """Press a key: Tab, Enter or Space."""
        codes = {"Tab": 9, "Enter": 13, " ": 32}
        text = {"Enter": "\r", " ": " "}.get(key) if not control else None
        event: dict[str, Any] = {
            "key": key,
            "code": "Space" if key == " " else key,
            "windowsVirtualKeyCode": codes[key],
            "modifiers": 2 if control else 0,
        }
        down = {**event, "text": text} if text else event
        self.send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **down)
        self.send("Input.dispatchKeyEvent", type="keyUp", **event)

    def choose_file(self, selector: str, path: Path) -> None:
        """Give a file to a file field."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def resize(self, width: int, height: int) -> None:
        """Look through a screen of another size."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def prefer(self, scheme: str) -> None:
        """Prefer `light` or `dark`."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.send("Emulation.setEmulatedMedia", features=[feature])

    def screenshot(self, path: Path) -> None:
        """Save the whole page as PNG."""
        answer = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def spoken(self) -> list[tuple[str, str]]:
        """Role and name of everything that a screen reader would find."""
        nodes = self.send("Accessibility.getFullAXTree")["nodes"]
        return [
            (str(n["role"]["value"]), str(n.get("name", {}).get("value", "")))
            for n in nodes
            if not n.get("ignored") and "role" in n
        ]

    def close(self) -> None:
        """End the browser."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        os.close(self._write_fd)
        self._reader.join(5)
        self._profile.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _read(self) -> None:
        rest = b""
        while chunk := os.read(self._read_fd, 1 << 20):
            *messages, rest = (rest + chunk).split(b"\0")
            for text in messages:
                self._take(json.loads(text))
        os.close(self._read_fd)

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            with self._changed:
                self._answers[message["id"]] = message
                self._changed.notify_all()
        elif message["method"] == "Log.entryAdded":
            self.console.append(str(message["params"]["entry"]["text"]))
        elif message["method"] == "Runtime.exceptionThrown":
            self.console.append(str(message["params"]["exceptionDetails"]))
        elif message["method"] == "Runtime.consoleAPICalled":
            self.console.append(str(message["params"]["args"]))
