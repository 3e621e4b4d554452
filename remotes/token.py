"""Bearer tokens: scopes, the requests to a token server, and the parsing of the responses.

Follows distribution's "Token Authentication Specification" (GET), "OAuth2 Token Authentication" (POST) and "Token Scope
Documentation". Keeping and renewing tokens is left to `remotes.auth`.
"""

from collections import Counter
from collections.abc import Generator
from copy import copy
from dataclasses import dataclass, field
from typing import Self, cast

import httpx

from prefect_dist.ocispec import fields
from prefect_dist.ocispec.errors import InvalidInput, Unavailable
from prefect_dist.remotes.body import TruncatedStream
from prefect_dist.remotes.credentials import Credentials, RegistryLogin
from prefect_dist.remotes.errors import ADVICE, RegistryDenied, RegistryError, from_response, redact
from prefect_dist.remotes.guard import GUARD, Guard
from prefect_dist.remotes.headers import Challenge

# "This client_id does not need to be registered […] but should be set to a meaningful value" (OAuth2 specification).
_CLIENT_ID = "prefect-dist"
# Statuses of token servers that accept only GET: GCR 404, Artifactory 401, ACR 400 (authorizer.go in containerd's
# core/remotes/docker), Docker Hub 405. A wrong secret causes the same statuses, and the GET that follows shows that.
_REFUSES_POST = frozenset({400, 401, 404, 405})
# "If omitted, this defaults to 60 seconds" (token specification, expires_in).
_DEFAULT_LIFE_S = 60.0
# A 403 may be transient, for example behind a load balancer: it is retried, but not for each of thousands of requests.
_MAX_403 = 3
_MAX_LIFE_DIGITS = 12
_MAX_ANSWER_BYTES = 1024 * 1024


def pull_scope(repository: str) -> str:
    """Return the scope for reading a repository; a mount needs it for its source repository."""
    return f"repository:{repository}:pull"


def push_scope(repository: str) -> str:
    """Return the scope for writing to a repository. Registries require reading, too."""
    return f"repository:{repository}:pull,push"


def delete_scope(repository: str) -> str:
    """Return the scope for deleting from a repository: a separate action (distribution since 2017, Keppel, IBM).

    If a registry treats a deletion as a write, its challenge names the scope.
    """
    return f"repository:{repository}:delete,pull"


def merge_scopes(*scopes: str) -> str:
    """Return one list of scopes for several lists: each resource once, with sorted actions and resources."""
    # scope ::= resourcescope { " " resourcescope };  resourcescope ::= type ":" name ":" action { "," action }
    # A name may begin with host:port. Amazon's public registry has a scope "aws", without any colon.
    found: dict[str, set[str]] = {}
    for one in " ".join(scopes).split():
        resource, colon, actions = one.rpartition(":")
        if colon:
            found.setdefault(f"{resource}:", set()).update(filter(None, actions.split(",")))
        else:
            found[one] = set()
    return " ".join(resource + ",".join(sorted(actions)) for resource, actions in sorted(found.items()))


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenServer:
    """A token server and the service of its tokens."""

    realm: httpx.URL
    service: str | None

    @classmethod
    def from_challenge(cls, challenge: Challenge, *, host: str) -> Self:
        """Return the token server in a registry's challenge.

        Raises:
            InvalidInput: the challenge has no valid realm; the message names the registry's `host`.
        """
        try:
            realm = httpx.URL(challenge.params.get("realm", ""))
        except httpx.InvalidURL as exc:
            raise InvalidInput(f"{host}: the challenge has an invalid realm ({exc})") from exc
        if realm.scheme not in ("http", "https") or not realm.host:
            raise InvalidInput(f"{host}: expected an http or https URL as realm of the challenge, got {redact(realm)!r}")
        return cls(realm=realm, service=challenge.params.get("service") or None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A bearer token, its lifetime in seconds, and a refresh token if the server sent any."""

    bearer: str = field(repr=False)
    life_s: float
    refresh: str | None = field(repr=False)


class Tokens:
    """Requests tokens for one registry, and remembers refusals. Thread-safe: each change of state is atomic."""

    def __init__(self, login: RegistryLogin) -> None:
        self._login, self.credentials = login, login.credentials
        self._refresh: dict[TokenServer, str] = {}
        self._get_only: set[TokenServer] = set()
        self._refused: dict[tuple[TokenServer, str], RegistryError] = {}
        self._forbidden: Counter[tuple[TokenServer, str]] = Counter()

    def fetch_token(
        self, server: TokenServer, scopes: str, *, guard: Guard | None = None
    ) -> Generator[httpx.Request, httpx.Response, Token]:
        """Fetch a token for a list of scopes: by POST with each secret, then by GET.

        A 401, or several 403 in a row, is remembered and raised again without a request. `guard` is the guard of the request in
        need of the token, because the registry names the token server.

        Raises:
            Denied: the server rejects the credentials, or refuses anonymous access.
            Unavailable, InvalidInput, NotFound: the server fails, or its response has no token.
        """
        if refused := self._refused.get((server, scopes)):
            raise copy(refused)
        *first, last = self._requests(server, scopes, guard)
        for request in first:
            response = _limit_body((yield request))
            if response.request is request and response.status_code not in _REFUSES_POST:
                return self._token(response, server, scopes)
            self._refresh.pop(server, None)
        token = self._token(_limit_body((yield last)), server, scopes)
        if first and last.method == "GET":
            self._get_only.add(server)
        return token

    def _requests(self, server: TokenServer, scopes: str, guard: Guard | None) -> list[httpx.Request]:
        """Return the requests to try, in this order. A refusal of the last one is final."""
        found = self._attempts(server, scopes)
        for request in found:
            request.extensions[ADVICE] = self._login.advice
            if guard is not None:
                request.extensions[GUARD] = guard.copy()
        return found

    def _attempts(self, server: TokenServer, scopes: str) -> list[httpx.Request]:
        has = self.credentials
        if has is None or server in self._get_only:
            return [_get_request(server, scopes, has)]
        refresh_tokens = dict.fromkeys((self._refresh.get(server), has.identity_token))
        forms = [{"grant_type": "refresh_token", "refresh_token": one} for one in refresh_tokens if one]
        if has.has_password:
            # Without access_type=offline: a refresh token would outlive the run, and the password is available anyway.
            forms.append({"grant_type": "password", "username": has.username, "password": has.password})
        posts = [_post_request(server, scopes, form) for form in forms]
        return [*posts, _get_request(server, scopes, has)] if has.has_password else posts

    def _token(self, response: httpx.Response, server: TokenServer, scopes: str) -> Token:
        raw = response.read()
        if not response.is_success:
            error = self._refusal(response)
            self._remember_refusal(error, server, scopes)
            raise error
        token = _parse_token(raw, redact(server.realm))
        self._forbidden.pop((server, scopes), None)
        if token.refresh:
            self._refresh[server] = token.refresh
        return token

    def _remember_refusal(self, error: RegistryError, server: TokenServer, scopes: str) -> None:
        """Remember a refusal: a 401 at once, a 403 after several without a token in between."""
        if not isinstance(error, RegistryDenied):
            return
        is_forbidden = error.exchange.status == httpx.codes.FORBIDDEN
        self._forbidden[server, scopes] += is_forbidden
        if not is_forbidden or self._forbidden[server, scopes] >= _MAX_403:
            self._refused[server, scopes] = error

    def _refusal(self, response: httpx.Response) -> RegistryError:
        error = from_response(f"token for {self._login.host}", response)
        has, exchange = self.credentials, error.exchange
        if has is None or exchange.status not in (_REFUSES_POST if exchange.method == "POST" else {401}):
            return error
        return self._login.refusal(has, exchange, by=f"{exchange.method} {exchange.url}")


def _limit_body(response: httpx.Response) -> httpx.Response:
    """Truncate the body of a response: the client reads each response to its end before the next request."""
    response.stream = TruncatedStream(cast("httpx.SyncByteStream", response.stream), _MAX_ANSWER_BYTES)
    return response


def _get_request(server: TokenServer, scopes: str, credentials: Credentials | None) -> httpx.Request:
    # "This query parameter should be specified multiple times if there is more than one scope entry" (token specification).
    params: dict[str, str | list[str]] = {"scope": scopes.split()} | ({"service": server.service} if server.service else {})
    headers = {"Accept": "application/json"} | ({"Authorization": credentials.basic()} if credentials else {})
    return httpx.Request("GET", server.realm.copy_merge_params(params), headers=headers)


def _post_request(server: TokenServer, scopes: str, grant: dict[str, str]) -> httpx.Request:
    # "This query parameter should only be specified once but may contain multiple scopes" (OAuth2 specification).
    asked = {"service": server.service, "scope": scopes, "client_id": _CLIENT_ID}
    form = grant | {name: value for name, value in asked.items() if value}
    request = httpx.Request("POST", server.realm, data=form, headers={"Accept": "application/json"})
    # httpx passes the stream on to the target of a redirect, so the stream has no secret. The transport sends the content
    # instead.
    request.stream = httpx.ByteStream(b"")
    return request


def _parse_token(raw: bytes, url: str) -> Token:
    """Parse the response of a token server. Errors omit its content, which may contain a token."""
    at = f"token from {url}"
    try:
        answer = fields.parse_object(raw, at=at)
    except InvalidInput:
        raise Unavailable(f"{at}: expected a JSON object") from None
    token = fields.optional(answer, "access_token", str, at=at) or fields.optional(answer, "token", str, at=at)
    if not token:
        raise Unavailable(f"{at}: expected token or access_token, got neither")
    if not (token.isascii() and token.isprintable()):
        raise Unavailable(f"{at}: expected a token of printable ASCII characters")
    return Token(
        bearer=token,
        life_s=_life_s(answer.get("expires_in")),
        refresh=fields.optional(answer, "refresh_token", str, at=at),
    )


def _life_s(value: object) -> float:
    """Seconds in `expires_in`: a number or, from some servers, a string; the default for any other value."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= _MAX_LIFE_DIGITS:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        return _DEFAULT_LIFE_S
    return float(value)
