"""Headers of requests, and those of answers, which are checked: lengths, digests, locations (distribution-spec 1.1)."""

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
# The Accept header for a manifest of any type, and for whatever else is there.
ANY_MANIFEST = ", ".join((*mediatypes.MANIFESTS, "*/*"))
# The answers to a HEAD that may hide something: HEAD does not exist, or (403) only the body of a GET says why.
ASK_BY_GET = frozenset({403, 405, 501})
# challenge ::= scheme [ param { "," param } ];  param ::= token "=" ( token | quoted-string )
# Blanks and commas are one class, for two neighbouring repetitions of blanks take quadratic time.
_SCHEME = re.compile(r"[\s,]*([A-Za-z][A-Za-z0-9._~+/-]*)(?=\s|,|$)")
_PARAM = re.compile(r'[\s,]*([A-Za-z0-9_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]*))')
_MAX_LENGTH_DIGITS = 19
_DIGEST_CHARS = 160  # more than any digest has: what a message shows of a bad one


@dataclass(frozen=True, slots=True)
class Challenge:
    """A challenge of WWW-Authenticate (RFC 9110, 11.6.1). The scheme and the names of parameters are in lower case."""

    scheme: str
    params: dict[str, str] = field(default_factory=dict)


def length(response: httpx.Response, name: str = "content-length") -> int | None:
    """The number of bytes in a header; None where it is absent or no number."""
    text: str = response.headers.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _MAX_LENGTH_DIGITS else None


def digest_in(response: httpx.Response, subject: str, name: str = "docker-content-digest") -> Digest | None:
    """The digest in a header; None where it is absent.

    Raises:
        InvalidInput, Unsupported: it is no digest.
    """
    text: str | None = response.headers.get(name)
    if not text:
        return None
    return Digest.parse(text[:_DIGEST_CHARS], prefix=f"{subject}: the registry answers with ")


def check_digest(response: httpx.Response, descriptor: Descriptor, subject: str) -> None:
    """Raise Corrupt where Docker-Content-Digest contradicts. One in another algorithm does not: the registry prefers that."""
    found = digest_in(response, subject)
    if found is not None and found.algorithm == descriptor.digest.algorithm and found != descriptor.digest:
        raise Corrupt(f"{subject}: expected {descriptor.digest}, the registry has {found}")


def uploaded_bytes(response: httpx.Response) -> int | None:
    """Return the number of bytes of an upload that the registry has; None if it does not report it.

    `0-0` counts as no byte. It could also be one byte, but a registry that has none cannot report that in another way.
    """
    match = _UPLOADED.fullmatch(response.headers.get("range", ""))
    last = int(match[1]) if match else None
    return None if last is None else last + 1 if last else 0


def location(response: httpx.Response, subject: str) -> httpx.URL | None:
    """The URL that Location names, relative to what was asked; None where it is absent.

    Raises:
        Unavailable: it is no URL that HTTP can ask.
        Unsupported: the registry speaks https, and names itself by http.
    """
    text: str | None = response.headers.get("location")
    return None if text is None else _join_url(response, text, "Location", subject)


def next_page(response: httpx.Response, subject: str) -> httpx.URL | None:
    """The URL that Link (RFC 8288) names as rel="next", relative to what was asked; None where there is none.

    Raises:
        Unavailable: it is no URL that HTTP can ask.
        Unsupported: the registry speaks https, and names itself by http.
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
    except (httpx.InvalidURL, ValueError) as exc:  # of urllib.parse, about brackets in the host
        raise Unavailable(f"{subject}: the registry names a bad {header} ({one_line(str(exc))})") from exc
    if url.scheme not in ("http", "https") or not url.host:
        raise Unavailable(f"{subject}: the registry names a bad {header}, expected a URL of http or https")
    _refuse_downgrade(response.request.url, url, header, subject)
    return url


def _refuse_downgrade(asked: httpx.URL, named: httpx.URL, header: str, subject: str) -> None:
    """Raise Unsupported if a registry names itself by http although it speaks https: it does not know of the proxy with TLS."""
    if asked.scheme != "https" or named.scheme != "http" or named.host != asked.host or named.port not in (None, asked.port):
        return
    here = f"https://{asked.netloc.decode('ascii')}"
    raise Unsupported(
        f"{subject}: the registry at {here} names itself by http in {header}, nothing is sent there; have the proxy in front of"
        f" it set X-Forwarded-Proto to https, or set the registry's own address (http.host of the CNCF registry) to {here}"
    )
