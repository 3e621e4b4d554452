"""Errors of remotes: HTTP responses and transport failures converted to the error tree of `ocispec.errors`.

Each message names the subject, the request and the response in one line, and contains no secret. Error codes follow
distribution-spec 1.1, "Error Codes".
"""

import contextlib
import re
import socket
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

import httpx
import orjson

from prefect_dist.ocispec.errors import Denied, DistError, InvalidInput, NotFound, Unavailable, Unsupported
from prefect_dist.remotes.advice import OPTIONS, TLS_ADVICE, TlsAdvice
from prefect_dist.remotes.guard import GUARD
from prefect_dist.remotes.public import AddressRefused

# Query keys whose values are never secret. The value of any other key may be a signature or a token.
_SAFE_QUERY_KEYS = frozenset({"n", "last", "ns", "digest", "mount", "from", "artifactType", "scope", "service"})
# OpenSSL's names for the alerts (RFC 8446, 6.2) of a server that requires a client certificate, or rejects the one it got. The
# server may close the connection before the alert arrives.
_ABOUT_OUR_CERTIFICATE = re.compile(
    r"TLSV13_ALERT_CERTIFICATE_REQUIRED|(SSLV3|TLSV1)_ALERT_(BAD_CERTIFICATE|CERTIFICATE_(EXPIRED|REVOKED|UNKNOWN)|UNKNOWN_CA)"
)
# OpenSSL's reasons if the server answers without TLS.
_NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"})
# Values of OpenSSL's X509_V_ERR_* (openssl-verify(1)): issuer or issuer certificate not found, self-signed
# certificate, self-signed certificate in the chain, chain of one certificate.
_UNKNOWN_AUTHORITY = frozenset({2, 18, 19, 20, 21})
ADVICE = "dist.advice"
"""Extension of a request: the hint shown on an authentication failure, without secrets."""
# The length of each answer in a message about several servers.
ANSWER_CHARS = 320
_BODY_BYTES = 4096
_CODES = 5
_TEXT = 200
_URL_CHARS = 500
# A longer Retry-After counts as one day: a huge number would not fit into a date.
_LONGEST_RETRY_AFTER_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """The facts of a failed request. `url` is redacted; `codes` are the registry's error codes with their messages."""

    method: str
    url: str
    status: int
    codes: tuple[str, ...] = ()
    retry_after_s: float | None = None

    @property
    def answer(self) -> str:
        """Status and error codes, such as `404 NAME_UNKNOWN`."""
        return f"{self.status} {', '.join(self.codes)}".rstrip()


class RegistryError(DistError):
    """An error response of a registry.

    Each subclass also derives from a class of `ocispec.errors`, which tells the caller how to react.
    """

    def __init__(self, message: str, exchange: Exchange, *, subject: object = None, cause: str | None = None) -> None:
        super().__init__(message, exchange, subject=subject, cause=cause)
        self.exchange = exchange

    @property
    def message(self) -> str:
        """The message without the subject."""
        return str(self.args[0])


class RegistryNotFound(RegistryError, NotFound):
    """404: the repository, tag, manifest or blob does not exist."""


class RegistryDenied(RegistryError, Denied):
    """401 or 403: these credentials give no access."""


class CredentialsRefused(RegistryDenied):
    """The credentials are wrong or have expired."""


class RegistryUnavailable(RegistryError, Unavailable):
    """408, 429 or 5xx: a retry may succeed."""


class RegistryRefused(RegistryError, InvalidInput):
    """Any other error status: a retry gives the same answer."""


_CLASSES: dict[int, tuple[type[RegistryError], str]] = {
    401: (RegistryDenied, "authentication failed"),
    403: (RegistryDenied, "access denied"),
    404: (RegistryNotFound, "not found"),
    408: (RegistryUnavailable, "the registry timed out"),
    429: (RegistryUnavailable, "too many requests"),
}


def with_message(error: DistError, message: str, *, subject: str | None) -> DistError:
    """Return an error of the same class and about the same exchange, with another message."""
    if isinstance(error, RegistryError):
        return type(error)(message, error.exchange, subject=subject)
    return type(error)(message, subject=subject)


def from_response(subject: str, response: httpx.Response) -> RegistryError:
    """Return the error for a response with an unexpected status; reads the start of its body.

    `subject` names the requested content. The hint under `ADVICE` in the request is part of the message of a 401 or 403.
    """
    status = response.status_code
    kind, meaning = _CLASSES.get(status, (RegistryRefused, "the registry rejected the request"))
    if status >= httpx.codes.INTERNAL_SERVER_ERROR:
        kind, meaning = RegistryUnavailable, "the registry failed"
    codes = _codes(response)
    advice = response.request.extensions.get(ADVICE)
    if kind is RegistryDenied and advice and not _came_from_elsewhere(response):
        meaning = f"{meaning}; {advice}"
    elif status == httpx.codes.BAD_REQUEST and response.request.url.scheme == "http" and not codes:
        # Servers that expect TLS (Go's, nginx) answer plain http this way. The response to a HEAD has no body with details.
        meaning = f"{meaning}; the request used http: if the server expects https, {_tls_advice(response.request).https}"
    exchange = Exchange(
        method=response.request.method,
        url=redact(response.request.url),
        status=status,
        codes=codes,
        retry_after_s=retry_after_s(response),
    )
    detail = f"{status} {', '.join(codes) or response.reason_phrase}".rstrip()
    if status == httpx.codes.NOT_FOUND:  # the messages of registries name the missing object
        named = ", ".join(code.partition(":")[0] for code in codes)
        cause = f"{meaning} ({exchange.method} {_server(response.request)}: {status} {named or response.reason_phrase})"
    else:
        cause = f"{meaning} ({exchange.method} {_server(response.request)}: {detail})"
    return kind(f"{meaning} ({exchange.method} {exchange.url}: {detail})", exchange, subject=subject, cause=cause)


def _came_from_elsewhere(response: httpx.Response) -> bool:
    """Return True if a redirect led to another server, which gets no credentials."""
    return any(before.request.url.netloc != response.request.url.netloc for before in response.history)


def refuse_coding(subject: str, response: httpx.Response) -> None:
    """Raise Unsupported for a body in a content coding: the digest is that of the bytes without it."""
    coding = response.headers.get("content-encoding", "").lower()
    if coding not in ("", "identity"):
        raise Unsupported(
            f"expected no content coding, the server sent {one_line(coding)}; disable compression in the registry or its proxy",
            subject=subject,
        )


def from_transport(subject: str, exc: httpx.RequestError) -> DistError:
    """Return the error for a request without a response, or for a body that broke off."""
    kind, why, detail = _explain_transport(exc)
    request, detail = exc.request, f"{detail}; " if detail else ""
    cause = f"{why} ({detail}{request.method} {_server(request)})"
    return kind(f"{why} ({detail}{request.method} {redact(request.url)})", subject=subject, cause=cause)


def _explain_transport(exc: httpx.RequestError) -> tuple[type[DistError], str, str]:
    """Return the error class, the reason with its remedy, and a detail, which may be empty."""
    url, causes = exc.request.url, list(_cause_chain(exc))
    if isinstance(exc, httpx.ProxyError):
        why = f"{_deepest_message(exc)}; check HTTP_PROXY, HTTPS_PROXY and NO_PROXY"
        return Unavailable, f"no connection through the proxy: {why}", ""
    lookup = next((c for c in causes if isinstance(c, socket.gaierror)), None)
    if lookup is not None and lookup.errno == socket.EAI_NONAME:
        return NotFound, f"unknown host {url.host}", ""
    if any(isinstance(c, AddressRefused) for c in causes):
        return Denied, f"{_deepest_message(exc)}; {exc.request.extensions[GUARD].remedy(url)}", ""
    for cause in causes:
        if isinstance(cause, ssl.SSLError) and (known := _explain_tls_error(cause, exc.request)) is not None:
            return *known, _deepest_message(exc)
    return Unavailable, _deepest_message(exc), ""


def _server(request: httpx.Request) -> str:
    """Return the address of the server of a request, without path and user information."""
    return f"{request.url.scheme}://{request.url.netloc.decode('ascii')}/…"


def _tls_advice(request: httpx.Request) -> TlsAdvice:
    advice = request.extensions.get(TLS_ADVICE, OPTIONS)
    if not isinstance(advice, TlsAdvice):
        raise TypeError(f"{TLS_ADVICE}: expected a TlsAdvice, got {advice!r}")
    return advice.for_server(request.url.netloc.decode("ascii"))


def _explain_tls_error(error: ssl.SSLError, request: httpx.Request) -> tuple[type[DistError], str] | None:
    """Return the error class and the remedy for a TLS failure; None for an unknown failure."""
    url, advice = request.url, _tls_advice(request)
    server, reason = url.netloc.decode("ascii"), getattr(error, "reason", None) or ""
    if isinstance(error, ssl.SSLCertVerificationError):
        is_unknown = getattr(error, "verify_code", None) in _UNKNOWN_AUTHORITY  # otherwise another CA does not help
        remedy = advice.authority if is_unknown else "install a valid certificate on the server"
        return Denied, f"the certificate of {url.host} is not trusted; {remedy}, or {advice.any_certificate}"
    if _ABOUT_OUR_CERTIFICATE.fullmatch(reason):
        return Denied, f"{url.host} requires a client certificate, or rejected the one it got; {advice.certificate}"
    if reason in _NO_TLS:
        return Denied, f"{server} does not use TLS; for plain http, {advice.http}"
    return None


def retry_after_s(response: httpx.Response) -> float | None:
    """Seconds to wait according to Retry-After (RFC 9110, 10.2.3), at most a day; None if the header is absent or invalid.

    The header has a number of seconds or a date.
    """
    text = response.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdecimal():
        return min(float(text), _LONGEST_RETRY_AFTER_S)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    away_s = (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return min(max(away_s, 0.0), _LONGEST_RETRY_AFTER_S)


def redact(url: httpx.URL) -> str:
    """Return a URL for messages: one line, no user information, and query values only of keys that never hold secrets."""
    bare = url.copy_with(userinfo=b"", query=None, fragment=None)
    shown = "&".join(_redact_value(key, value) for key, value in url.params.multi_items())
    text = f"{bare}?{shown}" if shown else str(bare)
    return text if len(text) <= _URL_CHARS else f"{text[:_URL_CHARS]}…"


def _redact_value(key: str, value: str) -> str:
    if not value:
        return "…"  # a key without a value may be a token
    return f"{quote(key)}={quote(value, safe='/:,*') if key in _SAFE_QUERY_KEYS else '…'}"


def _codes(response: httpx.Response) -> tuple[str, ...]:
    """Error codes and messages in the body; empty if the body is not an error document of distribution-spec."""
    try:
        errors = orjson.loads(_start_of_body(response))["errors"]
        return tuple(_format_code(error) for error in errors[:_CODES])
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return ()


def _start_of_body(response: httpx.Response) -> bytes:
    """Start of the body, also if the body was read before; empty if the body cannot be read."""
    with contextlib.suppress(httpx.ResponseNotRead):
        return response.content[:_BODY_BYTES]
    body = b""
    try:
        for piece in response.iter_raw():
            body += piece
            if len(body) > _BODY_BYTES:
                break
    except (httpx.TransportError, httpx.StreamError):
        return b""  # the status is enough
    return body


def _format_code(error: dict[str, Any]) -> str:
    """Code and message of one error, in one line; values that are not strings are omitted."""
    code, message = (value if isinstance(value := error.get(key), str) else "" for key in ("code", "message"))
    return one_line(f"{code or 'UNKNOWN'}: {message}").rstrip(": ")


def one_line(text: str) -> str:
    """Start of a text from a server or file, in one line and without control characters."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())[:_TEXT]


def _deepest_message(exc: Exception) -> str:
    """Message of the deepest cause with a message, in one line."""
    if isinstance(exc, httpx.TimeoutException):
        return one_line(str(exc))  # names the timeout; its causes do not
    texts = [one_line(str(c.strerror if isinstance(c, OSError) and c.strerror else c)) for c in _cause_chain(exc)]
    return next((text for text in reversed(texts) if text), type(exc).__name__)


def _cause_chain(exc: BaseException) -> list[BaseException]:
    """Return an error and its causes, up to the first DistError.

    A DistError in the chain belongs to another request, whose failure was being handled.
    """
    chain: list[BaseException] = []
    at: BaseException | None = exc
    while at is not None and at not in chain and not isinstance(at, DistError):
        chain.append(at)
        reason = at.args[0] if at.args and isinstance(at.args[0], BaseException) else None
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__) or reason
    return chain
