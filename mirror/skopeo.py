"""Converts files of `skopeo sync --src yaml` (skopeo 1.22) into the configuration of a mirror.

Such a file lists images, and skopeo's command line names the destination. As with skopeo, the name of an image below the
destination is the last component of its repository. A destination that is a template is the full name:
`registry.example/{{.Ref.Registry}}/{{.Ref.Repository}}` gives the names of `--scoped`.
"""

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, RootModel

from prefect_dist.mirror import constraints
from prefect_dist.mirror.config import Mirror, Parser, parse_mirror, stem_of
from prefect_dist.mirror.entry import Entry
from prefect_dist.mirror.naming import Naming
from prefect_dist.mirror.selection import Patterns, Selection, TagSet, compile_pattern
from prefect_dist.mirror.validation import Flag, LenientSection, MistakeLog, Text, located, valid_by, validate
from prefect_dist.mirror.yamlfile import Document, Place
from prefect_dist.ocispec import Digest, Reference
from prefect_dist.ocispec.errors import InvalidInput
from prefect_dist.ocispec.reference import expand
from prefect_dist.remotes import Credentials, Hosts, HostSettings, Origin, Tls

# flags ::= "(?" letters ")"; Go's flags apply to the rest of the expression, Python's must be at its start
_FLAGS = re.compile(r"\(\?([a-zA-Z]+)\)(.*)", re.DOTALL)

Dialect = Literal["dist", "skopeo"]


class _Selected(NamedTuple):
    """An image or a repository that a file selects."""

    text: str
    type: Literal["repository", "image"]
    place: Place
    sets: Sequence[TagSet] = ()


class SkopeoLogin(LenientSection):
    """The credentials for a registry."""

    username: Text = Field(default="", repr=False)
    password: Text = Field(default="", repr=False)


class SkopeoRegistry(LenientSection):
    """The selected images of a registry, and its connection settings."""

    images: dict[str, list[Text] | None] = Field(default={})
    images_by_tag_regex: dict[str, Annotated[Text, valid_by(compile_pattern)]] = Field(default={}, alias="images-by-tag-regex")
    images_by_semver: dict[str, Annotated[Text, valid_by(constraints.parse)]] = Field(default={}, alias="images-by-semver")
    credentials: SkopeoLogin | None = Field(default=None, repr=False)
    tls_verify: Flag = Field(default=True, alias="tls-verify")
    cert_dir: Text | None = Field(default=None, alias="cert-dir")


class SkopeoFile(RootModel[dict[str, SkopeoRegistry]]):
    """A file of `skopeo sync`: registries by `host[:port]`."""


def choose_parser(dialect: Dialect, to: Sequence[str]) -> Parser:
    """Return the function that reads a configuration in a format. `to` are the destinations for a file of skopeo.

    Raises:
        InvalidInput: skopeo's format has no destination, or another format has one.
    """
    if bool(to) != (dialect == "skopeo"):
        raise InvalidInput("destinations and the format skopeo require each other: other formats define their own targets")
    return partial(parse_skopeo, to=to) if to else parse_mirror


def parse_skopeo(document: Document, *, to: Sequence[str]) -> Mirror:
    """Return the configuration of a mirror that copies the images of a skopeo file to each destination of `to`.

    Raises:
        Mistakes: the file or a destination is invalid; each line names file, line and key of a mistake.
    """
    file, mistakes = validate(SkopeoFile, document), MistakeLog(document)
    entries: list[Entry] = []
    hosts: dict[str, HostSettings] = {}
    credentials: dict[str, Credentials] = {}
    for name, registry in file.root.items():
        for selected in _list_selected(name, registry):
            entry = mistakes.attempt(partial(_make_entry, document, to, selected))
            entries += [] if entry is None else [entry]
        settings = mistakes.attempt(partial(_settings, registry, (name, "cert-dir"), document))
        hosts |= {name.partition("/")[0]: settings} if settings is not None else {}
        if (login := registry.credentials) is not None:
            origin = Origin(document.where((name, "credentials")), "correct username and password there")
            credentials[name] = Credentials(login.username, login.password, origin=origin)
    mistakes.raise_mistakes()
    stem = stem_of(document)
    return Mirror(
        path=document.path,
        way=f"set credentials in {document.path}",
        name=stem,
        hosts=Hosts(named=hosts),
        credentials=credentials,
        entries=tuple(entries),
        lock=document.resolve_path(f"{stem}.lock.json", ()),
    )


def _list_selected(registry: str, section: SkopeoRegistry) -> Iterator[_Selected]:
    """Yield the selected images and repositories of a registry in skopeo's order."""
    for name, listed in section.images.items():
        place: Place = (registry, "images", name)
        if not listed:
            yield _Selected(f"{registry}/{name}", "repository", place)
        for number, text in enumerate(listed or ()):
            separator = "@" if Digest.is_valid(text) else ":"
            yield _Selected(f"{registry}/{name}{separator}{text}", "image", (*place, number))
    for name, regex in section.images_by_tag_regex.items():
        tags = TagSet(patterns=Patterns(allow=(_match_anywhere(regex),)), written=f"with {regex}")
        yield _Selected(f"{registry}/{name}", "repository", (registry, "images-by-tag-regex", name), (tags,))
    for name, constraint in section.images_by_semver.items():
        sets = constraints.parse(constraint)
        yield _Selected(f"{registry}/{name}", "repository", (registry, "images-by-semver", name), sets)


def _make_entry(document: Document, to: Sequence[str], selected: _Selected) -> Entry:
    at = document.where(selected.place)
    with located(at):
        source = Reference.parse(expand(selected.text))
    return Entry(
        at=at,
        source=str(source) if selected.type == "image" else source.locator,
        type=selected.type,
        targets=tuple(_make_naming(destination, source) for destination in to),
        tags=Selection(sets=tuple(selected.sets)),
    )


def _make_naming(destination: str, source: Reference) -> Naming:
    last = source.repository.rpartition("/")[2]
    text = destination if "{{" in destination else f"{destination.rstrip('/')}/{last}"
    return Naming.read(text, at=f"destination {destination}", what="repository")


def _match_anywhere(regex: str) -> str:
    """Return a pattern for a whole tag from a pattern of skopeo, which matches anywhere in the tag."""
    flags = _FLAGS.fullmatch(regex)
    return f"(?s:.*)(?{flags[1]}:{flags[2]})(?s:.*)" if flags else f"(?s:.*)(?:{regex})(?s:.*)"


def _settings(registry: SkopeoRegistry, place: Place, document: Document) -> HostSettings:
    """Return the connection settings of a registry.

    A directory of certificates has the form of containers-certs.d(5): *.crt are CAs, *.cert and *.key the client's certificate.
    """
    if registry.cert_dir is None:
        return HostSettings(tls=Tls(verify=registry.tls_verify))
    at = document.where(place)
    folder = Path(document.resolve_path(registry.cert_dir, place))
    try:
        authorities = [path.read_text() for path in sorted(folder.glob("*.crt"))]
        own = [path.read_text() + path.with_suffix(".key").read_text() for path in sorted(folder.glob("*.cert"))]
        if not folder.is_dir():
            raise InvalidInput(f"{folder}: expected a directory of certificates", subject=at)
    except (OSError, UnicodeDecodeError) as exc:
        raise InvalidInput(f"{folder}: {getattr(exc, 'strerror', None) or 'expected certificates'}", subject=at) from exc
    tls = Tls(verify=registry.tls_verify, ca_pem="\n".join(authorities) or None, cert_pem=own[0] if own else None)
    with located(at):
        tls.context()
    return HostSettings(tls=tls)
