"""A page in headless Chromium, driven over DevTools: for tests and pictures of the UI."""

import base64
import io
import json
import re
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from websockets.sync.client import connect

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
ANSWER_S = 60.0
STEP_S = 0.25
SETTLE_S = 1.5


class Page:
    """One tab."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._n = 0

    def call(self, method: str, **parameters: Any) -> Any:
        self._n += 1
        self._socket.send(json.dumps({"id": self._n, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv(timeout=ANSWER_S))
            if answer.get("id") == self._n:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def evaluate(self, script: str) -> Any:
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        return found["result"].get("value")

    @property
    def text(self) -> str:
        return self.evaluate("document.body ? document.body.innerText : ''") or ""

    def open(self, url: str, *wanted: str, within_s: float = 30.0) -> None:
        self.call("Page.navigate", url=url)
        self.wait_for(*wanted, within_s=within_s)

    def wait_for(self, *wanted: str, within_s: float = 30.0) -> None:
        """Wait until the page holds all of these texts."""
        deadline = time.monotonic() + within_s
        while missing := [each for each in wanted if each not in self.text]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"not on the page: {missing}\n{self.text}")
            time.sleep(STEP_S)

    def click(self, text: str, *, tag: str = "*") -> bool:
        """Click the innermost element that holds exactly this text."""
        script = f"""(() => {{
            const all = [...document.querySelectorAll({json.dumps(tag)})].filter(
                e => e.innerText && e.innerText.trim() === {json.dumps(text)} && e.offsetParent);
            if (!all.length) return false;
            all[all.length - 1].click(); return true;
        }})()"""
        return bool(self.evaluate(script))

    def fill(self, label: str, value: str) -> None:
        """Type into the field of a form, or choose from it, that has this label."""
        kind = self.evaluate(f"""(() => {{
            const label = [...document.querySelectorAll('.schema-form-property__label')].find(
                e => e.innerText.trim() === {json.dumps(label)} && e.offsetParent);
            if (!label) return '';
            const field = label.closest('.schema-form-property').querySelector(
                'textarea, input, select');
            if (field.tagName === 'SELECT') {{
                field.value = {json.dumps(value)};
                field.dispatchEvent(new Event('change', {{bubbles: true}}));
            }} else {{ field.focus(); field.select(); }}
            return field.tagName;
        }})()""")
        if not kind:
            raise LookupError(f"no field {label!r} on the page\n{self.text}")
        if kind != "SELECT":
            self.call("Input.insertText", text=value)

    def scroll_to(self, text: str) -> bool:
        """Bring the innermost element with this text to the top of the window."""
        script = f"""(() => {{
            const all = [...document.querySelectorAll('*')].filter(
                e => e.innerText && e.innerText.trim().startsWith({json.dumps(text)}));
            if (!all.length) return false;
            all[all.length - 1].scrollIntoView({{block: 'start'}}); return true;
        }})()"""
        return bool(self.evaluate(script))

    def resize(self, width: int, height: int) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip

    def picture(self, path: Path, *, share: float = 1.0) -> None:
        """Save what the window shows, with few colours; a smaller share of its width as well."""
        time.sleep(SETTLE_S)
        png = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        shown = Image.open(io.BytesIO(png)).convert("RGB")
        if share < 1:
            size = round(shown.width * share), round(shown.height * share)
            shown = shown.resize(size, Image.Resampling.LANCZOS)
        shown.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


@contextmanager
def page(width: int = 1400, height: int = 1000) -> Iterator[Page]:
    """Yield a page of a browser that ends with it."""
    assert CHROMIUM
    folder = Path(tempfile.mkdtemp(prefix="patchworks-chromium-"))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
               "--no-first-run", "--remote-debugging-port=0", "--remote-allow-origins=*",
               f"--user-data-dir={folder}", "about:blank"]  # fmt: skip
    browser = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        port = _port_in(folder / "DevToolsActivePort")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=ANSWER_S) as answer:
            tabs = [tab for tab in json.load(answer) if tab["type"] == "page"]
        with connect(tabs[0]["webSocketDebuggerUrl"], max_size=None, proxy=None) as socket:
            found = Page(socket)
            found.call("Page.enable")
            found.resize(width, height)
            yield found
    finally:
        browser.terminate()
        browser.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _port_in(file: Path) -> int:
    deadline = time.monotonic() + ANSWER_S
    while time.monotonic() < deadline:
        if file.exists() and (found := re.match(r"\d+", file.read_text())):
            return int(found[0])
        time.sleep(STEP_S)
    raise TimeoutError(f"{CHROMIUM} did not say where it listens")
