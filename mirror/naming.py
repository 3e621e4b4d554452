"""Names of images at their targets, and of the backups of overwritten images."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from prefect_dist.mirror.selection import compile_pattern
from prefect_dist.mirror.templates import Template
from prefect_dist.ocispec import Reference
from prefect_dist.ocispec.errors import InvalidInput, quote_text
from prefect_dist.ocispec.locator_advice import find_advice
from prefect_dist.ocispec.reference import expand, find_scheme, is_registry, is_repository, require_local_archive
from prefect_dist.ocispec.schemes import ARCHIVES, BUILT_IN, LAYOUT, STORE

# The fields of a reference in regclient's templates that apply to registries.
FIELDS = ("Registry", "Repository", "Tag", "Digest", "Reference", "CommonName")
# group ::= "$" number | "${" name "}"
_GROUP = re.compile(r"\$(?:([0-9]+)|\{(\w+)\})")

_ARCHIVE_SUFFIX = re.compile(r"(?:\.tar)?(?:\.(?:tar|tgz|tbz2?|txz|gz|bz2|xz))?\Z")

What = Literal["image", "repository", "registry", "backup"]
"""Kind of a name without `.Ref`: an image, a repository, a registry with an optional path, or a backup."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rename:
    r"""A rule that replaces a path `repository[:tag]` at a target if `match` matches the whole path.

    `to` may contain groups of the expression: `$1` or `\1`, `${name}` or `\g<name>`.

    Raises:
        InvalidInput: `match` is no regular expression, or lacks a group of `to`.
    """

    match: str
    to: str

    def __post_init__(self) -> None:
        try:
            compile_pattern(self.match).sub(self._replacement, "")
        except (re.error, IndexError):
            raise InvalidInput(f"to: expected only groups of {self.match!r}, got {self.to!r}") from None

    @property
    def _replacement(self) -> str:
        r"""`to` in Python's syntax, which has `\g<name>` for `$name`."""
        return _GROUP.sub(lambda group: rf"\g<{group[1] or group[2]}>", self.to)

    def apply(self, path: str) -> str | None:
        """Return the new path, or None if `match` does not match."""
        found = compile_pattern(self.match).fullmatch(path)
        return None if found is None else found.expand(self._replacement)


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """A template for the names of images at a target, or of backups.

    `what` is the kind of a template without `.Ref`. An image is the full name. The source's tag is appended to a repository,
    and the source's repository and tag to a registry. A template with `.Ref` is the full name; the source's tag is appended
    to a result without a tag. The result for a backup is a reference if `:` or `/` occurs in the result, otherwise a tag.
    The first matching rule of `renames` applies.
    """

    template: Template
    what: What
    sync: tuple[tuple[str, str], ...] = ()
    renames: tuple[Rename, ...] = ()

    @classmethod
    def read(
        cls, text: str, *, at: str, what: What, sync: Mapping[str, str] | None = None, renames: Sequence[Rename] = ()
    ) -> Self:
        """Return the naming in a text. `sync` has the fields of `.Sync`.

        Raises:
            InvalidInput: the template is invalid, or its result is no name; the message begins with `at`.
        """
        known = {"Ref": FIELDS, "Sync": tuple(sync or ())}
        naming = cls(
            template=Template.read(text, at=at, objects=known),
            what=what,
            sync=tuple((sync or {}).items()),
            renames=tuple(renames),
        )
        if not naming.template.refers_to("Ref"):
            naming.make_name(_EXAMPLE, _EXAMPLE)
        return naming

    def make_name(self, source: Reference, target: Reference | None = None) -> Reference:
        """Return the name of an image at the target. For a backup, `target` is the reference that the run overwrites.

        Raises:
            InvalidInput: the result is no name; the message shows the image and the result.
        """
        subject = target or source
        text = self.template.render({"Ref": _fields(subject), "Sync": dict(self.sync)}).strip()
        try:
            return self._rename(self._complete(text, subject))
        except InvalidInput as exc:
            about = "" if subject is _EXAMPLE else f" for {subject}"
            made = "" if text == self.template.text else f", which gives {quote_text(text)}{about}"
            raise InvalidInput(f"{quote_text(self.template.text)}{made}: {exc}", subject=self.template.at) from exc

    def _complete(self, text: str, subject: Reference) -> Reference:
        """Return the name with the parts that the template leaves out. A layout or archive without a tag gets the source's."""
        is_whole = self.template.refers_to("Ref") and _has_tag_or_digest(text)
        if self.what != "backup" and (advice := find_advice(text)) is not None:
            raise InvalidInput(advice)
        if self.what == "backup":
            is_tag = re.search("[:/]", text) is None
            text = f"{subject.locator}:{text}" if is_tag else text
        elif self.what == "registry" and not self.template.refers_to("Ref"):
            text = text.rstrip("/")
            if text.removesuffix(":") == find_scheme(text):
                raise InvalidInput(f"expected a location after {text}")
            if find_scheme(text) in ARCHIVES and ":" not in text.partition(":")[2]:
                raise InvalidInput(f"expected a file and a name prefix, as in {text}:registry.example")
            if not subject.object and subject.scheme in BUILT_IN:
                raise InvalidInput(f"expected a source with a tag, as in {subject}:latest")
            # The images of a plug-in may have no tags. As in Docker, an image without a tag is `latest`.
            text = f"{text}/{find_repository(subject)}{subject.suffix or ':latest'}"
        elif not is_whole and (self.what != "image" or self.template.refers_to("Ref")):
            text = f"{text}{subject.suffix}"
        named = Reference.parse(expand(text))
        _require_target(named)
        if not named.scheme or named.object:
            return named
        if subject.tag is None:
            raise InvalidInput(f"expected a tag, as in {named}:latest")
        return named.with_tag(subject.tag)

    def _rename(self, reference: Reference) -> Reference:
        if reference.scheme:
            return reference
        path = f"{reference.repository}{f':{reference.tag}' if reference.tag else ''}"
        digest = f"@{reference.digest}" if reference.digest else ""
        renamed = next((new for rule in self.renames if (new := rule.apply(path)) is not None), None)
        return reference if renamed is None else Reference.parse(f"{reference.host}/{renamed}{digest}")


def find_repository(image: Reference) -> str:
    """Return the repository that an image gets below a target registry.

    An image of a registry keeps its repository. A name in the content store and the name of an image in an archive give the
    path of the name without the host. Otherwise the last component of the place is the repository, of an archive without
    its suffixes such as `.tar.gz`.

    Raises:
        InvalidInput: the last component is no valid repository.
    """
    if not image.scheme:
        return image.repository
    path, _, name = image.place.partition(":") if image.scheme in ARCHIVES else (image.place, "", "")
    if image.scheme == STORE and not _has_host(image.place):
        named = None if find_scheme(image.place) is None else Reference.parse(f"{image.place}{image.suffix}")
        found = image.place if named is None else find_repository(named)
    elif image.scheme == STORE or name:
        found = Reference.parse(expand(f"{name or image.place}:latest")).repository
    else:
        last = path.rstrip("/").rpartition("/")[2]
        found = last.rpartition(":")[2] if image.scheme not in ARCHIVES else _ARCHIVE_SUFFIX.sub("", last)
    if not is_repository(found):
        raise InvalidInput(
            f"cannot derive a repository name from the source: {quote_text(found)} is not valid (lower-case letters, digits, "
            ". _ -); use dist copy, or an entry of sync with a full target"
        )
    return found


def _has_host(name: str) -> bool:
    """Return True if a name in the content store begins with the host of a registry."""
    first, slash, _ = name.partition("/")
    return bool(slash) and is_registry(name) and (first == "localhost" or any(mark in first for mark in ".:["))


def _require_target(named: Reference) -> None:
    """Check that an image can be published under a name, without access to the place.

    Raises:
        InvalidInput: every publication under the name would fail.
    """
    if named.scheme in BUILT_IN and named.digest is not None and named.tag is None:
        raise InvalidInput(f"expected a tag, as in {named.locator}:latest; a digest alone would leave the image unlisted")
    if named.scheme == STORE and named.digest is not None:
        raise InvalidInput(f"expected a name with a tag and without a digest, as in {named.locator}:{named.tag}")
    if named.scheme == LAYOUT and named.place.startswith(("https://", "http://")):
        raise InvalidInput("a layout on a web server is read-only; write to a path or to an object store")
    require_local_archive(named)


_EXAMPLE = Reference.parse("registry.example/repository:tag")


def _fields(reference: Reference) -> dict[str, str]:
    texts: Mapping[str, str | None] = {
        "Registry": reference.host,
        "Repository": reference.repository,
        "Tag": reference.tag,
        "Digest": reference.digest,
        "Reference": str(reference),
        "CommonName": str(reference),
    }
    return {name: text or "" for name, text in texts.items()}


def _has_tag_or_digest(text: str) -> bool:
    """Return True if the last component of a text has a tag or digest."""
    return bool(re.search("[:@]", text.rpartition("/")[2]))
