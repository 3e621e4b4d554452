"""Authentication against registries, driven by their challenges: anonymous, basic and bearer tokens.

The token protocol is that of distribution's "Token Authentication Specification". `RegistryAuth` is an `httpx.Auth`, a pure
generator of requests: it can be driven by hand, and whatever it asks goes through the same client as all else.
"""

import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import cast

import httpx

from ocispec import fields
from ocispec.errors import Denied, InvalidInput, Unavailable
from remotes.bounded import Bounded
from remotes.challenge import Challenge, parse
from remotes.credentials import Credentials
from remotes.errors import from_response, redact

# "If omitted, this defaults to 60 seconds" (token specification, expires_in).
_DEFAULT_LIFE_S = 60
# A token is not used in its last seconds: it would expire on the way.
_MARGIN_S = 5
_MAX_ANSWER_BYTES = 1024 * 1024

_Flow = Generator[httpx.Request, httpx.Response, str | None]


@dataclass(frozen=True, slots=True)
class _Grant:
    header: str = field(repr=False)
    expires: float = float("inf")


class HostAuth:
    """What one registry was told and gave so far; shared by all requests to it. Thread-safe."""

    def __init__(self, host: str, credentials: Credentials | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.host = host
        self.credentials = credentials
        self._clock = clock
        self._grants: dict[str, _Grant] = {}
        self._asking: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()

    def grant(self, scope: str) -> str | None:
        """The Authorization header for a scope, as long as it is good."""
        grant = self._grants.get(scope)
        return grant.header if grant is not None and self._clock() < grant.expires else None

    def keep(self, scope: str, header: str, *, life_s: float = float("inf")) -> None:
        """Remember a header for a scope."""
        self._grants[scope] = _Grant(header, self._clock() + life_s)

    def asking(self, scope: str) -> threading.Lock:
        """Held while a token for `scope` is fetched: whoever else needs it waits for that one token."""
        with self._guard:
            return self._asking.setdefault(scope, threading.Lock())


class RegistryAuth(httpx.Auth):
    """Authorises requests for one scope, such as `repository:library/redis:pull`."""

    def __init__(self, host: HostAuth, scope: str) -> None:
        self._host = host
        self._scope = scope

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Send with what is known; on a 401 answer the challenge, once.

        A 401 from another host, where a redirect led, is not answered: these credentials are not for it.

        Raises:
            Denied: the token server refuses the credentials, or is not to be trusted with them.
        """
        sent = self._host.grant(self._scope)
        if sent is not None:
            request.headers["Authorization"] = sent
        response = yield request
        if response.status_code != httpx.codes.UNAUTHORIZED or not _is_same_server(response.request.url, request.url):
            return
        header = yield from self._answer(parse(response.headers.get_list("www-authenticate")), request, sent)
        if header is not None and header != sent:
            request.headers["Authorization"] = header
            yield request

    def _answer(self, challenges: list[Challenge], request: httpx.Request, sent: str | None) -> _Flow:
        """The header that may satisfy one of the challenges; None where there is nothing to offer."""
        with self._host.asking(self._scope):
            known = self._host.grant(self._scope)
            if known is not None and known != sent:
                return known  # another request was faster
            for challenge in challenges:
                if challenge.scheme == "bearer":
                    return (yield from self._token(challenge, request))
                if challenge.scheme == "basic" and self._host.credentials is not None:
                    header = self._host.credentials.basic()
                    self._host.keep(self._scope, header)
                    return header
        return None

    def _token(self, challenge: Challenge, request: httpx.Request) -> _Flow:
        ask = self._token_request(challenge, request)
        response = yield ask
        if not response.is_success:
            raise from_response(f"token for {self._host.host}", response)
        # The client reads an answer once more before it sends what comes next, so this has to be httpx's own reading.
        response.stream = Bounded(cast("httpx.SyncByteStream", response.stream), _MAX_ANSWER_BYTES)
        header, life_s = _read_token(response.read(), redact(ask.url))
        self._host.keep(self._scope, header, life_s=max(life_s - _MARGIN_S, 1))
        return header

    def _token_request(self, challenge: Challenge, request: httpx.Request) -> httpx.Request:
        try:
            realm = httpx.URL(challenge.params.get("realm", ""))
        except httpx.InvalidURL as exc:
            raise InvalidInput(f"{self._host.host}: the challenge names a bad realm ({exc})") from exc
        if realm.scheme not in ("http", "https") or not realm.host:
            raise InvalidInput(f"{self._host.host}: the challenge names no token server, got realm {redact(realm)!r}")
        if request.url.scheme == "https" and realm.scheme != "https":
            raise Denied(f"{self._host.host}: its token server {redact(realm)} is not https, nothing is sent there")
        params = {"scope": challenge.params.get("scope") or self._scope}
        if challenge.params.get("service"):
            params["service"] = challenge.params["service"]
        headers = {"Accept": "application/json"}
        if self._host.credentials is not None:
            headers["Authorization"] = self._host.credentials.basic()
        return httpx.Request("GET", realm.copy_merge_params(params), headers=headers)


def _is_same_server(answered: httpx.URL, asked: httpx.URL) -> bool:
    """Whether a redirect, if there was one, stayed with the server and did not fall from https to http."""
    return answered.netloc == asked.netloc and (answered.scheme == "https" or asked.scheme != "https")


def _read_token(raw: bytes, url: str) -> tuple[str, float]:
    """The Authorization header and the seconds it is good for, from a token server's answer."""
    at = f"token from {url}"
    try:
        answer = fields.parse_object(raw, at=at)
    except InvalidInput:
        raise Unavailable(f"{at}: expected a JSON object") from None  # without the text, which may hold a token
    token = fields.optional(answer, "access_token", str, at=at) or fields.optional(answer, "token", str, at=at)
    if not token:
        raise Unavailable(f"{at}: expected token or access_token, got neither")
    if not (token.isascii() and token.isprintable()):
        raise Unavailable(f"{at}: expected a token of printable ASCII characters")
    life_s = fields.optional(answer, "expires_in", int, at=at) or _DEFAULT_LIFE_S
    return f"Bearer {token}", float(life_s)
