"""References: the location of a repository, and the tag or digest of an image in it.

The reference of an image in a registry follows containerd's grammar, a URL without a scheme: `locator[:tag][@digest]`, with
locator = `host[:port]/path`. This parser is stricter than containerd's, so that a parsed reference is safe in a URL and in a
message. Docker's short names (`redis`) are not part of the grammar; `expand` rewrites them where people type them.

The reference of an image elsewhere begins with a scheme, such as `oci:/srv/layout:7`. The scheme selects the remote, and only
the remote interprets the rest of the locator.
"""

import posixpath
import re
import sys
from dataclasses import dataclass, replace
from typing import Self

from prefect_dist.ocispec.digest import Digest
from prefect_dist.ocispec.errors import InvalidInput, Unsupported, quote_text
from prefect_dist.ocispec.locator_advice import find_advice
from prefect_dist.ocispec.schemes import ARCHIVES, PATHS, STORE, is_scheme, list_schemes

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
_DOCKER = "docker://"
_PROTOCOL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# schemed ::= scheme ":" place [ ":" [ tag ] ] [ "@" digest ];  an empty tag ends a place whose end would be read as a tag
# The text `oci:5000/x` has no scheme: it is a registry with a port.
_SCHEMED = re.compile(r"([a-z][a-z0-9+-]*):(?!//)(?![0-9]{1,5}/)")
_TAIL = re.compile(rf"(?::({_TAG.pattern})?)?(?:@([a-z0-9]+(?:[+._-][a-z0-9]+)*:[A-Za-z0-9=_-]+))?\Z")
_MAX_PLACE = 4096
# The parts of a path that name no directory of their own: `//` and `/./`.
_IDLE_PATH = re.compile(r"/(?:\.?/)+")
# The start of a relative path that leads to a directory above, or to the same directory. A template may begin the tag.
_STEP = re.compile(r"(\.\.?)(?:/+|(?=:\{\{)|\Z)")
_URL_END = re.compile(r"(?<![:/])/+\Z")
_PORT = re.compile(r"[0-9]{1,5}")
_MAX_LOCATOR = 255
_MAX_PORT = 65535


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Reference:
    """A parsed reference.

    `locator` is `host[:port]/path` in a registry, otherwise `scheme:place`. `object` is `tag`, `tag@digest`, `@digest` or
    empty.
    """

    locator: str
    object: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the reference in `text`. `str()` of the result is `text` without its query and without `docker://`.

        The place of a layout or an archive is normalized, so that `oci:/a/./b/` and `oci:file:///a/b` are the place `oci:/a/b`.

        The part after `@` may be shortened, as in `redis@sha256:abcdef`. The parser accepts a short digest; `pinned_digest`
        refuses it.

        Raises:
            InvalidInput: an unknown scheme, user information, no host, or a bad port, path, tag or character.
        """
        if (scheme := find_scheme(text)) is not None:
            return cls._parse_schemed(text, scheme)
        if (advice := find_advice(text)) is not None:
            shown = re.split(r"[?#]", _without_user(text))[0] if "://" in text else _without_user(text)
            raise InvalidInput(f"reference {quote_text(shown[:_MAX_LOCATOR])}: {advice}")
        text = text.removeprefix(_DOCKER)
        if not _PRINTABLE.fullmatch(text):
            raise InvalidInput(f"reference {_without_user(text)!r}: expected printable ASCII without spaces")
        if protocol := _PROTOCOL.match(text):
            rest = _without_user(text[protocol.end() :])
            if protocol[1].lower() in ("http", "https"):
                raise InvalidInput(f"reference {rest!r}: leave out the scheme {protocol[0]}")
            raise InvalidInput(f"reference {rest!r}: unknown scheme {protocol[0]}; {_describe_schemes()}")
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
        return cls(sys.intern(f"{host}/{path}"), named)  # a run has thousands of tags of one repository

    @classmethod
    def _parse_schemed(cls, text: str, scheme: str) -> Self:
        """Return the reference in a text with a scheme."""
        place = text[len(scheme) + 1 :]
        shown = quote_text(re.split(r"[?#]", _without_user(text))[0] if "://" in place else text)
        if not text.isprintable() or len(place) > _MAX_PLACE:
            raise InvalidInput(f"reference {shown[:_MAX_LOCATOR]}: expected at most {_MAX_PLACE} printable characters")
        tail = _TAIL.search(text, len(scheme) + 1)
        found = text if tail is None else text[: tail.start()]
        tag, digest = (None, None) if tail is None else tail.groups()
        if not found[len(scheme) + 1 :]:
            what = "a name (dist names lists the names in the store)" if scheme == STORE else "a location"
            raise InvalidInput(f"reference {shown}: expected {what} after {scheme}:")
        urls = place.split("://")[1:]  # fsspec accepts chains of URLs, such as simplecache::s3://bucket
        if fault := next((fault for url in urls if (fault := _find_fault(url))), None):
            raise InvalidInput(f"reference {shown}: {fault}")
        if scheme in PATHS:
            found = f"{scheme}:{_normalize_place(found[len(scheme) + 1 :])}"
        parsed = cls(found, f"{tag or ''}{f'@{digest}' if digest else ''}")
        return cls(text) if scheme == STORE and str(parsed) != text else parsed  # a name is any text

    @property
    def scheme(self) -> str:
        """The scheme of the locator; empty for a registry."""
        match = _SCHEMED.match(self.locator)
        return match[1] if match else ""

    @property
    def place(self) -> str:
        """The locator without its scheme."""
        return self.locator[len(self.scheme) + 1 :] if self.scheme else self.locator

    @property
    def host(self) -> str:
        """`host[:port]` of the registry. A locator with a scheme has no host, and the result is the whole locator."""
        return self.locator if self.scheme else self.locator.partition("/")[0]

    @property
    def repository(self) -> str:
        """The path below the host; empty for a locator with a scheme."""
        return "" if self.scheme else self.locator.partition("/")[2]

    @property
    def suffix(self) -> str:
        """The tag and digest with their separators: `:tag`, `:tag@digest`, `@digest` or empty."""
        return f"{':' if self.object and not self.object.startswith('@') else ''}{self.object}"

    @property
    def name(self) -> str:
        """The name of the image in the content store: the text of the reference, without `store:`."""
        return str(self).removeprefix(f"{STORE}:")

    def with_tag(self, tag: str) -> Self:
        """Return the reference of a tag in the same repository."""
        return replace(self, object=tag)

    def with_digest(self, digest: Digest) -> Self:
        """Return the reference of a digest in the same repository."""
        return replace(self, object=f"@{digest}")

    def without_object(self) -> Self:
        """Return the reference of the repository."""
        return replace(self, object="")

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
        scheme = self.scheme
        end = _mark_end(self.locator, scheme) if scheme and scheme != STORE and not self.tag else ""
        return f"{self.locator}{end}{self.suffix}"


def expand(text: str) -> str:
    """Expand a short name as Docker does: `redis` becomes `docker.io/library/redis:latest`.

    The first component is a host if it contains a dot or a port or is `localhost`. Single names on Docker Hub get `library/`. A
    name without tag and digest gets `latest`. A query is dropped. A path, and a text with a scheme other than `docker://`, stay
    unchanged.
    The result is not validated: pass it to `Reference.parse`.
    """
    if find_scheme(text) is not None:
        return text
    text = text.removeprefix(_DOCKER)
    if _PROTOCOL.match(text) or find_advice(text) is not None:
        return text
    bare = re.split(r"[?#]", text, maxsplit=1)[0]
    first, slash, rest = bare.partition("/")
    if not (slash and (first in ("", "localhost") or any(mark in first for mark in ".:[@"))):
        first, rest = "docker.io", bare
    if first in ("docker.io", "index.docker.io"):
        first, rest = "docker.io", rest if "/" in rest else f"library/{rest}"
    untagged = rest and not re.search(r"[:@]", rest)
    return f"{first}/{rest}{':latest' if untagged else ''}"


def find_scheme(text: str) -> str | None:
    """Return the scheme of the remote that a text begins with; None for a registry."""
    match = _SCHEMED.match(text)
    return match[1] if match and is_scheme(match[1]) else None


def is_registry(host: str) -> bool:
    """Return True for the host of a registry, False for a locator with a scheme, see `Reference.host`."""
    return find_scheme(f"{host}/") is None  # with a slash, `registry:5000` has no scheme


def make_absolute(text: str, directory: str) -> str:
    """Return the text of a reference with an absolute path, if the text names a layout or an archive.

    A relative path starts at `directory`, a path or URL, and a path that begins with `~` starts at the home of the user. Other
    texts, such as those of registries, stay unchanged. Each `..` at the start of a path removes the last component of
    `directory`, so such a directory must have no symbolic links.
    """
    if (parts := _split_path(text)) is None:
        return text
    scheme, path, tail = parts
    if is_relative(text):
        directory = _normalize_place(directory)
        while step := _STEP.match(path):
            directory = _find_parent(directory) if step[1] == ".." else directory
            path = path[step.end() :]
        path = f"{directory.rstrip('/')}/{path}"
    found = f"{scheme}:{path if '{{' in path else _normalize_place(path)}"  # a template may have // of its own
    return f"{found}{tail or _mark_end(found, scheme)}"


def is_relative(text: str) -> bool:
    """Return True if a text names a layout or an archive by a relative path. A path that begins with `~` is absolute."""
    parts = _split_path(text)
    return parts is not None and not parts[1].startswith("/") and not _PROTOCOL.match(parts[1])


def _split_path(text: str) -> tuple[str, str, str] | None:
    """Return the scheme, the path and the end of a text that names a layout or an archive; None for other texts.

    The end is the tag and digest with their separators. The home of the user replaces `~` at the start of the path.
    """
    scheme = find_scheme(text)
    if scheme is None or scheme not in PATHS:
        return None
    place = text[len(scheme) + 1 :]
    tail = _TAIL.search(place)
    path = place if tail is None else place[: tail.start()]
    return (scheme, posixpath.expanduser(path), place[len(path) :]) if path else None


def _find_parent(directory: str) -> str:
    """Return the directory above a path or URL. The root and the bucket of a URL are their own parents."""
    parent = directory.rpartition("/")[0]
    return directory if parent.endswith(":/") else parent or "/"


def _mark_end(locator: str, scheme: str) -> str:
    """Return a colon if the end of a locator would be read as a tag, otherwise an empty text."""
    tail = _TAIL.search(locator, len(scheme) + 1)
    return ":" if tail is not None and tail[0] else ""


def require_local_archive(reference: Reference, *, subject: object = None) -> None:
    """Check that an archive is a file on the local disk. References to other places pass.

    Raises:
        InvalidInput: the place of the archive is a URL; the message begins with `subject`.
    """
    if reference.scheme in ARCHIVES and "://" in reference.place:
        remedy = "download the file, or use a layout (oci:)"
        raise InvalidInput(f"an archive is a file on the local disk, not a URL; {remedy}", subject=subject)


def remove_comment(line: str) -> str:
    """Return the reference in a line of a list, or an empty text. `#` at the start or after a space begins a comment."""
    return re.split(r"(?:^|\s)#", line, maxsplit=1)[0].strip()


def has_object(text: str) -> bool:
    """Return True if the text of a reference has a tag or a digest, before `expand` adds one."""
    if find_scheme(text) is not None:
        return bool(Reference.parse(text).object)
    text = text.removeprefix(_DOCKER)
    return any(mark in text.rpartition("/")[2] for mark in ":@")


def is_tag(text: str) -> bool:
    """Return True for a valid tag."""
    return _TAG.fullmatch(text) is not None


def is_repository(text: str) -> bool:
    """Return True for a valid repository name without a host."""
    return len(text) <= _MAX_LOCATOR and _PATH.fullmatch(text) is not None


def _normalize_place(place: str) -> str:
    """Return the place of a layout or archive in its only spelling.

    `//`, `/./` and the end `/` are removed from an absolute path. `..` stays, because the directory may be a symbolic link.
    The keys of an object store may have `//`, so a URL loses only the end `/`. A relative path stays unchanged.
    """
    place = place.removeprefix("file://") if place.startswith("file:///") else place
    if place.startswith("/"):
        return _IDLE_PATH.sub("/", f"{place}/").rstrip("/") or "/"
    return _URL_END.sub("", place) if _PROTOCOL.match(place) else place


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
        unknown = f"; {name}: is not a known scheme; {_describe_schemes()}" if _SCHEMED.match(host) else ""
        raise InvalidInput(f"reference {shown!r}: bad port, expected 1 to {_MAX_PORT}{unknown}")


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


def _find_fault(rest: str) -> str | None:
    """Return the fault of a URL without its protocol, None for a valid URL. Secrets in URLs would reach messages and logs."""
    if "@" in rest.partition("/")[0]:
        return "remove the user and password; a location has none"
    return "remove the query; a location has none" if re.search("[?#]", rest) else None


def _describe_schemes() -> str:
    names = ", ".join(f"{name}:" for name in list_schemes())
    return f"expected a registry (no scheme, or {_DOCKER}) or one of {names}"


def _without_user(text: str) -> str:
    """Return the text from its last `@` on. The text before `@` may be a user and password, which no message may contain."""
    _, at, rest = text.rpartition("@")
    return f"…@{rest}" if at else text
