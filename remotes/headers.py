"""Header values of requests, and checked header values of responses: lengths, digests, locations, links, challenges.

Follows distribution-spec 1.1, RFC 9110 and RFC 8288. A registry may send any text in a header, so each function defines its
result for an invalid value.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import httpx

from prefect_dist.ocispec import Descriptor, Digest, mediatypes
from prefect_dist.ocispec.errors import Corrupt, Unavailable, Unsupported
from prefect_dist.remotes.errors import one_line

# range ::= [ "bytes=" ] "0-" end  (distribution-spec 1.1, "Pushing a blob in chunks"; with a unit in the API of Docker)
_UPLOADED = re.compile(r"(?:bytes[= ])?0-(\d{1,18})")
# media-type ::= restricted-name "/" restricted-name, each of at most 127 characters  (RFC 6838, 4.2)
MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}")
# The Accept header for a manifest of any type, and for any other document.
ANY_MANIFEST = ", ".join((*mediatypes.MANIFESTS, "*/*"))
# Statuses of a HEAD after which a GET follows: the registry has no HEAD (405, 501), or only the body of a GET has the reason of
# the refusal (403).
ASK_BY_GET = frozenset({403, 405, 501})
# challenge ::= scheme [ param { "," param } ];  param ::= token "=" ( token | quoted-string )
# Blanks and commas share one character class: two adjacent repetitions of blanks would take quadratic time.
_SCHEME = re.compile(r"[\s,]*([A-Za-z][A-Za-z0-9._~+/-]*)(?=\s|,|$)")
_PARAM = re.compile(r'[\s,]*([A-Za-z0-9_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]*))')
_MAX_LENGTH_DIGITS = 19
_DIGEST_CHARS = 160  # longer than any digest: the part of an invalid digest that a message shows


@dataclass(frozen=True, slots=True)
class Challenge:
    """A challenge of WWW-Authenticate (RFC 9110, 11.6.1). The scheme and the parameter names are in lower case."""

    scheme: str
    params: dict[str, str] = field(default_factory=dict)


def length(response: httpx.Response, name: str = "content-length") -> int | None:
    """Number of bytes in a header; None if the header is absent or not a number."""
    text: str = response.headers.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _MAX_LENGTH_DIGITS else None


def digest_in(response: httpx.Response, subject: str, name: str = "docker-content-digest") -> Digest | None:
    """Digest in a header; None if the header is absent.

    Raises:
        InvalidInput, Unsupported: the value is not a digest.
    """
    text: str | None = response.headers.get(name)
    if not text:
        return None
    return Digest.parse(text[:_DIGEST_CHARS], prefix=f"{subject}: the registry sent ")


def check_digest(response: httpx.Response, descriptor: Descriptor, subject: str) -> None:
    """Raise Corrupt if Docker-Content-Digest differs from the digest of the descriptor.

    A digest in another algorithm is ignored: a registry may prefer another algorithm than the client.
    """
    found = digest_in(response, subject)
    if found is not None and found.algorithm == descriptor.digest.algorithm and found != descriptor.digest:
        raise Corrupt(f"expected {descriptor.digest}, the registry reports {found}", subject=subject)


def uploaded_bytes(response: httpx.Response) -> int | None:
    """Return the number of bytes of an upload at the registry; None if the registry does not report the number.

    `0-0` counts as no byte. The value could also mean a single byte, but a registry with no byte has no other way to report
    zero.
    """
    match = _UPLOADED.fullmatch(response.headers.get("range", ""))
    last = int(match[1]) if match else None
    return None if last is None else last + 1 if last else 0


def location(response: httpx.Response, subject: str) -> httpx.URL | None:
    """URL in Location, relative to the request; None if the header is absent.

    Raises:
        Unavailable: the value is not an http or https URL.
        Unsupported: the registry uses https, and refers to itself by http.
    """
    text: str | None = response.headers.get("location")
    return None if text is None else _join_url(response, text, "Location", subject)


def next_page(response: httpx.Response, subject: str) -> httpx.URL | None:
    """URL that Link (RFC 8288) names as rel="next", relative to the request; None if there is no such link.

    Raises:
        Unavailable: the value is not an http or https URL.
        Unsupported: the registry uses https, and refers to itself by http.
    """
    text = response.links.get("next", {}).get("url")
    return None if text is None else _join_url(response, text, "Link", subject)


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """Return all challenges in the values of WWW-Authenticate headers. Malformed parts are skipped."""
    return [challenge for header in headers for challenge in _parse_challenges(header)]


def _parse_challenges(header: str) -> list[Challenge]:
    found: list[Challenge] = []
    position = 0
    while match := _SCHEME.match(header, position):
        challenge = Challenge(match[1].lower())
        position = match.end()
        while param := _PARAM.match(header, position):
            challenge.params[param[1].lower()] = re.sub(r"\\(.)", r"\1", param[2]) if param[2] is not None else param[3]
            position = param.end()
        found.append(challenge)
    return found


def _join_url(response: httpx.Response, text: str, header: str, subject: str) -> httpx.URL:
    try:
        url = response.request.url.join(text)
    except (httpx.InvalidURL, ValueError) as exc:  # urllib.parse raises ValueError for brackets in the host
        raise Unavailable(f"the registry sent an invalid {header} ({one_line(str(exc))})", subject=subject) from exc
    if url.scheme not in ("http", "https") or not url.host:
        raise Unavailable(f"the registry sent an invalid {header}, expected an http or https URL", subject=subject)
    _refuse_downgrade(response.request.url, url, header, subject)
    return url


def _refuse_downgrade(asked: httpx.URL, named: httpx.URL, header: str, subject: str) -> None:
    """Raise Unsupported if a registry that uses https refers to itself by http.

    Such a registry is behind a proxy that terminates TLS, and does not know about the proxy.
    """
    if asked.scheme != "https" or named.scheme != "http" or named.host != asked.host or named.port not in (None, asked.port):
        return
    here = f"https://{asked.netloc.decode('ascii')}"
    raise Unsupported(
        f"the registry at {here} refers to itself by http in {header}, which is not followed; let the proxy in front"
        f" of it set X-Forwarded-Proto to https, or set the registry's external URL (http.host of the CNCF registry) to {here}",
        subject=subject,
    )
