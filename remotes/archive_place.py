"""The place of an archive in a reference: `FILE[:NAME]`, a file on the local disk and optionally a repository.

    oci-archive:FILE[:NAME][:TAG][@DIGEST]     docker-archive:FILE[:NAME][:TAG][@DIGEST]

FILE ends at the first colon, as in skopeo, so a path with a colon cannot be named. NAME is the repository of an image whose
full name the archive has, such as `docker.io/library/redis`; `redis` is short for this name, as in Docker.
"""

import os
from dataclasses import dataclass, replace
from typing import Self

from prefect_dist.ocispec import Descriptor, Reference, fields
from prefect_dist.ocispec.errors import InvalidInput
from prefect_dist.ocispec.image_layout import INDEX, NAMES, serialize_index
from prefect_dist.ocispec.reference import expand, require_local_archive
from prefect_dist.storage.archive import layout


@dataclass(frozen=True, slots=True)
class ArchivePlace:
    """A file, and the repository of the images in the file; empty for all images."""

    path: str
    repository: str

    @classmethod
    def parse(cls, reference: Reference) -> Self:
        """Return the place of a reference.

        Raises:
            InvalidInput: the reference names no local file, or no valid repository.
        """
        require_local_archive(reference, subject=reference)
        path, _, name = reference.place.partition(":")
        if not path:
            raise InvalidInput("expected a file before the first colon", subject=reference)
        return cls(os.path.realpath(path), _expand(name, reference) if name else "")

    def make_name(self, tag: str) -> str:
        """Return the name of a tag in the lists of the archive: the full name, or without a repository the tag."""
        return f"{self.repository}:{tag}" if self.repository else tag

    def find_tag(self, entry: Descriptor) -> str | None:
        """Return the tag of an entry of `index.json`; None without a tag, or for the entry of another repository."""
        if not self.repository:
            annotations = dict(entry.annotations)
            return annotations.get(NAMES[0]) or annotations.get(NAMES[1]) or None
        repository, tag = layout.repository_and_tag(entry)
        return tag if repository == self.repository else None

    def select(self, index: bytes, *, at: str) -> bytes:
        """Return the `index.json` of this place: the entries of the repository under their tags, and entries without a name.

        Raises:
            InvalidInput, Unsupported: `index` is no valid index.
        """
        if not self.repository:
            return index
        document = fields.parse_object(index, at=f"{at}: {INDEX}")
        listed = fields.objects(document, "manifests", at=f"{at}: {INDEX}")
        entries = [Descriptor.from_json(one, at=where) for where, one in listed]
        kept = [rename(one, self.find_tag(one)) for one in entries if self.find_tag(one) is not None or not _has_name(one)]
        return make_index(kept)


def make_index(entries: list[Descriptor]) -> bytes:
    """Return an `index.json` with these entries."""
    return serialize_index([one.to_json() for one in entries])


def rename(entry: Descriptor, name: str | None) -> Descriptor:
    """Return an entry of an index with another name. A full name is written for skopeo and containerd, a tag for skopeo."""
    others = tuple((key, value) for key, value in entry.annotations if key not in NAMES)
    keys = () if name is None else NAMES if ":" in name else NAMES[:1]
    named = tuple((key, str(name)) for key in keys)
    return replace(entry, data=None, annotations=(*others, *named))


def _has_name(entry: Descriptor) -> bool:
    return any(key in NAMES for key, _ in entry.annotations)


def _expand(name: str, reference: Reference) -> str:
    try:
        return Reference.parse(expand(f"{name}:latest")).locator
    except InvalidInput as exc:
        raise InvalidInput(
            f"expected a repository after the first colon, which ends the path of the file ({exc})", subject=reference
        ) from exc
