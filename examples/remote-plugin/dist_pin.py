"""Locators `pin:NAME` for dist: a pin file gives each name a digest and the locator of a place that has the content.

A pin file is TOML:

    [redis]
    digest = "sha256:…"
    source = "docker.io/library/redis"

`source` is any locator of dist. The digest decides which image a name is, whatever the tags of the source are now. Only dist
contacts the source, with the credentials of the source. This module never sees them.
"""

import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from prefect_dist.ocispec import Descriptor, Digest, Reference
from prefect_dist.ocispec.errors import DistError, InvalidInput, NotFound
from prefect_dist.ocispec.reference import expand
from prefect_dist.remotes import PluginContext, Remote, Source

DEFAULT_FILE = "pins.toml"


@dataclass(frozen=True, slots=True)
class Pin:
    """The digest of an image, and the place that has its content."""

    digest: Digest
    source: Reference


class PinRemote(Remote):
    """The images of a pin file. The file is read once, at the first reference, so that a run sees one version of the file."""

    def __init__(self, context: PluginContext, path: Path) -> None:
        self._context, self._path = context, path

    @cached_property
    def pins(self) -> Mapping[str, Pin]:
        """The pins by name.

        Raises:
            InvalidInput: the file cannot be read, or has a mistake.
        """
        try:
            document = tomllib.loads(self._path.read_text())
        except OSError as exc:
            raise InvalidInput(f"pin file {self._path}: {exc.strerror}; set DIST_PINS to the path of the pin file") from exc
        except ValueError as exc:  # TOML or UTF-8
            raise InvalidInput(f"pin file {self._path}: {exc}") from exc
        return {name: self._parse(name, fields) for name, fields in document.items()}

    def open_source(self, reference: Reference) -> Source:
        """Return the source for the name in a reference.

        Raises:
            NotFound: the pin file does not have the name.
        """
        pin = self.pins.get(reference.place)
        if pin is None:
            known = ", ".join(sorted(self.pins)) or "no names"
            raise NotFound(f"pin file {self._path} does not have this name; it has {known}", subject=reference)
        return PinnedSource(pin, self._context.open_source(pin.source))

    def _parse(self, name: str, fields: Any) -> Pin:
        at = f"pin file {self._path}: {name}"
        if not isinstance(fields, dict) or {type(fields.get(key)) for key in ("digest", "source")} != {str}:
            raise InvalidInput(f"{at}: expected the keys digest and source with texts")
        try:
            pin = Pin(Digest.parse(fields["digest"]), Reference.parse(expand(fields["source"])))
        except DistError as exc:
            raise InvalidInput(f"{at}: {exc}") from exc
        if pin.source.scheme == self._context.scheme:
            raise InvalidInput(f"{at}: source {pin.source} is a pin; name the place of the content")
        return pin


class PinnedSource(Source):
    """The image of one pin. All content comes from the source of the pin."""

    def __init__(self, pin: Pin, source: Source) -> None:
        self._pin, self._source = pin, source

    def resolve(self, reference: Reference, *, media_type: str | None = None) -> Descriptor:
        """Return the descriptor of the pinned digest, or of the digest in the reference.

        Raises:
            InvalidInput: the reference has a tag.
            NotFound: the source does not have the digest.
        """
        if reference.tag is not None:
            raise InvalidInput("a pin has no tags; leave out the tag", subject=reference)
        digest = reference.pinned_digest() or self._pin.digest
        found = self._source.resolve(self._pin.source.with_digest(digest), media_type=media_type)
        if found.digest != digest:
            raise NotFound(f"expected {digest}, {self._pin.source} has {found.digest}", subject=reference)
        return found

    def fetch(self, descriptor: Descriptor, *, offset: int = 0) -> Iterator[bytes]:
        """Yield the bytes of `descriptor` from `offset` on. dist verifies them."""
        return self._source.fetch(descriptor, offset=offset)

    def distrust(self, descriptor: Descriptor) -> None:
        """Prefer another registry mirror of the source after wrong bytes."""
        self._source.distrust(descriptor)


def make(context: PluginContext) -> Remote:
    """Return the remote for `pin:`. `$DIST_PINS` is the path of the pin file, by default pins.toml in the working directory."""
    return PinRemote(context, Path(os.environ.get("DIST_PINS") or DEFAULT_FILE))
