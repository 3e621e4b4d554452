"""Authentication to registries, driven by their challenges: anonymous, basic (RFC 7617) and bearer tokens.

`RegistryAuth` is an `httpx.Auth`: a generator of requests, which the client sends like any other request. `remotes.token`
requests the tokens, and `remotes.credentials` finds the credentials.
"""

import threading
import time
from collections.abc import Callable, Generator
from copy import copy
from dataclasses import dataclass, field, replace

import httpx

from prefect_dist.ocispec.errors import Denied
from prefect_dist.remotes.credentials import Credentials, RegistryLogin
from prefect_dist.remotes.errors import CredentialsRefused, RegistryDenied, RegistryError, from_response, redact
from prefect_dist.remotes.guard import GUARD
from prefect_dist.remotes.headers import Challenge, parse_challenges
from prefect_dist.remotes.token import Tokens, TokenServer, merge_scopes

# A token is not used in its last seconds: it could expire before the registry checks it.
_MARGIN_S = 5
# Statuses for an expired password without a challenge: 403 from Amazon ECR, perhaps 400 from its public registry. The same
# statuses may have another reason.
_MAY_BE_EXPIRED = frozenset({400, 403})
# The time after such a response in which the credential helper is not called again for the same secret.
_DOUBT_S = 300.0
_BASIC = "Basic "

_Flow = Generator[httpx.Request, httpx.Response, str | None]


@dataclass(frozen=True, slots=True)
class _TokenSource:
    """The server and the scopes of a token, needed to renew it."""

    server: TokenServer
    scopes: str


@dataclass(frozen=True, slots=True)
class _Grant:
    """An Authorization header, the time at which it expires, and the source of its token."""

    header: str = field(repr=False)
    expires: float
    source: _TokenSource | None


class HostAuth:
    """The tokens and the state of the password of one registry. Thread-safe.

    All requests with the same credentials share this object.
    """

    def __init__(self, login: RegistryLogin, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.host = login.host
        self.login = login
        self.tokens = Tokens(login)
        self.password_is_good = False  # not tried yet
        self.refused: RegistryDenied | None = None
        self._clock = clock
        self._grants: dict[str, _Grant] = {}
        self._token_locks: dict[str, threading.Lock] = {}
        self._guard, self._renewing = threading.Lock(), threading.RLock()
        self._may_renew = True
        self._doubted: Credentials | None = None
        self._doubted_until = float("-inf")

    def find_header(self, scopes: str) -> str | None:
        """Authorization header for a list of scopes; None if it is missing or expired."""
        grant = self._grants.get(scopes)
        return grant.header if grant is not None and self._clock() < grant.expires else None

    def find_token_source(self, scopes: str) -> _TokenSource | None:
        """Source of the last token for these scopes, expired or not; None without a token."""
        grant = self._grants.get(scopes)
        return grant.source if grant is not None else None

    def store_header(
        self, scopes: str, header: str, *, life_s: float = float("inf"), source: _TokenSource | None = None
    ) -> None:
        """Store a header for a list of scopes."""
        self._grants[scopes] = _Grant(header, self._clock() + life_s, source)

    def drop_header(self, scopes: str) -> None:
        """Forget a header that the registry rejected."""
        self._grants.pop(scopes, None)

    def renew(self, refused: Credentials | None) -> bool:
        """Replace rejected credentials if the source has new credentials: one call for all threads.

        Return False otherwise. Renewed credentials are renewed again only after they were accepted once: a credential helper
        may return a new secret for each call, and some registries lock accounts after several failures.

        Raises:
            Denied: the credential helper fails.
        """
        with self._renewing:
            if self.login.credentials != refused:
                return True  # another thread was faster
            if refused is None or refused.renew is None or not self._may_renew:
                return False
            renewed = refused.renew()
            if renewed is None or renewed == refused:
                return False
            self._may_renew = False
            self.login = replace(self.login, credentials=renewed)
            self.tokens = Tokens(self.login)
            self.password_is_good, self.refused = False, None
            return True

    def renew_doubted(self, doubted: Credentials) -> bool:
        """Replace credentials after a response that may mean an expired secret.

        The response may also mean something else, such as a missing permission. Therefore the helper is called at most once in
        five minutes per secret.

        Raises:
            Denied: the credential helper fails.
        """
        with self._renewing:
            if self.login.credentials != doubted:
                return True  # another thread was faster
            if not self._may_renew or (doubted == self._doubted and self._clock() < self._doubted_until):
                return False
            self._doubted, self._doubted_until = doubted, self._clock() + _DOUBT_S
            return self.renew(doubted)

    def note_accepted(self) -> None:
        """Remember that the present credentials were accepted."""
        self._may_renew = True

    def note_password(self, header: str | None, response: httpx.Response) -> None:
        """Remember that the present password was accepted, if the response to a request with this header shows that."""
        if header is None or not header.startswith(_BASIC) or not _shows_acceptance(response):
            return
        credentials = self.login.credentials
        if credentials is not None and credentials.has_password and credentials.basic() == header:
            self.password_is_good = True
            self.note_accepted()

    def token_lock(self, scopes: str) -> threading.Lock:
        """Return the lock for fetching a token for `scopes`: only one thread fetches the token."""
        with self._guard:
            return self._token_locks.setdefault(scopes, threading.Lock())


class RegistryAuth(httpx.Auth):
    """Authorises requests for some scopes of `remotes.token`, such as `RegistryAuth(host, push_scope(a), pull_scope(b))`.

    A request may be sent twice, so its body has to be bytes, or a repeatable iterable.
    """

    def __init__(self, host: HostAuth, *scopes: str) -> None:
        self._host = host
        self._scopes = merge_scopes(*scopes)

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Send the request with the known header. Answer the challenge of a 401 once, and replace an expired password once.

        The body of the 401 is read first: an unread response counts as a request in flight, and the limit of requests in flight
        could block the request for the token. A 401 from another server, after a redirect, is not answered: the credentials are
        not for the other server.

        Raises:
            Denied: the token server rejects the credentials, or would get them over plain http.
        """
        sent = yield from self._initial_header(request)
        if sent is not None:
            request.headers["Authorization"] = sent
        response = yield request
        if not is_same_server(response.request.url, request.url):
            return
        if response.status_code == httpx.codes.UNAUTHORIZED:
            response.read()
            header = yield from self._answer_challenges(
                parse_challenges(response.headers.get_list("www-authenticate")), request, sent
            )
        else:
            header = self._renewed_header(response, sent)
        if header is not None and header != sent:
            request.headers["Authorization"] = header
            response = yield request
            if is_same_server(response.request.url, request.url):
                self._host.note_password(header, response)

    def _renewed_header(self, response: httpx.Response, sent: str | None) -> str | None:
        """Header with a renewed password, if the response may mean an expired password; else None."""
        if not _may_be_expired(response):
            self._host.note_password(sent, response)
            return None
        credentials = self._host.login.credentials
        if sent is None or not sent.startswith(_BASIC) or credentials is None or not credentials.has_password:
            return None
        if sent == credentials.basic() and not self._host.renew_doubted(credentials):
            return None
        return self._store_password()

    def _store_password(self) -> str | None:
        """Return the header with the present password and use it from now on; None if there is no password."""
        credentials = self._host.login.credentials
        if credentials is None or not credentials.has_password:
            return None
        header = credentials.basic()
        self._host.store_header(self._scopes, header)
        return header

    def _initial_header(self, request: httpx.Request) -> _Flow:
        """Header of the first attempt, if one is known.

        An expired token is replaced before the request: otherwise the 401 could arrive after a whole body was sent.
        """
        if (header := self._host.find_header(self._scopes)) is not None or self._host.find_token_source(self._scopes) is None:
            return header
        with self._host.token_lock(self._scopes):
            header, source = self._host.find_header(self._scopes), self._host.find_token_source(self._scopes)
            if header is not None or source is None:
                return header  # another request was faster
            return (yield from self._fetch_token(source, request))

    def _answer_challenges(self, challenges: list[Challenge], request: httpx.Request, sent: str | None) -> _Flow:
        """Header for the first supported challenge; None without suitable credentials."""
        credentials = self._host.login.credentials
        with self._host.token_lock(self._scopes):
            known = self._host.find_header(self._scopes)
            if known is not None and known != sent:
                return known  # another request was faster
            self._host.drop_header(self._scopes)
            for challenge in challenges:
                if challenge.scheme == "bearer":
                    server = TokenServer.from_challenge(challenge, host=self._host.host)
                    # A challenge may name fewer scopes than needed (for a mount), none, or more.
                    scopes = merge_scopes(self._scopes, challenge.params.get("scope", ""))
                    return (yield from self._fetch_token(_TokenSource(server, scopes), request))
                if challenge.scheme == "basic" and credentials is not None and credentials.has_password:
                    return (yield from self._basic_header(request))
        return None

    def _basic_header(self, request: httpx.Request) -> _Flow:
        """Header with the password, once the password is known to be good; None if this request itself tried the password.

        Only one request tries the password while the rest wait: some registries lock accounts after several failures. A
        password from a credential helper may have expired, so the helper is called again.

        Raises:
            Denied: the password is rejected now, or was rejected before; every request gets the same error.
        """
        sent, is_tried = request.headers.get("Authorization"), False
        with self._host.token_lock("basic"):
            credentials = self._host.login.credentials
            if self._host.password_is_good and credentials is not None and sent == credentials.basic():
                self._host.renew(credentials)
            may_retry = True
            while may_retry and not self._host.password_is_good:
                is_tried = True
                may_retry = yield from self._try_password(request)
            header = self._store_password()
        return None if is_tried else header

    def _try_password(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, bool]:
        """Send the request with the password. Replace a rejected password if the source has a new password.

        Return True if the password is accepted or replaced. Return False if the response does not show whether the password is
        good, and the password was not replaced.

        Raises:
            Denied: the password is rejected and cannot be replaced, or is missing.
        """
        credentials = self._host.login.credentials
        if self._host.refused is not None:
            raise copy(self._host.refused)
        if credentials is None:
            raise Denied(f"{self._host.host}: no credentials for basic authentication; log in again")
        request.headers["Authorization"] = credentials.basic()
        response = yield request
        is_elsewhere = not is_same_server(response.request.url, request.url)
        if is_elsewhere or _shows_acceptance(response):
            self._host.password_is_good = True
            self._host.note_accepted()
            return True
        response.read()
        if _may_be_expired(response):
            return self._host.renew_doubted(credentials)
        if not self._host.renew(credentials):
            exchange = from_response(self._host.host, response).exchange
            self._host.refused = self._host.login.refusal(credentials, exchange)
            raise self._host.refused
        return True

    def _fetch_token(self, source: _TokenSource, request: httpx.Request) -> _Flow:
        realm = source.server.realm
        if request.url.scheme == "https" and realm.scheme != "https":
            raise Denied(
                f"{self._host.host}: expected https for its token server, got {redact(realm)}; no credentials were sent"
            )
        guard, tokens = request.extensions.get(GUARD), self._host.tokens
        try:
            token = yield from tokens.fetch_token(source.server, source.scopes, guard=guard)
        except RegistryError as exc:
            if not self._renew_for_token(exc, tokens.credentials):
                raise
            token = yield from self._host.tokens.fetch_token(source.server, source.scopes, guard=guard)
        self._host.note_accepted()
        header = f"Bearer {token.bearer}"
        self._host.store_header(self._scopes, header, life_s=max(token.life_s - _MARGIN_S, 1), source=source)
        return header

    def _renew_for_token(self, refusal: RegistryError, credentials: Credentials | None) -> bool:
        """Replace credentials after a rejection by a token server, if the source has new credentials."""
        if isinstance(refusal, CredentialsRefused):
            return self._host.renew(credentials)
        return refusal.exchange.status in _MAY_BE_EXPIRED and credentials is not None and self._host.renew_doubted(credentials)


def _may_be_expired(response: httpx.Response) -> bool:
    """Return True if a response without a challenge may mean an expired password."""
    return response.status_code in _MAY_BE_EXPIRED and "www-authenticate" not in response.headers


def _shows_acceptance(response: httpx.Response) -> bool:
    """Return True if a response proves the password of the request to be good."""
    return response.status_code != httpx.codes.UNAUTHORIZED and response.status_code not in _MAY_BE_EXPIRED


def is_same_server(answered: httpx.URL, asked: httpx.URL) -> bool:
    """Return True if the server is the same and https was not downgraded to http."""
    return answered.netloc == asked.netloc and (answered.scheme == "https" or asked.scheme != "https")
