"""References: the location of a repository, and the tag or digest of an image in it.

The grammar is containerd's, a URL without a scheme: `locator[:tag][@digest]`, with locator = `host[:port]/path`. This parser is
stricter than containerd's, so that a parsed reference is safe in a URL and in a message. Only remotes interpret the parts of a
reference. Docker's short names (`redis`) are not part of the grammar; `expand` rewrites them where people type them.
"""

import re
from dataclasses import dataclass
from typing import Self

from prefect_dist.ocispec.digest import Digest
from prefect_dist.ocispec.errors import InvalidInput, Unsupported

# reference ::= locator [ ":" tag ] [ "@" digest ] [ "?" query ]; a query or fragment is dropped, as in containerd
# locator   ::= host [ ":" port ] "/" path
# path      ::= component { "/" component };  component ::= alnum { ( "." | "_" | "__" | "-"… ) alnum }
#               (distribution-spec 1.1, "Pulling manifests", <name>)
# tag       ::= [A-Za-z0-9_] [A-Za-z0-9._-]{0,127}  (same place, <reference>)
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f:]+\])")
_PATH = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"(?:[a-z0-9]+(?:[+._-][a-z0-9]+)*:)?[A-Za-z0-9=_-]+")
_PRINTABLE = re.compile(r"[!-~]+")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_PORT = re.compile(r"[0-9]{1,5}")
_MAX_LOCATOR = 255
_MAX_PORT = 65535


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Reference:
    """A parsed reference. `locator` is `host[:port]/path`; `object` is `tag`, `tag@digest`, `@digest` or empty."""

    locator: str
    object: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the reference in `text`. `str()` of the result is `text` without its query.

        The part after `@` may be shortened, as in `redis@sha256:abcdef`. The parser accepts a short digest; `pinned_digest`
        refuses it.

        Raises:
            InvalidInput: a scheme, user information, no host, or a bad port, path, tag or character.
        """
        if not _PRINTABLE.fullmatch(text):
            raise InvalidInput(f"reference {_without_user(text)!r}: expected printable ASCII without spaces")
        if scheme := _SCHEME.match(text):
            raise InvalidInput(f"reference {_without_user(text[scheme.end() :])!r}: leave out the scheme {scheme[0]}")
        bare = re.split(r"[?#]", text, maxsplit=1)[0]
        host, slash, rest = bare.partition("/")
        if not host:
            raise InvalidInput(f"reference {_without_user(text)!r}: hostname required")
        _check_host(host, text)
        if not slash:
            raise InvalidInput(f"reference {text!r}: expected host/path, such as docker.io/library/{host}")
        path, mark, tail = _cut(rest)
        _check_path(path, host, text)
        named = tail if mark == ":" else mark + tail
        _check_object(named, text, tagged=mark == ":")
        return cls(f"{host}/{path}", named)

    @property
    def host(self) -> str:
        """`host[:port]`."""
        return self.locator.partition("/")[0]

    @property
    def repository(self) -> str:
        """The path below the host."""
        return self.locator.partition("/")[2]

    @property
    def tag(self) -> str | None:
        """The tag; None if the reference has no tag."""
        return self.object.partition("@")[0] or None

    @property
    def digest(self) -> str | None:
        """The text after `@`, possibly shortened; None if the reference has no digest."""
        return self.object.partition("@")[2] or None

    def pinned_digest(self) -> Digest | None:
        """Return the digest in the reference; None if the reference has no digest.

        Raises:
            InvalidInput: the part after `@` is not a complete digest.
            Unsupported: a digest algorithm other than sha256 and sha512.
        """
        if self.digest is None:
            return None
        try:
            return Digest.parse(self.digest)
        except (InvalidInput, Unsupported) as exc:
            raise type(exc)(f"reference {self}: {exc}") from exc

    def __str__(self) -> str:
        separator = ":" if self.object and not self.object.startswith("@") else ""
        return f"{self.locator}{separator}{self.object}"


def expand(text: str) -> str:
    """Expand a short name as Docker does: `redis` becomes `docker.io/library/redis:latest`.

    The first component is a host if it contains a dot or a port or is `localhost`. Single names on Docker Hub get `library/`. A
    name without tag and digest gets `latest`. A query is dropped. The result is not validated: pass it to `Reference.parse`.
    """
    bare = re.split(r"[?#]", text, maxsplit=1)[0]
    first, slash, rest = bare.partition("/")
    if not (slash and (first in ("", "localhost") or any(mark in first for mark in ".:[@"))):
        first, rest = "docker.io", bare
    if first in ("docker.io", "index.docker.io"):
        first, rest = "docker.io", rest if "/" in rest else f"library/{rest}"
    untagged = rest and not re.search(r"[:@]", rest)
    return f"{first}/{rest}{':latest' if untagged else ''}"


def is_tag(text: str) -> bool:
    """Return True for a valid tag."""
    return _TAG.fullmatch(text) is not None


def is_repository(text: str) -> bool:
    """Return True for a valid repository name without a host."""
    return len(text) <= _MAX_LOCATOR and _PATH.fullmatch(text) is not None


def _cut(rest: str) -> tuple[str, str, str]:
    """Return the path, the character after the path (`:`, `@` or nothing) and the rest."""
    match = re.search(r"[:@]", rest)
    if match is None:
        return rest, "", ""
    return rest[: match.start()], match[0], rest[match.end() :]


def _check_host(host: str, text: str) -> None:
    shown = _without_user(text)
    if "@" in host:
        raise InvalidInput(f"reference {shown!r}: remove the user and password; a reference has none")
    match = _HOST.match(host)
    name_end = match.end() if match else 0
    name, port = host[:name_end], host[name_end:]
    if not name or (port and not port.startswith(":")):
        raise InvalidInput(f"reference {shown!r}: bad host {host.partition(':')[0]!r}")
    if port and not (_PORT.fullmatch(port, 1) and 0 < int(port[1:]) <= _MAX_PORT):
        raise InvalidInput(f"reference {shown!r}: bad port, expected 1 to {_MAX_PORT}")


def _check_path(path: str, host: str, text: str) -> None:
    if not _PATH.fullmatch(path):
        raise InvalidInput(f"reference {text!r}: bad path {path!r}, expected lower-case letters, digits and . _ - between them")
    if len(host) + 1 + len(path) > _MAX_LOCATOR:
        raise InvalidInput(f"reference {text[:40]!r}…: host and path are longer than {_MAX_LOCATOR} characters")


def _check_object(named: str, text: str, *, tagged: bool) -> None:
    tag, at, digest = named.partition("@")
    if tagged and not is_tag(tag):
        raise InvalidInput(f"reference {text!r}: bad tag {tag[:140]!r}, expected 1 to 128 letters, digits and . _ -")
    if at and not _DIGEST.fullmatch(digest):
        raise InvalidInput(f"reference {text!r}: bad digest {digest!r} after @")


def _without_user(text: str) -> str:
    """Return the text from its last `@` on. The text before `@` may be a user and password, which no message may contain."""
    _, at, rest = text.rpartition("@")
    return f"…@{rest}" if at else text
