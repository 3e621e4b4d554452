"""An httpx transport over urllib3: blobs arrive in large pieces, with few copies, in the requesting thread.

httpx's own transport passes every 64 KiB through several layers of Python; for gigabytes this costs more than hashing
(docs/dev/adr/0002). All layers above (redirects, authentication, tests) use plain httpx.
"""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any
from weakref import WeakSet

import httpx
import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    InsecureRequestWarning,
    LocationValueError,
    NewConnectionError,
    ProtocolError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)

from prefect_dist.remotes.advice import TLS_ADVICE
from prefect_dist.remotes.body import TruncatedStream
from prefect_dist.remotes.guard import GUARD, Guard
from prefect_dist.remotes.hosts import Hosts, HostSettings, Tls
from prefect_dist.remotes.proxies import Proxies
from prefect_dist.remotes.public import (
    AddressRefused,
    AddressRule,
    GuardedHTTPConnection,
    GuardedHTTPSConnection,
    Kind,
    address_kind,
    literal_address_kind,
    refuse_literal,
)

# Large enough that the cost per piece vanishes, small enough that many concurrent transfers need little memory.
PIECE_BYTES = 1024 * 1024
# Hosts, and connections per host, that are kept for reuse. urllib3 logs a warning for each connection closed above the second
# limit. The limit exceeds the requests in flight to one host (64 units of work and 8 parts of blobs). A larger limit costs
# time: urllib3 fills a queue with as many places.
_HOSTS = 64
_KEPT_PER_HOST = 256
# A proxy gets its own TLS settings: `verify=False` and the client certificate of a registry are only for the registry.
_PROXY_TLS = Tls()
# The part that is read of a body without content, such as an error or a redirect.
_MAX_OTHER_BYTES = 64 * 1024


class Urllib3Transport(httpx.BaseTransport):
    """Sends requests over pooled connections. Thread-safe.

    `read_timeout_s` is the longest wait for any bytes in either direction, not for a whole body.
    """

    def __init__(self, *, connect_timeout_s: float, read_timeout_s: float, hosts: Hosts | None = None) -> None:
        self._hosts = hosts or Hosts()
        self._connect_timeout_s, self._read_timeout_s = connect_timeout_s, read_timeout_s
        self._proxies = Proxies()
        self._pools: dict[tuple[Tls | None, httpx.URL | None, AddressRule | None], urllib3.PoolManager] = {}
        self._tls_contexts: dict[Tls, ssl.SSLContext] = {}
        self._guard = threading.Lock()
        self._connections = _Connections(read_timeout_s)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request and return after the head of the response; the body follows as the caller reads on.

        Raises:
            httpx.TransportError: no response arrived.
            InvalidInput: the configured certificates or proxies are unusable.
        """
        settings, proxy = self._hosts.settings_at(request.url), self._proxies.proxy_for(request.url)
        guard: Guard | None = request.extensions.get(GUARD)
        allowed = guard.address_rule(request.url, is_named=self._hosts.is_named(request.url)) if guard is not None else None
        if guard is not None and not guard.may_have_secrets(request.url):
            settings = settings.without_secrets()
        tls = _tls_for(request.url, settings, proxy)
        pools = self._pools_for(tls, proxy, allowed if proxy is None else None)
        request.extensions[TLS_ADVICE] = self._hosts.advice_at(request.url)
        with self._as_httpx(request):
            if guard is not None:
                guard.check(request.url)
            if allowed is not None and proxy is not None:  # the proxy resolves names and connects
                refuse_literal(request.url.host, allowed.kinds())
            answer = pools.urlopen(
                request.method,
                str(request.url),
                body=request.stream if _is_streamed(request) else request.read() or None,
                headers=_headers(request, settings),
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
        if guard is not None:
            kind = _peer_kind(answer) if proxy is None else literal_address_kind(request.url.host) or "public"
            guard.note_answer(request.url, kind)
        body = _Body(answer, partial(self._as_httpx, request))
        is_content = httpx.codes.is_success(answer.status)
        return httpx.Response(
            answer.status,
            # http.client reads header bytes as Latin-1; httpx would reject non-ASCII text
            headers=[(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers.iteritems()],
            stream=body if is_content else TruncatedStream(body, _MAX_OTHER_BYTES),
        )

    def abort(self) -> None:
        """Shut down the connections in use, and refuse new connections. The requests fail."""
        self._connections.abort()

    def close(self) -> None:
        """Close the connections that are not in use."""
        for pools in self._pools.values():
            pools.clear()

    @contextmanager
    def _as_httpx(self, request: httpx.Request) -> Iterator[None]:
        """Raise urllib3's errors as httpx's: the layers above do not depend on urllib3."""
        try:
            yield
        except AddressRefused as exc:
            raise httpx.ConnectError(str(exc), request=request) from exc
        except NewConnectionError as exc:  # before ConnectTimeoutError, its base class
            raise httpx.ConnectError(str(exc.__cause__ or exc), request=request) from exc
        except ConnectTimeoutError as exc:
            why = f"no connection within the connect timeout of {self._connect_timeout_s:g} s"
            raise httpx.ConnectTimeout(why, request=request) from exc
        except ProxyError as exc:
            raise httpx.ProxyError(str(exc.original_error), request=request) from exc
        except LocationValueError:
            raise httpx.UnsupportedProtocol("invalid URL", request=request) from None  # the error quotes the whole URL
        except SSLError as exc:
            raise httpx.ConnectError(str(exc), request=request) from exc
        except ReadTimeoutError as exc:
            why = f"no data received within the read timeout of {self._read_timeout_s:g} s"
            raise httpx.ReadTimeout(why, request=request) from exc
        except HTTPError as exc:
            if any(isinstance(arg, TimeoutError) for arg in exc.args):
                why = f"no data could be sent within the read timeout of {self._read_timeout_s:g} s"
                raise httpx.WriteTimeout(why, request=request) from exc
            raise httpx.RemoteProtocolError(str(exc), request=request) from exc

    def _pools_for(self, tls: Tls | None, proxy: httpx.URL | None, allowed: AddressRule | None) -> urllib3.PoolManager:
        """Return the pools for these settings. Requests with different settings never share a connection."""
        way = (tls, proxy, allowed)
        with self._guard:
            if way not in self._pools:
                self._pools[way] = self._new_pools(tls, proxy, allowed)
            return self._pools[way]

    def _new_pools(self, tls: Tls | None, proxy: httpx.URL | None, allowed: AddressRule | None) -> urllib3.PoolManager:
        if tls is not None and not tls.verify:
            urllib3.disable_warnings(InsecureRequestWarning)  # the user disabled verification, so no warning per connection
        how: dict[str, Any] = {
            "num_pools": _HOSTS,
            "maxsize": _KEPT_PER_HOST,
            "retries": False,
            "timeout": urllib3.Timeout(connect=self._connect_timeout_s, read=self._read_timeout_s),
            "ssl_context": None if tls is None else self._tls_context(tls),
        }
        if proxy is None:
            pools = urllib3.PoolManager(**how)
        else:
            login = f"{proxy.username}:{proxy.password}" if proxy.userinfo else None
            bare = str(proxy.copy_with(userinfo=b""))
            headers = urllib3.make_headers(proxy_basic_auth=login)
            how["proxy_ssl_context"] = self._tls_context(_PROXY_TLS) if _is_https(proxy) else None
            pools = urllib3.ProxyManager(bare, proxy_headers=headers, **how)
        pools.pool_classes_by_scheme = self._connections.pool_classes(allowed)
        return pools

    def _tls_context(self, tls: Tls) -> ssl.SSLContext:
        """Return the context for these settings. The pools share contexts: reading the CAs takes 30 to 100 ms."""
        if tls not in self._tls_contexts:
            self._tls_contexts[tls] = tls.context()
        return self._tls_contexts[tls]


def _tls_for(url: httpx.URL, settings: HostSettings, proxy: httpx.URL | None) -> Tls | None:
    """Return the TLS settings for a server, or for the proxy of a server without TLS; None if neither uses TLS."""
    if _is_https(url):
        return settings.tls
    return _PROXY_TLS if proxy is not None and _is_https(proxy) else None


def _is_https(url: httpx.URL) -> bool:
    return url.scheme == "https"


class _Connections:
    """The open connections of one transport, including connections in use: urllib3 lists only idle connections."""

    def __init__(self, read_timeout_s: float) -> None:
        self._read_timeout_s = read_timeout_s
        self._open: WeakSet[HTTPConnection] = WeakSet()
        self._guard = threading.Lock()
        self._aborted = False

    def abort(self) -> None:
        with self._guard:
            self._aborted = True
            connections = list(self._open)
        for sock in [connection.sock for connection in connections]:
            if sock is not None:
                with contextlib.suppress(OSError):  # closed meanwhile
                    # Not SSLSocket.shutdown: it frees the TLS object that a reading thread still uses.
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def pool_classes(self, allowed: AddressRule | None) -> dict[str, type[HTTPConnectionPool]]:
        """Return pool classes by scheme, with tracked connections to `allowed` addresses, or to any address."""
        if allowed is None:
            return {
                "http": self._tracking_pool(HTTPConnectionPool, HTTPConnection),
                "https": self._tracking_pool(HTTPSConnectionPool, HTTPSConnection),
            }
        only = {"rule": allowed}
        return {
            "http": self._tracking_pool(HTTPConnectionPool, type("Guarded", (GuardedHTTPConnection,), only)),
            "https": self._tracking_pool(HTTPSConnectionPool, type("Guarded", (GuardedHTTPSConnection,), only)),
        }

    def _tracking_pool(self, pool: type[HTTPConnectionPool], connection: type[HTTPConnection]) -> type[HTTPConnectionPool]:
        opened = self._note_opened

        class Watched(connection):  # type: ignore[misc, valid-type]
            def connect(self) -> None:
                try:
                    super().connect()
                except TimeoutError as exc:  # in the TLS handshake: urllib3 would report a read timeout
                    raise ConnectTimeoutError(self, "the TLS handshake timed out") from exc
                if self.proxy is None:
                    with contextlib.suppress(OSError):  # reset already
                        self.peer_kind = address_kind(self.sock.getpeername()[0])
                opened(self)

        return type(pool.__name__, (pool,), {"ConnectionCls": Watched})

    def _note_opened(self, connection: HTTPConnection) -> None:
        connection.sock.settimeout(self._read_timeout_s)  # urllib3 sets this only after sending
        with self._guard:
            self._open.add(connection)
            aborted = self._aborted
        if aborted:
            connection.close()
            raise ProtocolError("the run was stopped")


def _peer_kind(answer: urllib3.BaseHTTPResponse) -> Kind:
    """Return the kind of address from which a response came."""
    kind: Kind = getattr(answer.connection, "peer_kind", "public")
    return kind


class _Body(httpx.SyncByteStream):
    def __init__(self, answer: urllib3.BaseHTTPResponse, as_httpx: Callable[[], AbstractContextManager[None]]) -> None:
        self._answer, self._as_httpx = answer, as_httpx

    def __iter__(self) -> Iterator[bytes]:
        with self._as_httpx():
            # read1 returns the bytes that have arrived: progress is visible at once, and a broken connection loses none.
            while piece := self._answer.read1(PIECE_BYTES):
                yield piece

    def close(self) -> None:
        if self._answer.length_remaining == 0:
            self._answer.read1(1)  # no body, as after HEAD: read to its end, so that the connection is reused
        self._answer.close()


def _headers(request: httpx.Request, settings: HostSettings) -> urllib3.HTTPHeaderDict:
    """Return the headers for this server. The request is unchanged, because redirects copy it for other servers.

    Names are in title case: for a proxy, urllib3 adds Host and Accept if either is missing in this spelling.
    """
    framing = () if _is_streamed(request) else ("content-length",)  # urllib3 adds the length of bytes
    headers = urllib3.HTTPHeaderDict((k.title(), v) for k, v in request.headers.multi_items() if k not in framing)
    for name, value in settings.headers:
        headers.setdefault(name, value)
    return headers


def _is_streamed(request: httpx.Request) -> bool:
    """Return True for a body in pieces, sent while it is read; the request has a Content-Length."""
    return not isinstance(request.stream, httpx.ByteStream)
