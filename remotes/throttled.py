"""A transport with a throttle for each server, and a record of reported quotas."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import httpx

from prefect_dist.remotes.errors import retry_after_s
from prefect_dist.remotes.hosts import Hosts
from prefect_dist.remotes.throttle import Aborted, Throttle

_TOO_MANY = httpx.codes.TOO_MANY_REQUESTS
_UNAVAILABLE = httpx.codes.SERVICE_UNAVAILABLE


WAITED_S = "dist.waited_s"
"""Extension of a response: the seconds for which the throttle delayed its request."""

OnThrottled = Callable[[str, float], None]
"""Called with a server and the seconds for which requests to it pause; again if the pause grows. Thread-safe."""


def ignore_pause(_server: str, _seconds: float) -> None:
    """Ignore the call."""


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Quota:
    """The request quota reported by a registry: Docker Hub's `ratelimit-limit` and `ratelimit-remaining`.

    `remaining` of `limit` requests in a window of `window_s` seconds; None if the registry does not report the window.
    """

    limit: int
    remaining: int
    window_s: int | None


class ThrottledTransport(httpx.BaseTransport):
    """Sends requests through another transport. Thread-safe.

    While requests to a server pause, this transport answers without the server: with 429 and the remaining time in Retry-After.
    The caller can then wait without holding a thread.
    """

    def __init__(self, inner: httpx.BaseTransport, hosts: Hosts, *, on_throttled: OnThrottled = ignore_pause) -> None:
        self._inner, self._hosts, self._on_throttled = inner, hosts, on_throttled
        self._throttles: dict[str, Throttle] = {}
        self._quotas: dict[str, Quota] = {}
        self._guard = threading.Lock()
        self._aborted = False

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Wait for a turn, then send one request."""
        throttle, began = self._throttle(request.url), time.monotonic()
        try:
            pause_s = throttle.acquire()
        except Aborted:
            raise httpx.ConnectError("the run was stopped", request=request) from None
        waited_s = time.monotonic() - began
        if pause_s:
            return _rate_limited_response(pause_s)
        try:
            response = self._inner.handle_request(request)
        except BaseException:
            throttle.release()
            raise
        response.extensions[WAITED_S] = waited_s
        self._note_response(throttle, request.url, response)
        response.stream = _NotifyingStream(cast("httpx.SyncByteStream", response.stream), throttle.release)
        return response

    def quotas(self) -> dict[str, Quota]:
        """Return the last reported quota of each server, by `host[:port]`."""
        with self._guard:
            return dict(self._quotas)

    def abort(self) -> None:
        """Wake all requests waiting for a turn, and let no request wait again."""
        with self._guard:
            self._aborted = True
            throttles = list(self._throttles.values())
        for throttle in throttles:
            throttle.abort()

    def close(self) -> None:
        """Close the other transport."""
        self._inner.close()

    def _throttle(self, url: httpx.URL) -> Throttle:
        server = url.netloc.decode("ascii")
        with self._guard:
            if server not in self._throttles:
                per_second = self._hosts.settings_at(url).per_second
                self._throttles[server] = Throttle(in_flight=self._hosts.max_in_flight(url), per_second=per_second)
                if self._aborted:
                    self._throttles[server].abort()
            return self._throttles[server]

    def _note_response(self, throttle: Throttle, url: httpx.URL, response: httpx.Response) -> None:
        wait_s = retry_after_s(response)
        if response.status_code == _TOO_MANY or (response.status_code == _UNAVAILABLE and wait_s is not None):
            if throttle.note_refused(wait_s) and wait_s is not None:
                self._on_throttled(url.netloc.decode("ascii"), wait_s)
        else:
            throttle.note_accepted()
        if (quota := read_quota(response.headers)) is not None:
            with self._guard:
                self._quotas[url.netloc.decode("ascii")] = quota


class _NotifyingStream(httpx.SyncByteStream):
    """A body that calls `closed` once, when it is closed."""

    def __init__(self, stream: httpx.SyncByteStream, closed: Callable[[], None]) -> None:
        self._stream, self._closed = stream, closed
        self._open = True

    def __iter__(self) -> Iterator[bytes]:
        yield from self._stream

    def close(self) -> None:
        try:
            self._stream.close()
        finally:
            if self._open:
                self._open = False
                self._closed()


def waited_s(response: httpx.Response) -> float:
    """Return the seconds for which the throttle delayed a response, including its redirects and token requests."""
    return sum(float(one.extensions.get(WAITED_S, 0.0)) for one in (*response.history, response))


def read_quota(headers: httpx.Headers) -> Quota | None:
    """Return the quota in headers such as `ratelimit-limit: 100;w=21600`; None if they are absent or have another form."""
    limit, window_s = _amount(headers.get("ratelimit-limit", ""))
    remaining, _ = _amount(headers.get("ratelimit-remaining", ""))
    return None if limit is None or remaining is None else Quota(limit=limit, remaining=remaining, window_s=window_s)


def _amount(text: str) -> tuple[int | None, int | None]:
    amount, _, rest = text.partition(";")
    window = rest.strip().removeprefix("w=")
    return _number(amount), _number(window)


def _number(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None  # noqa: PLR2004 - years of seconds


def _rate_limited_response(pause_s: float) -> httpx.Response:
    extensions = {"reason_phrase": b"not sent, the server is rate-limiting"}
    return httpx.Response(_TOO_MANY, headers={"Retry-After": str(math.ceil(pause_s))}, extensions=extensions)
