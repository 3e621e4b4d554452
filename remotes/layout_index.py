"""The index of an image layout: `index.json` lists the images with their tags (image-spec 1.1, image-layout.md).

A tag is the annotation `org.opencontainers.image.ref.name` of an entry. Some tools write a full name there, such as
`docker.io/library/redis:7`, or in containerd's annotation. The tag of a full name leads to the image if no other image of the
layout has this tag.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import orjson

from prefect_dist.ocispec import Descriptor, Digest, fields, manifest
from prefect_dist.ocispec.errors import InvalidInput, NotFound, Unsupported, quote_text
from prefect_dist.ocispec.image_layout import CONTAINERD_NAME, REF_NAME, make_empty_index
from prefect_dist.ocispec.reference import is_tag
from prefect_dist.ocispec.referrers import is_cosign_tag, is_fallback_tag

# A message names at most this many images.
_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class LayoutEntry:
    """An entry of the index: the descriptor, and the name of the image; None for an entry without a name."""

    descriptor: Descriptor
    name: str | None

    @property
    def tag(self) -> str | None:
        """The tag in the name; None if the name has no tag."""
        if self.name is None or is_tag(self.name):
            return self.name
        tag = self.name.rpartition(":")[2]
        return tag if is_tag(tag) else None

    @property
    def bare(self) -> Descriptor:
        """The descriptor without annotations and platform, as a registry would return it."""
        return Descriptor(media_type=self.descriptor.media_type, digest=self.descriptor.digest, size=self.descriptor.size)


class LayoutIndex:
    """The entries of an `index.json`. `at` names the layout in errors.

    With `has_short_names`, the tag of a full name leads to its image, too.
    """

    def __init__(self, entries: Iterable[LayoutEntry], *, at: str, has_short_names: bool = False) -> None:
        self.entries, self._at = tuple(entries), at
        self._by_name: dict[str, dict[Digest, LayoutEntry]] = {}
        self._by_tag: dict[str, dict[Digest, LayoutEntry]] = {}
        for one in self.entries:
            if one.name is not None:
                self._by_name.setdefault(one.name, {}).setdefault(one.descriptor.digest, one)
            if one.tag is not None and has_short_names:
                self._by_tag.setdefault(one.tag, {}).setdefault(one.descriptor.digest, one)

    @classmethod
    def parse(cls, raw: bytes, *, at: str, has_short_names: bool = False) -> Self:
        """Return the index in a document.

        Raises:
            InvalidInput, Unsupported: the document is no valid index.
        """
        place = f"{at}: index.json"
        document = fields.parse_object(raw, at=place)
        listed = (Descriptor.from_json(one, at=where) for where, one in fields.objects(document, "manifests", at=place))
        return cls((LayoutEntry(one, _name_of(one)) for one in listed), at=at, has_short_names=has_short_names)

    def find(self, tag: str) -> Descriptor | None:
        """Return the descriptor of a tag; None if the tag does not exist.

        Raises:
            InvalidInput: several images have the tag.
        """
        found = self._find_all(tag)
        if len(found) > 1:
            names = _join([f"{quote_text(one.name or '')} ({digest})" for digest, one in found.items()])
            raise InvalidInput(f"tag {tag}: expected one image, got {names}; use the digest", subject=self._at)
        return next((one.bare for one in found.values()), None)

    def find_digest(self, digest: Digest) -> Descriptor | None:
        """Return the descriptor of the entry with a digest; None without such an entry."""
        return next((one.bare for one in self.entries if one.descriptor.digest == digest), None)

    def find_only(self, is_referrer: Callable[[Descriptor], bool]) -> Descriptor:
        """Return the descriptor of the only image.

        Content under digest tags and fallback tags is no image. Entries without a name for which `is_referrer` is true are none
        either; the function is called only if necessary.

        Raises:
            NotFound: the layout has no image.
            InvalidInput: the layout has several images.
        """
        named = [one for one in self.entries if not (one.tag and (is_fallback_tag(one.tag) or is_cosign_tag(one.tag)))]
        distinct = {one.descriptor.digest: one for one in reversed(named)}
        if len(distinct) > 1:
            distinct = {key: one for key, one in distinct.items() if one.name is not None or not is_referrer(one.bare)}
        if not distinct:
            raise NotFound("the layout has no image", subject=self._at)
        if len(distinct) > 1:
            names = _join([one.name or f"@{digest}" for digest, one in reversed(distinct.items())])
            raise InvalidInput(f"expected a tag or digest, the layout has several images: {names}", subject=self._at)
        return next(iter(distinct.values())).bare

    def tags(self) -> Iterator[str]:
        """Yield the tags that lead to one image, each once."""
        for tag in dict.fromkeys(one.tag for one in self.entries if one.tag is not None):
            if len(self._find_all(tag)) == 1:
                yield tag

    def _find_all(self, tag: str) -> Mapping[Digest, LayoutEntry]:
        return self._by_name.get(tag) or self._by_tag.get(tag, {})


def set_tag(raw: bytes | None, tag: str, descriptor: Descriptor, *, at: str) -> bytes:
    """Return an `index.json` in which `tag` leads to `descriptor`. All other entries and fields stay.

    The new entry takes the place of the old one. `raw` None starts a new index.

    Raises:
        InvalidInput, Unsupported: `raw` is no valid index, or several images have the tag.
    """
    if raw is not None and (known := LayoutIndex.parse(raw, at=at).find(tag)) is not None and known.key == descriptor.key:
        return raw
    entry = replace(descriptor, data=None, annotations=((REF_NAME, tag),)).to_json()
    return _replace_entries(raw, lambda name, _entry: name == tag, [entry], at=at)


def remove_entries(raw: bytes | None, is_removed: Callable[[str | None, Digest], bool], *, at: str) -> bytes:
    """Return an `index.json` without the entries for which `is_removed(name, digest)` is true.

    Raises:
        InvalidInput, Unsupported: `raw` is no valid index.
    """

    def is_selected(name: str | None, entry: Descriptor) -> bool:
        return is_removed(name, entry.digest)

    return _replace_entries(raw, is_selected, [], at=at)


def _replace_entries(
    raw: bytes | None, is_removed: Callable[[str | None, Descriptor], bool], new: Sequence[fields.Json], *, at: str
) -> bytes:
    place = f"{at}: index.json"
    document = make_empty_index()
    if raw is not None:
        document |= fields.parse_object(raw, at=place)
    kept, position = list[fields.Json](), None
    for where, one in fields.objects(document, "manifests", at=place):
        descriptor = Descriptor.from_json(one, at=where)
        if not is_removed(_name_of(descriptor), descriptor):
            kept.append(one)
        elif position is None:
            position = len(kept)
    start = len(kept) if position is None else position
    kept[start:start] = new
    try:
        changed = orjson.dumps(document | {"manifests": kept})
    except orjson.JSONEncodeError as exc:  # orjson parses 1024 levels and writes 254
        raise Unsupported(f"{place} has more than 254 nested levels") from exc
    if len(changed) > manifest.MAX_BYTES:
        raise Unsupported(f"{place} would have {len(changed)} bytes, expected at most {manifest.MAX_BYTES}; use another layout")
    return changed


def _name_of(descriptor: Descriptor) -> str | None:
    annotations = dict(descriptor.annotations)
    return annotations.get(REF_NAME) or annotations.get(CONTAINERD_NAME) or None


def _join(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _MOST_NAMED} more" if len(texts) > _MOST_NAMED else ""
    return f"{', '.join(texts[:_MOST_NAMED])}{more}"
