"""Faults as data: which request is struck, and what is done to the answer prepared for it.

An action is a frozen value that turns one :class:`Response` into another. An action that also disturbs the connection
leaves itself in the response as its *interruption*, which the server calls once that many body bytes are out.
The wire itself belongs to ``wire.py``; nothing here does I/O.
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
    """What an interruption may do to the connection under it."""

    def reset(self) -> None:
        """Close at once with RST."""

    def wait(self, release: threading.Event | None) -> bool:
        """Block; True when released, False when the client left or the server closes."""


class Interruption(Protocol):
    """Something that happens in the middle of a body."""

    @property
    def after(self) -> int:
        """How many body bytes are sent before it."""

    def interrupt(self, wire: Wire) -> bool:
        """Return whether the rest of the body follows; if not, the connection is closed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """An answer not yet sent. ``Content-Length`` is a header like any other, so a fault may make it lie."""

    status: int
    headers: Headers
    body: memoryview
    interruption: Interruption | None = None
    unranged: "Response | None" = None  # the answer had there been no Range; None if there was none
    path: str = ""  # the path asked for

    @classmethod
    def of(cls, status: int, body: bytes | memoryview = b"", headers: Headers = ()) -> Self:
        """Build an answer whose ``Content-Length`` is right, unless ``headers`` give another."""
        bare = cls(status=status, headers=(), body=memoryview(body))
        return bare.with_headers((("Content-Length", str(len(body))), *headers))

    @classmethod
    def of_json(cls, status: int, document: object, headers: Headers = ()) -> Self:
        """Build an answer that carries ``document``."""
        return cls.of(status, json.dumps(document).encode(), (("Content-Type", "application/json"), *headers))

    @classmethod
    def refusal(cls, status: int, code: str, message: str, headers: Headers = ()) -> Self:
        """Build an error answer in the form of the OCI distribution spec 1.1."""
        return cls.of_json(status, {"errors": [{"code": code, "message": message}]}, headers)

    def header(self, name: str) -> str | None:
        """Return the last value of ``name``, whatever its case."""
        return {key.lower(): value for key, value in self.headers}.get(name.lower())

    def with_headers(self, pairs: Headers) -> Self:
        """Put ``pairs`` in the place of all headers of their names."""
        bare = self.without_headers([name for name, _ in pairs])
        return replace(bare, headers=bare.headers + pairs)

    def without_headers(self, names: Collection[str]) -> Self:
        """Drop all headers of these names, whatever their case."""
        dropped = {name.lower() for name in names}
        return replace(self, headers=tuple(pair for pair in self.headers if pair[0].lower() not in dropped))

    def with_body(self, body: bytes | bytearray | memoryview) -> Self:
        """Change the body and the length announced; digest and range headers keep their old claim."""
        return replace(self.with_headers((("Content-Length", str(len(body))),)), body=memoryview(body))


class Action(Protocol):
    """One way for an answer to go wrong."""

    def apply(self, response: Response) -> Response:
        """Return the answer that is sent instead of ``response``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """An action and the requests it strikes, counted from the moment of injection.

    It strikes ``times`` matching requests in a row from the ``nth`` on (1 is the first), or all of them when ``nth`` is
    None. ``path`` is a regex for the whole path, without the query.
    """

    method: str = "GET"
    path: str = ".*"
    nth: int | None = 1
    times: int = 1
    action: Action

    def matches(self, method: str, path: str) -> bool:
        """Tell whether such a request counts."""
        return method == self.method and re.fullmatch(self.path, path) is not None

    def strikes(self, count: int) -> bool:
        """Tell whether the ``count``-th matching request is struck."""
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
    """Like :class:`Cut`, with RST: the client may lose bytes already sent, then sees the connection reset.

    Over TLS, Python 3.11's ``ssl`` reports the RST as a mere end of file.
    """

    after: int

    def apply(self, response: Response) -> Response:
        return replace(response, interruption=self)

    def interrupt(self, wire: Wire) -> bool:
        wire.reset()
        return False


@dataclass(frozen=True, slots=True)
class Stall:
    """Send ``after`` body bytes, then nothing; the rest follows if and when ``release`` is set."""

    after: int
    release: threading.Event | None = None

    def apply(self, response: Response) -> Response:
        return replace(response, interruption=self)

    def interrupt(self, wire: Wire) -> bool:
        return wire.wait(self.release)


@dataclass(frozen=True, slots=True)
class Silence:
    """Do what was asked, and never answer: not even the head is sent."""

    def apply(self, response: Response) -> Response:
        return replace(response, status=0)


@dataclass(frozen=True, slots=True)
class Call:
    """Call ``act`` before the answer, which stays as it is: something else happens at this moment."""

    act: Callable[[], object]

    def apply(self, response: Response) -> Response:
        self.act()
        return response


# The request fails.


@dataclass(frozen=True, slots=True)
class Drop:
    """Take ``after`` bytes of the request's body, then close with RST; an upload keeps what it took. No answer."""

    after: int

    def apply(self, response: Response) -> Response:
        return response  # which is not sent


@dataclass(frozen=True, slots=True)
class Refuse:
    """An answer from the door: nothing of the request's body is read, and nothing done."""

    status: int
    headers: Headers = ()
    body: bytes = b""

    def apply(self, response: Response) -> Response:
        return Response.of(self.status, self.body, self.headers)


# The body is wrong.


@dataclass(frozen=True, slots=True)
class Flip:
    """Invert the byte at offset ``at`` of the body sent (not of the blob, when a range is answered)."""

    at: int

    def apply(self, response: Response) -> Response:
        body = bytearray(response.body)
        body[self.at] ^= 0xFF
        return response.with_body(body)


@dataclass(frozen=True, slots=True)
class Shorten:
    """Leave out the last ``by`` bytes and announce the length that is left."""

    by: int

    def apply(self, response: Response) -> Response:
        return response.with_body(response.body[: max(0, len(response.body) - self.by)])


@dataclass(frozen=True, slots=True)
class Lengthen:
    """Append ``by`` zero bytes and announce the longer length."""

    by: int

    def apply(self, response: Response) -> Response:
        return response.with_body(bytes(response.body) + bytes(self.by))


# Another answer.


@dataclass(frozen=True, slots=True)
class Replace:
    """200 with another body and no trace of the true one, as a captive portal does."""

    body: bytes
    content_type: str = "text/html"

    def apply(self, response: Response) -> Response:
        return Response.of(200, self.body, (("Content-Type", self.content_type),))


@dataclass(frozen=True, slots=True)
class Answer:
    """Any status, headers and body; ``Content-Length`` is added unless given."""

    status: int
    headers: Headers = ()
    body: bytes = b""

    def apply(self, response: Response) -> Response:
        return Response.of(self.status, self.body, self.headers)


@dataclass(frozen=True, slots=True)
class Redirect:
    """Send the client to ``location``, an absolute URL in which ``{path}`` stands for the path asked for."""

    location: str
    status: int = 307

    def apply(self, response: Response) -> Response:
        return Response.of(self.status, headers=(("Location", self.location.replace("{path}", response.path)),))


# The headers are wrong.


@dataclass(frozen=True, slots=True)
class WithoutHeaders:
    """Leave headers out; without ``Content-Length`` a GET body ends where the connection does."""

    names: tuple[str, ...]

    def apply(self, response: Response) -> Response:
        return response.without_headers(self.names)


@dataclass(frozen=True, slots=True)
class WithHeaders:
    """Add headers, in the place of those of the same names."""

    pairs: Headers

    def apply(self, response: Response) -> Response:
        return response.with_headers(self.pairs)


# The range is wrong; each leaves an answer to a request without a range as it is.


@dataclass(frozen=True, slots=True)
class IgnoreRange:
    """200 and the whole body, whatever range was asked for."""

    def apply(self, response: Response) -> Response:
        return response.unranged or response


@dataclass(frozen=True, slots=True)
class ShiftRange:
    """206 with a range that starts and ends ``by`` bytes later than asked, and says so; body and header agree."""

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
    """206 with at most ``most`` bytes of the range, and a Content-Range that says so (RFC 9110, 15.3.7)."""

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
    """206 that does not say which range it carries."""

    def apply(self, response: Response) -> Response:
        return response.without_headers(["Content-Range"])
