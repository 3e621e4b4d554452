import copy
import json
import pickle
import socket
import ssl
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from prefect_dist.ocispec.errors import Denied, DistError, InvalidInput, NotFound, Unavailable
from prefect_dist.remotes import Exchange, RegistryError
from prefect_dist.remotes.errors import (
    ADVICE,
    RegistryDenied,
    RegistryNotFound,
    RegistryRefused,
    RegistryUnavailable,
    from_response,
    from_transport,
    redact,
    retry_after_s,
)
from tests.remotes.asking import check_message

SECRET = "hunter2hunter2"
REQUEST = httpx.Request("GET", f"https://me:{SECRET}@registry.example/v2/a/blobs/x?sig={SECRET}&n=5")
TOLD_URL = "https://registry.example/v2/a/blobs/x?sig=…&n=5"


def response(status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> httpx.Response:
    """A response whose body is not read yet, as a transport returns it."""
    return httpx.Response(status, stream=httpx.ByteStream(body), headers=headers, request=REQUEST)


def refused(status: int, document: object) -> RegistryError:
    error = from_response("it", response(status, json.dumps(document).encode()))
    check_message(error, "it: ", str(status), hides=[SECRET])
    return error


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://a.example/v2/", "https://a.example/v2/"),
        ("https://me:secret@a.example:8443/v2/?n=5&last=b/c", "https://a.example:8443/v2/?n=5&last=b/c"),
        ("https://a.example/?X-Amz-Signature=secret&scope=s:t:u,v", "https://a.example/?X-Amz-Signature=…&scope=s:t:u,v"),
        ("https://a.example/?digest=sha256:abc&mount=x&from=y/z", "https://a.example/?digest=sha256:abc&mount=x&from=y/z"),
        ("https://a.example/?secret", "https://a.example/?…"),
        ("https://a.example/?secret=", "https://a.example/?…"),
        ("https://a.example/#secret", "https://a.example/"),
        ("https://a.example/?a%0Ab=secret&from=%0A%1b[31m", "https://a.example/?a%0Ab=…&from=%0A%1B%5B31m"),
        ("https://a.example/%0A%1b", "https://a.example/%0A%1b"),
        ("https://a.example/?N=secret&Scope=secret", "https://a.example/?N=…&Scope=…"),
        ("http://[::1]:5000/", "http://[::1]:5000/"),
    ],
)
def test_redact_hides_secrets_in_urls(url: str, shown: str) -> None:
    assert redact(httpx.URL(url)) == shown


def test_a_long_url_is_cut() -> None:
    assert len(redact(httpx.URL("https://a.example/" + "x" * 10_000))) < 600
    assert len(redact(httpx.URL("https://a.example/?" + "&".join(f"k{n}=v" for n in range(5000))))) < 600


@pytest.mark.parametrize(
    ("document", "codes"),
    [
        ({"errors": [{"code": "NAME_UNKNOWN", "message": "no such thing"}]}, ("NAME_UNKNOWN: no such thing",)),
        ({"errors": [{"code": "A", "message": ""}, {"code": "B", "message": None}, {}]}, ("A", "B", "UNKNOWN")),
        ({"errors": [{"code": "A", "message": "two\r\nlines\tand  \x1b[31mred\x00\x7f\u202e"}]}, ("A: two lines and [31mred",)),
        ({"errors": [{"code": ["list"], "message": {"a": 1}}]}, ("UNKNOWN",)),
        ({"errors": []}, ()),
        ({"errors": None}, ()),
        ({"errors": "text"}, ()),
        ({"errors": {"code": "A"}}, ()),
        ({"errors": ["text"]}, ()),
        ({"details": "x"}, ()),
        ([], ()),
        ("text", ()),
        (None, ()),
    ],
)
def test_error_codes_are_part_of_the_message(document: object, codes: tuple[str, ...]) -> None:
    assert refused(400, document).exchange.codes == codes


def test_deeply_nested_error_codes_are_ignored() -> None:
    body = b'{"errors": [{"message": "m", "code": ' + b"[" * 1000 + b"]" * 1000 + b"}]}"
    assert from_response("it", response(400, body)).exchange.codes == ("UNKNOWN: m",)


def test_the_number_and_length_of_codes_are_limited() -> None:
    many = refused(400, {"errors": [{"code": "A", "message": "x" * 1000}] * 3})
    assert [len(code) for code in many.exchange.codes] == [200] * 3
    assert len(refused(400, {"errors": [{"code": "A"}] * 300}).exchange.codes) == 5


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff\x00", b"x" * 100_000, b'{"errors": [{"code": "A"'])
def test_any_error_body_gives_an_error_in_one_line(body: bytes) -> None:
    error = from_response("it", response(502, body))
    assert error.exchange.codes == ()
    check_message(error, "502 Bad Gateway", hides=[SECRET])


class Breaking(httpx.SyncByteStream):
    """A body that breaks off."""

    def __iter__(self):  # type: ignore[no-untyped-def] # noqa: ANN204 - an iterator of bytes that never comes
        raise httpx.ReadTimeout("nothing", request=REQUEST)


def test_the_status_is_reported_if_the_error_body_breaks_off() -> None:
    error = from_response("it", httpx.Response(503, stream=Breaking(), request=REQUEST))
    assert isinstance(error, RegistryUnavailable)
    closed = response(404)
    closed.close()
    assert isinstance(from_response("it", closed), RegistryNotFound)


@pytest.mark.parametrize(
    ("status", "kind", "meant"),
    [
        (400, RegistryRefused, InvalidInput),
        (401, RegistryDenied, Denied),
        (403, RegistryDenied, Denied),
        (404, RegistryNotFound, NotFound),
        (405, RegistryRefused, InvalidInput),
        (408, RegistryUnavailable, Unavailable),
        (429, RegistryUnavailable, Unavailable),
        (499, RegistryRefused, InvalidInput),
        (500, RegistryUnavailable, Unavailable),
        (507, RegistryUnavailable, Unavailable),
        (599, RegistryUnavailable, Unavailable),
    ],
)
def test_each_status_has_its_error_class(status: int, kind: type[RegistryError], meant: type[DistError]) -> None:
    error = refused(status, {})
    assert type(error) is kind
    assert isinstance(error, meant)
    assert error.retryable is (meant is Unavailable)
    assert error.exchange == Exchange(method="GET", url=TOLD_URL, status=status)


@pytest.mark.parametrize("status", [401, 403])
def test_a_denial_has_the_hint_of_its_request(status: int) -> None:
    request = httpx.Request("GET", REQUEST.url, extensions={ADVICE: "ring the bell"})
    assert "; ring the bell (GET " in str(from_response("it", httpx.Response(status, request=request)))
    assert ";" not in str(refused(status, {})).partition("(")[0]  # the request had no hint


@pytest.mark.parametrize(
    ("url", "document", "has_hint"),
    [
        ("http://localhost:5000/v2/", None, True),
        ("http://localhost:5000/v2/", {"errors": [{"code": "NAME_INVALID"}]}, False),
        ("https://localhost:5000/v2/", None, False),
    ],
)
def test_a_400_over_plain_http_suggests_https(url: str, document: object, *, has_hint: bool) -> None:
    body = httpx.ByteStream(json.dumps(document).encode())
    error = from_response("it", httpx.Response(400, stream=body, request=httpx.Request("HEAD", url)))
    assert ("set tls: enabled" in str(error)) is has_hint


@pytest.mark.parametrize(("at", "has_hint"), [("https://registry.example/b", True), ("https://storage.example/b", False)])
def test_a_denial_after_a_redirect_has_no_hint_to_log_in(at: str, *, has_hint: bool) -> None:
    before = httpx.Response(307, request=REQUEST)
    request = httpx.Request("GET", at, extensions={ADVICE: "ring the bell"})
    redirected = httpx.Response(403, request=request, history=[before])
    assert ("ring the bell" in str(from_response("it", redirected))) is has_hint


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7),
        (" 7 ", 7),
        ("0", 0),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 86400),
        ("Fri, 31 Dec 99999999999999999999 23:59:59 GMT", None),
        ("Fri, 99 Dec 1999 23:59:59 GMT", None),
        ("86401", 86400),
        ("9" * 500, 86400),
    ],
)
def test_retry_after_in_seconds_is_read(header: str, seconds: float | None) -> None:
    assert retry_after_s(response(429, headers={"Retry-After": header})) == seconds
    assert from_response("it", response(429, headers={"Retry-After": header})).exchange.retry_after_s == seconds


@pytest.mark.parametrize("zone", ["GMT", "-0000", "+0000"])
def test_retry_after_as_a_date_is_read(zone: str) -> None:
    moment = format_datetime(datetime.now(UTC) + timedelta(seconds=100)).replace("+0000", zone)
    found = retry_after_s(response(429, headers={"Retry-After": moment}))
    assert found is not None
    assert 0 < found <= 100


@pytest.mark.parametrize("kind", [RegistryNotFound, RegistryDenied, RegistryUnavailable, RegistryRefused, RegistryError])
def test_errors_survive_pickling(kind: type[RegistryError]) -> None:
    exchange = Exchange(method="GET", url=TOLD_URL, status=429, codes=("A: b",), retry_after_s=1.5)
    error = kind("it: went wrong", exchange)
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):  # noqa: S301 - our own bytes
        assert type(twin) is kind
        assert (str(twin), twin.exchange, twin.args) == ("it: went wrong", exchange, error.args)


def alert(reason: str) -> ssl.SSLError:
    """OpenSSL's error for an alert of the server."""
    error = ssl.SSLError(1, "it broke")
    error.reason = reason
    return error


def unverified(code: int) -> ssl.SSLCertVerificationError:
    """OpenSSL's error for an untrusted certificate, by X509_V_ERR_ value."""
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code = code
    return error


def failure(cause: BaseException, text: str = "") -> DistError:
    """The error for a transport error with this cause."""
    outer = httpx.ConnectError(text, request=REQUEST)
    outer.__cause__ = cause
    error = from_transport("it", outer)
    check_message(error, "it: ", TOLD_URL, hides=[SECRET])
    return error


@pytest.mark.parametrize(
    ("cause", "kind", "message"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), NotFound, "unknown host registry.example"),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), Unavailable, "Temporary failure"),
        (ConnectionRefusedError(111, "Connection refused"), Unavailable, "Connection refused"),
        (TimeoutError("timed out"), Unavailable, "timed out"),
        (ssl.SSLCertVerificationError(1, "certificate verify failed"), Denied, "certificate of registry.example"),
        (unverified(18), Denied, "add its CA with --ca-file, or skip verification with --insecure registry.example"),
        (unverified(20), Denied, "add its CA with --ca-file, or skip verification with --insecure registry.example"),
        (
            unverified(10),
            Denied,
            "install a valid certificate on the server, or skip verification with --insecure registry.example",
        ),
        (ssl.SSLError(1, "wrong version number"), Unavailable, "wrong version number"),
        (
            alert("WRONG_VERSION_NUMBER"),
            Denied,
            "use --plain-http, or set tls: disabled for this registry in a hosts file",
        ),
        (alert("TLSV13_ALERT_CERTIFICATE_REQUIRED"), Denied, "requires a client certificate"),
        (alert("SSLV3_ALERT_BAD_CERTIFICATE"), Denied, "requires a client certificate"),
        (alert("TLSV1_ALERT_UNKNOWN_CA"), Denied, "requires a client certificate"),
        (alert("TLSV1_ALERT_INTERNAL_ERROR"), Unavailable, "it broke"),
        (ValueError(""), Unavailable, "ConnectError"),
        (ValueError("two\nlines\x1b[31m"), Unavailable, "two lines[31m"),
        (ValueError("x" * 10_000), Unavailable, "xxx"),
    ],
)
def test_transport_errors_have_their_class_and_remedy(cause: BaseException, kind: type[DistError], message: str) -> None:
    error = failure(cause)
    assert isinstance(error, kind)
    assert message in str(error)


def test_a_cycle_of_causes_ends() -> None:
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    assert "two" in str(failure(one))
