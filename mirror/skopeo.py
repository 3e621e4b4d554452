"""Files of `skopeo sync --src yaml` (skopeo 1.22), as entries of a mirror.

Such a file says what is copied, and the command line where to: below a destination each repository has the last component of
its name there, as with skopeo. A destination that is a template says all of it, so
`registry.example/{{.Ref.Registry}}/{{.Ref.Repository}}` is what `--scoped` makes.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, RootModel

from prefect_dist.mirror import constraints
from prefect_dist.mirror.entry import Entry
from prefect_dist.mirror.naming import Naming
from prefect_dist.mirror.selection import Patterns, Selection, TagSet, compile_pattern
from prefect_dist.mirror.validation import Flag, LenientSection, MistakeLog, Text, valid_by
from prefect_dist.mirror.yamlfile import Document, Place
from prefect_dist.ocispec import Digest, Reference
from prefect_dist.ocispec.errors import InvalidInput
from prefect_dist.ocispec.reference import expand
from prefect_dist.remotes import Credentials, HostSettings, Origin, Tls

# flags ::= "(?" letters ")";  Go has them for all that follows, Python at the very start
_FLAGS = re.compile(r"\(\?([a-zA-Z]+)\)(.*)", re.DOTALL)


Type = Literal["repository", "image"]


class SkopeoLogin(LenientSection):
    """Who we are to a registry."""

    username: Text = Field(default="", repr=False)
    password: Text = Field(default="", repr=False)


class SkopeoRegistry(LenientSection):
    """What is copied from a registry, and how it is reached."""

    images: dict[str, list[Text] | None] = Field(default={})
    images_by_tag_regex: dict[str, Annotated[Text, valid_by(compile_pattern)]] = Field(default={}, alias="images-by-tag-regex")
    images_by_semver: dict[str, Annotated[Text, valid_by(constraints.parse)]] = Field(default={}, alias="images-by-semver")
    credentials: SkopeoLogin | None = Field(default=None, repr=False)
    tls_verify: Flag = Field(default=True, alias="tls-verify")
    cert_dir: Text | None = Field(default=None, alias="cert-dir")


class SkopeoFile(RootModel[dict[str, SkopeoRegistry]]):
    """A file of `skopeo sync`, by registry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The content of a file: entries, settings by host, credentials by registry."""

    entries: tuple[Entry, ...]
    hosts: dict[str, HostSettings]
    credentials: dict[str, Credentials] = field(repr=False)


def sources(file: SkopeoFile, document: Document, to: Sequence[str]) -> Sources:
    """Return the content of a file. Each entry has all destinations of `to`.

    Raises:
        InvalidInput: it cannot be meant so, or there is no destination.
    """
    if not to:
        raise InvalidInput(
            f"{document.path}: expected a destination beside it: a file of skopeo's does not say where images go"
        )
    mistakes = MistakeLog(document)
    making = _Making(document, to, mistakes)
    entries = tuple(entry for name, registry in file.root.items() for entry in making.entries(name, registry))
    hosts = dict[str, HostSettings]()
    for name, registry in file.root.items():
        settings = mistakes.attempt(partial(_settings, registry, (name, "cert-dir"), document))
        hosts |= {name.partition("/")[0]: settings} if settings is not None else {}
    mistakes.refuse()
    return Sources(
        entries=entries,
        hosts=hosts,
        credentials={
            name: Credentials(
                registry.credentials.username,
                registry.credentials.password,
                origin=Origin(document.where((name, "credentials")), "correct username and password there"),
            )
            for name, registry in file.root.items()
            if registry.credentials is not None
        },
    )


class _Making:
    """Makes entries."""

    def __init__(self, document: Document, to: Sequence[str], mistakes: MistakeLog) -> None:
        self._document, self._to, self._mistakes = document, to, mistakes

    def entries(self, registry: str, said: SkopeoRegistry) -> Iterator[Entry]:
        """Return the entries for one registry that have no mistakes, in the order of skopeo."""
        for text, type_, place, sets in self._select_entries(registry, said):
            entry = self._mistakes.attempt(partial(self._entry, text, type_, place, *sets))
            if entry is not None:
                yield entry

    def _select_entries(self, registry: str, said: SkopeoRegistry) -> Iterator[tuple[str, Type, Place, Sequence[TagSet]]]:
        for name, listed in said.images.items():
            place: Place = (registry, "images", name)
            if not listed:
                yield f"{registry}/{name}", "repository", place, ()
            for number, text in enumerate(listed or ()):
                separator = "@" if Digest.is_valid(text) else ":"
                yield f"{registry}/{name}{separator}{text}", "image", (*place, number), ()
        for name, regex in said.images_by_tag_regex.items():
            tags = TagSet(patterns=Patterns(allow=(_anywhere(regex),)), written=f"with {regex}")
            yield f"{registry}/{name}", "repository", (registry, "images-by-tag-regex", name), (tags,)
        for name, constraint in said.images_by_semver.items():
            place = (registry, "images-by-semver", name)
            yield f"{registry}/{name}", "repository", place, tuple(constraints.parse(constraint))

    def _entry(self, text: str, type_: Type, place: Place, *sets: TagSet) -> Entry:
        at = self._document.where(place)
        try:
            source = Reference.parse(expand(text))
        except InvalidInput as exc:
            raise InvalidInput(f"{at}: {exc}") from exc
        return Entry(
            at=at,
            source=str(source) if type_ == "image" else source.locator,
            type=type_,
            targets=tuple(_make_naming(destination, source) for destination in self._to),
            repositories=Patterns(),
            tags=Selection(sets=sets),
            platforms=None,
            rewrite_index=False,
            single=None,
            trust_lock=False,
            referrers=False,
            referrer_filters=frozenset(),
            digest_tags=False,
            backup=None,
            gate=None,
            prune=None,
        )


def _make_naming(destination: str, source: Reference) -> Naming:
    is_template = "{{" in destination
    last = source.repository.rpartition("/")[2]
    text = destination if is_template else f"{destination.rstrip('/')}/{last}"
    return Naming.read(text, at=f"destination {destination}", what="repository")


def _anywhere(regex: str) -> str:
    """Return a pattern for the whole of a tag from one that matches anywhere in it, as skopeo's do."""
    flags = _FLAGS.fullmatch(regex)
    return f"(?s:.*)(?{flags[1]}:{flags[2]})(?s:.*)" if flags else f"(?s:.*)(?:{regex})(?s:.*)"


def _settings(registry: SkopeoRegistry, place: Place, document: Document) -> HostSettings:
    """A directory of certificates is containers-certs.d(5)'s: *.crt are authorities, *.cert with its *.key is our own."""
    if registry.cert_dir is None:
        return HostSettings(tls=Tls(verify=registry.tls_verify))
    at = document.where(place)
    folder = Path(document.resolve_path(registry.cert_dir, place))
    try:
        authorities = [path.read_text() for path in sorted(folder.glob("*.crt"))]
        own = [path.read_text() + path.with_suffix(".key").read_text() for path in sorted(folder.glob("*.cert"))]
        if not folder.is_dir():
            raise InvalidInput(f"{at}: {folder}: expected a directory of certificates")
    except (OSError, UnicodeDecodeError) as exc:
        raise InvalidInput(f"{at}: {folder}: {getattr(exc, 'strerror', None) or 'expected certificates'}") from exc
    tls = Tls(verify=registry.tls_verify, ca_pem="\n".join(authorities) or None, cert_pem=own[0] if own else None)
    try:
        tls.context()
    except InvalidInput as exc:
        raise InvalidInput(f"{at}: {exc}") from None
    return HostSettings(tls=tls)
