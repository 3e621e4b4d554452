"""Names of images at their targets, and of the backups of overwritten images."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from prefect_dist.mirror.selection import compile_pattern
from prefect_dist.mirror.templates import Template
from prefect_dist.ocispec import Reference
from prefect_dist.ocispec.errors import InvalidInput, quote_text
from prefect_dist.ocispec.reference import expand

# regclient's fields of a reference, as far as there is something in them for a registry.
FIELDS = ("Registry", "Repository", "Tag", "Digest", "Reference", "CommonName")
# group ::= "$" number | "${" name "}" | "\" digit | "\g<" name ">"
_GROUP = re.compile(r"\$([0-9]+)|\$\{(\w+)\}|\\([0-9])|\\g<(\w+)>")

What = Literal["image", "repository", "registry", "backup"]
"""What a name without a template is: all of an image's, that of a repository, what comes before one, or a backup's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rename:
    r"""A replacement for paths `repository[:tag]` at a target that `match` matches in full.

    `to` names groups of the expression: `$1` or `\1`, `${name}` or `\g<name>`.

    Raises:
        InvalidInput: no such expression, or it has no such group.
    """

    match: str
    to: str

    def __post_init__(self) -> None:
        pattern = compile_pattern(self.match)
        groups = {*pattern.groupindex, *(str(number) for number in range(pattern.groups + 1))}
        for group in _GROUP.finditer(self.to):
            if _name(group) not in groups:
                raise InvalidInput(f"expected a group of {self.match!r}, got {group[0]!r}")

    def of(self, path: str) -> str | None:
        """Return the new path; None if `match` does not match."""
        found = compile_pattern(self.match).fullmatch(path)
        return None if found is None else _GROUP.sub(lambda group: _group(found, _name(group)), self.to)


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """Makes names from a template.

    A template that says nothing about `.Ref` is the name of an image, of a repository, to which the source's tag comes, or what
    comes before the source's repository and tag. One that does is the whole name; without a tag, the source's comes to it. A
    backup is called what its template gives if that has `:` or `/` in it, and otherwise has it for its tag. The first of
    `renames` that matches is applied, if any does.
    """

    template: Template
    what: What
    sync: tuple[tuple[str, str], ...] = ()
    renames: tuple[Rename, ...] = ()

    @classmethod
    def read(
        cls, text: str, *, at: str, what: What, sync: Mapping[str, str] | None = None, renames: Sequence[Rename] = ()
    ) -> Self:
        """Return the naming at a place of a configuration. `sync` has the fields of `.Sync`.

        Raises:
            InvalidInput: no such template, or what it gives is no name; the message begins with `at`.
        """
        known = {"Ref": FIELDS, "Sync": tuple(sync or ())}
        naming = cls(
            template=Template.read(text, at=at, objects=known),
            what=what,
            sync=tuple((sync or {}).items()),
            renames=tuple(renames),
        )
        if not naming.template.refers_to("Ref"):
            naming.of(_ANY, _ANY)
        return naming

    def of(self, source: Reference, target: Reference | None = None) -> Reference:
        """Return the name of an image. For a backup, `target` is the reference that is about to be overwritten.

        Raises:
            InvalidInput: what comes out is no name; the message says of what, and what came.
        """
        subject = target or source
        text = self.template.render({"Ref": _fields(subject), "Sync": dict(self.sync)}).strip()
        try:
            return self._rename(self._complete(text, subject))
        except InvalidInput as exc:
            about = "" if subject is _ANY else f" for {subject}"
            made = "" if text == self.template.text else f", which gives {quote_text(text)}{about}"
            raise InvalidInput(f"{self.template.at}: {quote_text(self.template.text)}{made}: {exc}") from exc

    def _complete(self, text: str, subject: Reference) -> Reference:
        _, separator, path = str(subject).partition("/")
        named = path[len(subject.repository) :]
        if self.what == "backup":
            whole = re.search("[:/]", text)
            return Reference.parse(expand(text) if whole else f"{subject.locator}:{text}")
        if self.what == "image" and not self.template.refers_to("Ref"):
            return Reference.parse(expand(text))
        if self.what == "registry" and not self.template.refers_to("Ref"):
            return Reference.parse(expand(f"{text.rstrip('/')}{separator}{path}"))
        if self.template.refers_to("Ref") and _is_named(text):
            return Reference.parse(expand(text))
        return Reference.parse(expand(f"{text}{named}"))

    def _rename(self, reference: Reference) -> Reference:
        path = f"{reference.repository}{f':{reference.tag}' if reference.tag else ''}"
        digest = f"@{reference.digest}" if reference.digest else ""
        renamed = next((new for one in self.renames if (new := one.of(path)) is not None), None)
        return reference if renamed is None else Reference.parse(f"{reference.host}/{renamed}{digest}")


# Stands in for every image where a name is tried out.
_ANY = Reference.parse("registry.example/repository:tag")


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


def _is_named(text: str) -> bool:
    """Return whether a text has a tag or digest in its last component."""
    return bool(re.search("[:@]", text.rpartition("/")[2]))


def _name(group: re.Match[str]) -> str:
    return next(one for one in group.groups() if one is not None)


def _group(found: re.Match[str], name: str) -> str:
    return found[int(name) if name.isdigit() else name] or ""
