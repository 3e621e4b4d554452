"""Authentication against registries, driven by their challenges: anonymous, basic and bearer tokens.

`RegistryAuth` is an `httpx.Auth`, a pure generator of requests: it can be driven by hand, and whatever it asks goes through
the same client as all else. How a token is asked for is `remotes.token`'s.
"""

import threading
import time
from collections.abc import Callable, Generator
from copy import copy
from dataclasses import dataclass, field, replace

import httpx

from ocispec.errors import Denied
from remotes.challenge import Challenge, parse
from remotes.credentials import Credentials
from remotes.errors import CredentialsRefused, RegistryDenied, from_response, redact
from remotes.guard import GUARD
from remotes.login import Login
from remotes.token import Tokens, TokenServer, merge

# A token is not used in its last seconds: it would expire on the way.
_MARGIN_S = 5

_Flow = Generator[httpx.Request, httpx.Response, str | None]


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a token came from, and for which scopes: when it ends, the next one is there."""

    server: TokenServer
    scopes: str


@dataclass(frozen=True, slots=True)
class _Grant:
    header: str = field(repr=False)
    expires: float
    source: _Source | None


class HostAuth:
    """What one registry was told and gave so far; shared by all requests to it with these credentials. Thread-safe."""

    def __init__(self, login: Login, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.host = login.host
        self.login = login
        self.tokens = Tokens(login)
        self.password_is_good = False  # not tried yet
        self.refused: RegistryDenied | None = None
        self._clock = clock
        self._grants: dict[str, _Grant] = {}
        self._asking: dict[str, threading.Lock] = {}
        self._guard, self._renewing = threading.Lock(), threading.Lock()
        self._may_renew = True

    def grant(self, scopes: str) -> str | None:
        """The Authorization header for a list of scopes, as long as it is good."""
        grant = self._grants.get(scopes)
        return grant.header if grant is not None and self._clock() < grant.expires else None

    def source(self, scopes: str) -> _Source | None:
        """Where the last token for these scopes came from, be it good or not."""
        grant = self._grants.get(scopes)
        return grant.source if grant is not None else None

    def keep(self, scopes: str, header: str, *, life_s: float = float("inf"), source: _Source | None = None) -> None:
        """Remember a header for a list of scopes."""
        self._grants[scopes] = _Grant(header, self._clock() + life_s, source)

    def drop(self, scopes: str) -> None:
        """Forget a header that the registry refuses."""
        self._grants.pop(scopes, None)

    def renew(self, refused: Credentials | None) -> bool:
        """Replace credentials that were refused, if their source has others now: one call for all threads.

        Credentials that replaced others are not replaced before they were accepted once. A helper may make a new secret for
        each call, and some registries lock accounts after several failures.

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

    def note_accepted(self) -> None:
        """Remember that the present credentials were accepted."""
        self._may_renew = True

    def asking(self, scopes: str) -> threading.Lock:
        """Held while a token for `scopes` is fetched: whoever else needs it waits for that one token."""
        with self._guard:
            return self._asking.setdefault(scopes, threading.Lock())


class RegistryAuth(httpx.Auth):
    """Authorises requests for some scopes, which `remotes.token` spells: `RegistryAuth(host, to_push(name), to_pull(source))`.

    A request may be sent a second time, so its body has to be bytes, or such as can be iterated anew.
    """

    def __init__(self, host: HostAuth, *scopes: str) -> None:
        self._host = host
        self._scopes = merge(*scopes)

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Send the request with the known header; answer the challenge of a 401 once.

        The body of the 401 is read first. An unread response occupies one of the server's slots, and the thread that fetches
        the token may need that slot. A 401 from another host, where a redirect led, is not answered: these credentials are not
        for it.

        Raises:
            Denied: the token server refuses the credentials, or is not to be trusted with them.
        """
        sent = yield from self._known(request)
        if sent is not None:
            request.headers["Authorization"] = sent
        response = yield request
        if response.status_code != httpx.codes.UNAUTHORIZED or not is_same_server(response.request.url, request.url):
            return
        response.read()
        header = yield from self._answer(parse(response.headers.get_list("www-authenticate")), request, sent)
        if header is not None and header != sent:
            request.headers["Authorization"] = header
            yield request

    def _known(self, request: httpx.Request) -> _Flow:
        """The header to begin with. A token that has ended is replaced now: a 401 could come after a whole body was sent."""
        if (header := self._host.grant(self._scopes)) is not None or self._host.source(self._scopes) is None:
            return header
        with self._host.asking(self._scopes):
            header, source = self._host.grant(self._scopes), self._host.source(self._scopes)
            if header is not None or source is None:
                return header  # another request was faster
            return (yield from self._token(source, request))

    def _answer(self, challenges: list[Challenge], request: httpx.Request, sent: str | None) -> _Flow:
        """The header that may satisfy one of the challenges; None where there is nothing to offer."""
        credentials = self._host.login.credentials
        with self._host.asking(self._scopes):
            known = self._host.grant(self._scopes)
            if known is not None and known != sent:
                return known  # another request was faster
            self._host.drop(self._scopes)
            for challenge in challenges:
                if challenge.scheme == "bearer":
                    server = TokenServer.named_by(challenge, host=self._host.host)
                    # A challenge may name less than what is wanted, as for a mount, or nothing at all, or more.
                    scopes = merge(self._scopes, challenge.params.get("scope", ""))
                    return (yield from self._token(_Source(server, scopes), request))
                if challenge.scheme == "basic" and credentials is not None and credentials.has_password:
                    return (yield from self._basic(request))
        return None

    def _basic(self, request: httpx.Request) -> _Flow:
        """The header with a password that was accepted before, or that replaces one; None if this request tried it.

        Only one request tries the password while others wait: some registries lock accounts after several failures. A password
        from a credential helper may have expired, so the helper is asked for another one.

        Raises:
            Denied: the password is refused now, or was before; all requests get the same error.
        """
        sent, is_tried = request.headers.get("Authorization"), False
        with self._host.asking("basic"):
            credentials = self._host.login.credentials
            if self._host.password_is_good and credentials is not None and sent == credentials.basic():
                self._host.renew(credentials)
            while not self._host.password_is_good:
                is_tried = True
                yield from self._try_password(request)
            credentials = self._host.login.credentials
            if credentials is None or not credentials.has_password:
                return None
            header = credentials.basic()
            self._host.keep(self._scopes, header)
        return None if is_tried else header

    def _try_password(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Send the request with the password. A refused one is replaced, if its source has another."""
        credentials = self._host.login.credentials
        if self._host.refused is not None:
            raise copy(self._host.refused)
        if credentials is None:
            raise Denied(f"{self._host.host}: expected credentials, there are none")
        request.headers["Authorization"] = credentials.basic()
        response = yield request
        if response.status_code != httpx.codes.UNAUTHORIZED or not is_same_server(response.request.url, request.url):
            self._host.password_is_good = True
            self._host.note_accepted()
            return
        response.read()
        if not self._host.renew(credentials):
            exchange = from_response(self._host.host, response).exchange
            self._host.refused = self._host.login.refused(credentials, exchange)
            raise self._host.refused

    def _token(self, source: _Source, request: httpx.Request) -> _Flow:
        realm = source.server.realm
        if request.url.scheme == "https" and realm.scheme != "https":
            raise Denied(f"{self._host.host}: its token server {redact(realm)} is not https, nothing is sent there")
        guard, tokens = request.extensions.get(GUARD), self._host.tokens
        try:
            token = yield from tokens.ask(source.server, source.scopes, guard=guard)
        except CredentialsRefused:
            if not self._host.renew(tokens.credentials):
                raise
            token = yield from self._host.tokens.ask(source.server, source.scopes, guard=guard)
        self._host.note_accepted()
        header = f"Bearer {token.bearer}"
        self._host.keep(self._scopes, header, life_s=max(token.life_s - _MARGIN_S, 1), source=source)
        return header


def is_same_server(answered: httpx.URL, asked: httpx.URL) -> bool:
    """Whether a redirect, if there was one, stayed with the server and did not fall from https to http."""
    return answered.netloc == asked.netloc and (answered.scheme == "https" or asked.scheme != "https")
