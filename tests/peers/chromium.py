"""A headless Chromium (Debian's `chromium`), controlled over the DevTools protocol, for what a person sees and does in a page.

Tests find elements by their visible text, as people do, or by a CSS selector. No request leaves this machine.
"""

import base64
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Self

from websockets.sync.client import ClientConnection, connect

from tests.peers.processes import poll_until, require, running

_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync "
    "--disable-component-update --hide-scrollbars --remote-debugging-port=0 --force-color-profile=srgb"
)
_ANSWER_S = 60.0
_MOST_BYTES = 64 * 1024 * 1024
_DRAWN = 700
"""Number of colours. A graph without nodes has 487, because the text of its axis has smooth edges. A single node has 980."""
_PORT_FILE = "DevToolsActivePort"

# The visible element with the text. Among several, the innermost element with the shortest text. A label counts as its control.
_FIND = """
(selector, text) => {
  const isShown = (one) => one.checkVisibility() && one.getClientRects().length;
  const textOf = (one) => (one.innerText ?? one.textContent ?? '').trim() || one.placeholder || one.ariaLabel || '';
  return [...document.querySelectorAll(selector)]
    .filter((one) => isShown(one) && (text === null || textOf(one).includes(text)))
    .sort((one, other) => textOf(one).length - textOf(other).length || (one.contains(other) ? 1 : -1))[0];
}
"""


# The field in the smallest part of the page that begins with the title.
_FIELD = """
(title) => {
  const around = (one) => {
    for (let part = one; part; part = part.parentElement)
      if ((part.innerText ?? '').trim().startsWith(title)) return part.innerText.length;
    return Infinity;
  };
  return [...document.querySelectorAll('input, textarea')]
    .map((one) => [around(one), one]).filter(([size]) => size < Infinity).sort(([one], [other]) => one - other)[0]?.[1];
}
"""

_COLOURS = """
async (shot) => {
  const image = new Image();
  image.src = `data:image/png;base64,${shot}`;
  await image.decode();
  const canvas = new OffscreenCanvas(image.width, image.height).getContext('2d');
  canvas.drawImage(image, 0, 0);
  return new Set(new Uint32Array(canvas.getImageData(0, 0, image.width, image.height).data.buffer)).size;
}
"""


class Page:
    """One page of the browser."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._numbers = socket, count(1)

    def open(self, url: str) -> None:
        """Open a URL."""
        self.send("Page.navigate", url=url)

    def wait_for(self, text: str, selector: str = "body") -> None:
        """Wait until the page shows a text.

        Raises:
            TimeoutError: the text does not appear in time.
        """
        if not poll_until(lambda: self.evaluate(f"!!({_FIND})({json.dumps(selector)}, {json.dumps(text)})")):
            raise self._missing(text, selector)

    def click(self, text: str, selector: str = "*") -> None:
        """Click on the smallest element with a text, like a mouse: an element above it gets the click."""
        x, y = self._found(text, selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text: str, title: str) -> None:
        """Replace the content of the field below a title, as keyboard input does.

        Raises:
            TimeoutError: the field does not exist, or does not take the text.
        """
        field = f"({_FIELD})({json.dumps(title)})"

        def typed() -> bool:
            if not self.evaluate(f"(() => {{ const one = {field}; one?.focus(); one?.select(); return !!one; }})()"):
                return False
            if not self.evaluate(f"document.activeElement === {field}"):  # a page that loads moves the focus
                return False
            self.send("Input.insertText", text=text)
            return bool(self.evaluate(f"{field}.value") == text)

        if not poll_until(typed):
            raise TimeoutError(f"no field {title!r} took {text!r}; the page shows:\n{self.text()}")

    def picture(self, path: Path, *, width: int = 1280, height: int = 900) -> None:
        """Write the top of the page as PNG."""
        self.resize(width, height)
        self.evaluate("document.querySelectorAll('*').forEach((one) => { one.scrollTop = 0; })")
        shot = self.send("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))

    def resize(self, width: int, height: int) -> None:
        """Resize the window."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def colours(self, selector: str) -> int:
        """Number of different colours in an element; an empty canvas has one."""
        one = f"({_FIND})({json.dumps(selector)}, null)"
        self.evaluate(f"{one}?.scrollIntoView()")
        box = self.evaluate(f"({one}?.getBoundingClientRect() ?? new DOMRect()).toJSON()")
        clip = {**{key: box[key] for key in ("x", "y", "width", "height")}, "scale": 1}
        shot = self.send("Page.captureScreenshot", format="png", clip=clip)["data"] if box["width"] else None
        return int(self.evaluate(f"({_COLOURS})({json.dumps(shot)})")) if shot else 0

    def wait_for_drawing(self, selector: str) -> None:
        """Wait until a canvas shows more than an empty graph.

        Raises:
            TimeoutError: the canvas stays empty.
        """
        if not poll_until(lambda: self.colours(selector) > _DRAWN):
            raise TimeoutError(f"nothing is drawn on {selector}; the page shows:\n{self.text()}")

    def text(self) -> str:
        """All visible text of the page."""
        return str(self.evaluate("document.body.innerText"))

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        response = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in response:
            raise RuntimeError(f"{expression}: {response['exceptionDetails']}")
        return response["result"].get("value")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol, and return the response."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        deadline = time.monotonic() + _ANSWER_S
        while True:
            answer = json.loads(self._socket.recv(timeout=deadline - time.monotonic()))
            if answer.get("id") == number:
                break
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def _found(self, text: str, selector: str) -> tuple[float, float]:
        """Return the middle of an element, scrolled into view, once the element exists and does not move."""
        places: list[Any] = [None]
        look = f"""(() => {{
          const one = ({_FIND})({json.dumps(selector)}, {json.dumps(text)});
          if (!one) return null;
          one.scrollIntoView({{block: 'nearest'}});
          const box = one.getBoundingClientRect();
          return [box.x + box.width / 2, box.y + Math.min(box.height / 2, 400)];
        }})()"""

        def is_still() -> bool:
            places.append(self.evaluate(look))
            return places[-1] is not None and places[-1] == places[-2]

        if not poll_until(is_still):
            raise self._missing(text, selector)
        x, y = places[-1]
        return x, y

    def _missing(self, text: str, selector: str) -> TimeoutError:
        return TimeoutError(f"no {selector} that shows {text!r}; the page shows:\n{self.text()}")


class Chromium:
    """A running browser."""

    def __init__(self, address: str, path: str) -> None:
        self._address, self._path = address, path
        self._open = ExitStack()

    def page(self) -> Page:
        """Open a new, empty page."""
        browser = self._connected(f"{self._address}{self._path}")
        target = Page(browser).send("Target.createTarget", url="about:blank")["targetId"]
        page = Page(self._connected(f"{self._address}/devtools/page/{target}"))
        page.resize(1280, 900)
        return page

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _connected(self, url: str) -> ClientConnection:
        socket = connect(url, max_size=_MOST_BYTES, compression=None)
        self._open.callback(socket.close)
        return socket


@contextmanager
def chromium(directory: Path) -> Iterator[Chromium]:
    """Run a browser with its data in `directory`, for the length of a `with` block."""
    program = require("chromium", "chromium")
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, ignore_cleanup_errors=True) as profile:
        port = Path(profile) / _PORT_FILE
        argv = [program, *_FLAGS.split(), f"--user-data-dir={profile}", "about:blank"]
        with running(argv, ready=lambda: port.exists() and "\n" in port.read_text(), log=directory / "chromium.log"):
            number, path = port.read_text().split("\n")[:2]
            with Chromium(f"ws://127.0.0.1:{number}", path) as browser:
                yield browser
