"""Faults as data: the requests that a fault strikes, and the change of the prepared response.

An action is a frozen value that turns one :class:`Response` into another. An action that also disturbs the connection stores
itself in the response as its *interruption*, which the server calls after that many body bytes. All I/O is in ``wire.py``.
"""
# ruff: noqa: ARG002 - not every action looks at the answer that it replaces

import json
import re
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Protocol, Self

Headers = tuple[tuple[str, str], ...]  # in the order sent; a name may repeat


class Wire(Protocol):
    """The operations of an interruption on its connection."""

    def reset(self) -> None:
        """Close at once with RST."""

    def wait(self, release: threading.Event | None) -> bool:
        """Block; True when released, False when the client left or the server closes."""


class Interruption(Protocol):
    """An event in the middle of a body."""

    @property
    def after(self) -> int:
        """Number of body bytes before the interruption."""

    def interrupt(self, wire: Wire) -> bool:
        """Return True if the rest of the body follows; otherwise the connection is closed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A response before it is sent. ``Content-Length`` is an ordinary header, so a fault may falsify it."""

    status: int
    headers: Headers
    body: memoryview
    interruption: Interruption | None = None
    unranged: "Response | None" = None  # the response without Range; None if the request has no Range
    path: str = ""  # the requested path

    @classmethod
    def of(cls, status: int, body: bytes | memoryview = b"", headers: Headers = ()) -> Self:
        """Build a response with a correct ``Content-Length``, unless ``headers`` has another."""
        bare = cls(status=status, headers=(), body=memoryview(body))
        return bare.with_headers((("Content-Length", str(len(body))), *headers))

    @classmethod
    def of_json(cls, status: int, document: object, headers: Headers = ()) -> Self:
        """Build a response with a JSON document."""
        return cls.of(status, json.dumps(document).encode(), (("Content-Type", "application/json"), *headers))

    @classmethod
    def refusal(cls, status: int, code: str, message: str, headers: Headers = ()) -> Self:
        """Build an error response in the form of the OCI distribution spec 1.1."""
        return cls.of_json(status, {"errors": [{"code": code, "message": message}]}, headers)

    def header(self, name: str) -> str | None:
        """Return the last value of a header, in any case."""
        return {key.lower(): value for key, value in self.headers}.get(name.lower())

    def with_headers(self, pairs: Headers) -> Self:
        """Replace all headers of these names."""
        bare = self.without_headers([name for name, _ in pairs])
        return replace(bare, headers=bare.headers + pairs)

    def without_headers(self, names: Collection[str]) -> Self:
        """Remove all headers of these names, in any case."""
        dropped = {name.lower() for name in names}
        return replace(self, headers=tuple(pair for pair in self.headers if pair[0].lower() not in dropped))

    def with_body(self, body: bytes | bytearray | memoryview) -> Self:
        """Change the body and its Content-Length; digest and range headers stay unchanged."""
        return replace(self.with_headers((("Content-Length", str(len(body))),)), body=memoryview(body))


class Action(Protocol):
    """A way to falsify a response."""

    def apply(self, response: Response) -> Response:
        """Return the response to send instead of ``response``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """An action and the requests that it strikes, counted from the moment of injection.

    It strikes ``times`` successive matching requests from the ``nth`` on (1 is the first), or all of them if ``nth`` is None.
    ``path`` is a regex for the whole path, without the query.
    """

    method: str = "GET"
    path: str = ".*"
    nth: int | None = 1
    times: int = 1
    action: Action

    def matches(self, method: str, path: str) -> bool:
        """Return True if such a request counts."""
        return method == self.method and re.fullmatch(self.path, path) is not None

    def strikes(self, count: int) -> bool:
        """Return True if the fault strikes the ``count``-th matching request."""
        return self.nth is None or self.nth <= count < self.nth + self.times


# The connection fails.


@dataclass(frozen=True, slots=True)
class Cut:
    """Announce the full length, send ``after`` body bytes, close."""

    after: int

    def apply(self, response: Response) -> Response:
        return replace(response, interruption=self)

    def interrupt(self, wire: Wire) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Reset:
    """Like :class:`Cut`, with RST: the client may lose bytes that were already sent, and then sees a connection reset.

    Over TLS, Python 3.11's ``ssl`` reports the RST as an end of file.
    """

    after: int

    def apply(self, response: Response) -> Response:
        return replace(response, interruption=self)

    def interrupt(self, wire: Wire) -> bool:
        wire.reset()
        return False


@dataclass(frozen=True, slots=True)
class Stall:
    """Send ``after`` body bytes, then pause; the rest follows after ``release`` is set."""

    after: int
    release: threading.Event | None = None

    def apply(self, response: Response) -> Response:
        return replace(response, interruption=self)

    def interrupt(self, wire: Wire) -> bool:
        return wire.wait(self.release)


@dataclass(frozen=True, slots=True)
class Silence:
    """Execute the request, and never answer: not even the head of the response is sent."""

    def apply(self, response: Response) -> Response:
        return replace(response, status=0)


@dataclass(frozen=True, slots=True)
class Call:
    """Call ``act`` before the response, which stays unchanged."""

    act: Callable[[], object]

    def apply(self, response: Response) -> Response:
        self.act()
        return response


# The request fails.


@dataclass(frozen=True, slots=True)
class Drop:
    """Read ``after`` bytes of the request body, then close with RST; an upload keeps the bytes. There is no response."""

    after: int

    def apply(self, response: Response) -> Response:
        return response  # not sent


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer without reading the request body and without executing the request."""

    status: int
    headers: Headers = ()
    body: bytes = b""

    def apply(self, response: Response) -> Response:
        return Response.of(self.status, self.body, self.headers)


# The body is wrong.


@dataclass(frozen=True, slots=True)
class Flip:
    """Invert the byte at offset ``at`` of the sent body (for a range, not of the blob)."""

    at: int

    def apply(self, response: Response) -> Response:
        body = bytearray(response.body)
        body[self.at] ^= 0xFF
        return response.with_body(body)


@dataclass(frozen=True, slots=True)
class Shorten:
    """Omit the last ``by`` bytes, with a matching Content-Length."""

    by: int

    def apply(self, response: Response) -> Response:
        return response.with_body(response.body[: max(0, len(response.body) - self.by)])


@dataclass(frozen=True, slots=True)
class Lengthen:
    """Append ``by`` zero bytes, with a matching Content-Length."""

    by: int

    def apply(self, response: Response) -> Response:
        return response.with_body(bytes(response.body) + bytes(self.by))


# Another answer.


@dataclass(frozen=True, slots=True)
class Replace:
    """Answer 200 with another body and no trace of the real one, as a captive portal does."""

    body: bytes
    content_type: str = "text/html"

    def apply(self, response: Response) -> Response:
        return Response.of(200, self.body, (("Content-Type", self.content_type),))


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer with any status, headers and body; ``Content-Length`` is added unless present."""

    status: int
    headers: Headers = ()
    body: bytes = b""

    def apply(self, response: Response) -> Response:
        return Response.of(self.status, self.body, self.headers)


@dataclass(frozen=True, slots=True)
class Redirect:
    """Redirect to ``location``, an absolute URL in which ``{path}`` is replaced by the requested path."""

    location: str
    status: int = 307

    def apply(self, response: Response) -> Response:
        return Response.of(self.status, headers=(("Location", self.location.replace("{path}", response.path)),))


# The headers are wrong.


@dataclass(frozen=True, slots=True)
class WithoutHeaders:
    """Omit headers; without ``Content-Length``, the body of a GET ends with the connection."""

    names: tuple[str, ...]

    def apply(self, response: Response) -> Response:
        return response.without_headers(self.names)


@dataclass(frozen=True, slots=True)
class WithHeaders:
    """Add headers, and replace existing headers of the same names."""

    pairs: Headers

    def apply(self, response: Response) -> Response:
        return response.with_headers(self.pairs)


# The range is wrong. These actions do not change a response to a request without a range.


@dataclass(frozen=True, slots=True)
class IgnoreRange:
    """Answer 200 with the whole body to any range."""

    def apply(self, response: Response) -> Response:
        return response.unranged or response


@dataclass(frozen=True, slots=True)
class ShiftRange:
    """Answer 206 with a range ``by`` bytes later than requested; body and Content-Range agree."""

    by: int

    def apply(self, response: Response) -> Response:
        span = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", response.header("Content-Range") or "")
        if span is None or response.unranged is None:
            return response
        first, last, size = (int(number) for number in span.groups())
        first, last = max(0, first + self.by), min(size - 1, last + self.by)
        shifted = response.with_body(response.unranged.body[first : last + 1])
        return shifted.with_headers((("Content-Range", f"bytes {first}-{last}/{size}"),))


@dataclass(frozen=True, slots=True)
class ShortRange:
    """Answer 206 with at most ``most`` bytes of the range, and a matching Content-Range (RFC 9110, 15.3.7)."""

    most: int

    def apply(self, response: Response) -> Response:
        span = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", response.header("Content-Range") or "")
        if span is None:
            return response
        first, last, size = (int(number) for number in span.groups())
        last = min(last, first + self.most - 1)
        short = response.with_body(response.body[: self.most])
        return short.with_headers((("Content-Range", f"bytes {first}-{last}/{size}"),))


@dataclass(frozen=True, slots=True)
class NoContentRange:
    """Answer 206 without Content-Range."""

    def apply(self, response: Response) -> Response:
        return response.without_headers(["Content-Range"])
