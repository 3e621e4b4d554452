"""An httpx transport over urllib3: blobs arrive in large pieces, with few copies and in the thread that asked for them.

httpx's own transport hands every 64 KiB through several layers of Python; for gigabytes that costs more than hashing them
(docs/dev/adr/0002). Everything above - redirects, authentication, tests - sees plain httpx.
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

# Large enough that per-piece costs vanish, small enough that many transfers at once need little memory.
PIECE_BYTES = 1024 * 1024
# Hosts, and connections to each of them, that are kept for reuse. As many connections as there ever were threads are kept:
# above the limit urllib3 logs a warning for each one that it closes.
_HOSTS = 64
_KEPT_PER_HOST = 1024
# What is no content - errors, the pages of redirects - is read so far and no further.
_MAX_OTHER_BYTES = 64 * 1024


class Urllib3Transport(httpx.BaseTransport):
    """Sends requests over pooled connections. Thread-safe.

    `read_timeout_s` is the longest wait for any bytes to come or go, not for a whole body.
    """

    def __init__(self, *, connect_timeout_s: float, read_timeout_s: float, hosts: Hosts | None = None) -> None:
        self._hosts = hosts or Hosts()
        self._connect_timeout_s, self._read_timeout_s = connect_timeout_s, read_timeout_s
        self._proxies = Proxies()
        self._pools: dict[tuple[Tls, httpx.URL | None, AddressRule | None], urllib3.PoolManager] = {}
        self._tls_contexts: dict[Tls, ssl.SSLContext] = {}
        self._guard = threading.Lock()
        self._connections = _Connections(read_timeout_s)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request and return with the head of the answer; the body follows as it is read.

        Raises:
            httpx.TransportError: no answer.
            InvalidInput: certificates or proxies that are set but of no use.
        """
        settings, proxy = self._hosts.settings_at(request.url), self._proxies.proxy_for(request.url)
        guard: Guard | None = request.extensions.get(GUARD)
        allowed = guard.address_rule(request.url, is_named=self._hosts.is_named(request.url)) if guard is not None else None
        if guard is not None and not guard.may_have_secrets(request.url):
            settings = settings.without_secrets()
        pools = self._pools_for(settings.tls, proxy, allowed if proxy is None else None)
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
            # http.client reads header bytes as Latin-1; httpx by itself would refuse all but ASCII
            headers=[(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers.iteritems()],
            stream=body if is_content else TruncatedStream(body, _MAX_OTHER_BYTES),
        )

    def abort(self) -> None:
        """Break off all requests, also those that wait for an answer, and let no new one connect; they fail where they are."""
        self._connections.abort()

    def close(self) -> None:
        """Close the connections that are not in use."""
        for pools in self._pools.values():
            pools.clear()

    @contextmanager
    def _as_httpx(self, request: httpx.Request) -> Iterator[None]:
        """Raise urllib3's errors as httpx's, so that nobody above needs to know what is below."""
        try:
            yield
        except AddressRefused as exc:
            raise httpx.ConnectError(str(exc), request=request) from exc
        except NewConnectionError as exc:  # to urllib3 this is a ConnectTimeoutError, too
            raise httpx.ConnectError(str(exc.__cause__ or exc), request=request) from exc
        except ConnectTimeoutError as exc:
            told = f"no connection within the connect time-out of {self._connect_timeout_s:g} s"
            raise httpx.ConnectTimeout(told, request=request) from exc
        except ProxyError as exc:
            raise httpx.ProxyError(str(exc.original_error), request=request) from exc
        except LocationValueError:
            raise httpx.UnsupportedProtocol("no URL that can be asked", request=request) from None  # the error shows all of it
        except SSLError as exc:
            raise httpx.ConnectError(str(exc), request=request) from exc
        except ReadTimeoutError as exc:
            told = f"nothing came within the read time-out of {self._read_timeout_s:g} s"
            raise httpx.ReadTimeout(told, request=request) from exc
        except HTTPError as exc:
            if any(isinstance(arg, TimeoutError) for arg in exc.args):
                told = f"nothing could be sent within the read time-out of {self._read_timeout_s:g} s"
                raise httpx.WriteTimeout(told, request=request) from exc
            raise httpx.RemoteProtocolError(str(exc), request=request) from exc

    def _pools_for(self, tls: Tls, proxy: httpx.URL | None, allowed: AddressRule | None) -> urllib3.PoolManager:
        """The connections that are made in one way. A request never uses a connection that it may not make."""
        way = (tls, proxy, allowed)
        with self._guard:
            if way not in self._pools:
                self._pools[way] = self._new_pools(tls, proxy, allowed)
            return self._pools[way]

    def _new_pools(self, tls: Tls, proxy: httpx.URL | None, allowed: AddressRule | None) -> urllib3.PoolManager:
        if not tls.verify:
            urllib3.disable_warnings(InsecureRequestWarning)  # whoever set this for a host need not be told at each connection
        how: dict[str, Any] = {
            "num_pools": _HOSTS,
            "maxsize": _KEPT_PER_HOST,
            "retries": False,
            "timeout": urllib3.Timeout(connect=self._connect_timeout_s, read=self._read_timeout_s),
            "ssl_context": self._tls_context(tls),
        }
        if proxy is None:
            pools = urllib3.PoolManager(**how)
        else:
            login = f"{proxy.username}:{proxy.password}" if proxy.userinfo else None
            bare = str(proxy.copy_with(userinfo=b""))
            pools = urllib3.ProxyManager(bare, proxy_headers=urllib3.make_headers(proxy_basic_auth=login), **how)
        pools.pool_classes_by_scheme = self._connections.pool_classes(allowed)
        return pools

    def _tls_context(self, tls: Tls) -> ssl.SSLContext:
        """Return the context for these settings, which all pools share: reading all authorities takes 0.1 s."""
        if tls not in self._tls_contexts:
            self._tls_contexts[tls] = tls.context()
        return self._tls_contexts[tls]


class _Connections:
    """The open connections of one transport, also those in use: urllib3 lists only idle connections."""

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
                    # Not SSLSocket's own: that takes away what a reading thread still uses.
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def pool_classes(self, allowed: AddressRule | None) -> dict[str, type[HTTPConnectionPool]]:
        """Return the pool classes by scheme. Their connections are known here, and go to `allowed` addresses, or any."""
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
                except TimeoutError as exc:  # in the handshake: urllib3 would call it one of reading
                    raise ConnectTimeoutError(self, "the handshake timed out") from exc
                if self.proxy is None:
                    with contextlib.suppress(OSError):  # reset already
                        self.peer_kind = address_kind(self.sock.getpeername()[0])
                opened(self)

        return type(pool.__name__, (pool,), {"ConnectionCls": Watched})

    def _note_opened(self, connection: HTTPConnection) -> None:
        connection.sock.settimeout(self._read_timeout_s)  # urllib3 sets that when it has sent, and sends with the other
        with self._guard:
            self._open.add(connection)
            aborted = self._aborted
        if aborted:
            connection.close()
            raise ProtocolError("the transport was aborted")


def _peer_kind(answer: urllib3.BaseHTTPResponse) -> Kind:
    """The kind of address that an answer came from."""
    kind: Kind = getattr(answer.connection, "peer_kind", "public")
    return kind


class _Body(httpx.SyncByteStream):
    def __init__(self, answer: urllib3.BaseHTTPResponse, as_httpx: Callable[[], AbstractContextManager[None]]) -> None:
        self._answer, self._as_httpx = answer, as_httpx

    def __iter__(self) -> Iterator[bytes]:
        with self._as_httpx():
            # read1 returns what has arrived: progress shows at once, and a cut loses nothing that came before it.
            while piece := self._answer.read1(PIECE_BYTES):
                yield piece

    def close(self) -> None:
        if self._answer.length_remaining == 0:
            self._answer.read1(1)  # an answer without a body, as to HEAD: seen to its end, its connection is of use again
        self._answer.close()


def _headers(request: httpx.Request, settings: HostSettings) -> urllib3.HTTPHeaderDict:
    """Return the headers for this server. The request is unchanged, since redirects copy it for other servers.

    Names are in title case: for a proxy, urllib3 adds Host and Accept unless they are there, spelt like that.
    """
    framing = () if _is_streamed(request) else ("content-length",)  # of bytes, urllib3 tells the length itself
    headers = urllib3.HTTPHeaderDict((k.title(), v) for k, v in request.headers.multi_items() if k not in framing)
    for name, value in settings.headers:
        headers.setdefault(name, value)
    return headers


def _is_streamed(request: httpx.Request) -> bool:
    """Return True for a body in pieces, which is sent as it is read; such a request has a Content-Length."""
    return not isinstance(request.stream, httpx.ByteStream)
