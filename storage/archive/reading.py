"""Import: reads the images of a tar stream into a store.

Blobs are stored as they arrive, see `storage.archive.received`. After the whole stream is read, the names of complete images
are recorded.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import IO

from prefect_dist.ocispec import Descriptor, fields, manifest, mediatypes
from prefect_dist.ocispec.errors import DistError, InvalidInput
from prefect_dist.ocispec.image_layout import INDEX, NAMES
from prefect_dist.ocispec.referrers import Referrer
from prefect_dist.storage import presence
from prefect_dist.storage.archive import docker, layout
from prefect_dist.storage.archive.received import Received, receive
from prefect_dist.storage.archive.related import RelatedManifests, merge_referrers
from prefect_dist.storage.leases import Lease
from prefect_dist.storage.store import ContentStore


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Imported:
    """The result of one image: either its name is recorded, or `error` has the reason. An image without a name has None."""

    name: str | None
    descriptor: Descriptor | None
    referrers: int = 0
    error: DistError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _ListedImage:
    """An image in a list of the archive. `root` returns the manifest, which may have to be created first.

    `entry` is the descriptor in `index.json`, None for an image in Docker's list.
    """

    at: str
    names: tuple[str, ...]
    root: Callable[[], Descriptor]
    entry: Descriptor | None = None


def import_images(store: ContentStore, file: IO[bytes], *, source: str, name: str | None = None) -> tuple[Imported, ...]:
    """Import the images of an archive into the store, and record the names of complete images with their referrers.

    `file` need not be seekable. `source` describes the archive in records and errors. `name` is the name for an image without a
    full name in the archive. `storage.presence.present_children` defines which images are complete.

    The error of one image does not stop other images. An error of the whole archive is raised before any name is recorded;
    complete blobs stay in the store.

    Raises:
        InvalidInput: not an archive of images, an unreadable list, or a bad `name`.
        Corrupt: a damaged stream, or content that does not match the digest in its name.
        StoreFull, Denied, Unavailable: the store or the stream.
    """
    fallback = () if name is None else (layout.expand_name(name),)
    archive = f"archive {source}"
    with store.leases.hold() as lease:
        received = receive(store, file, source=archive, lease=lease)
        importer = _Importer(store, lease, archive, fallback)
        images = _list_images(store, received)
        related = importer.related = RelatedManifests.of(store, [image.entry for image in images if image.entry is not None])
        outcomes, later = list[Imported](), list[_ListedImage]()
        for image in images:
            if image.entry is not None and related.may_refer(image.entry):
                later.append(image)
            else:
                outcomes += importer.import_image(image)
        for image in later:
            if image.entry is not None and not related.is_claimed(image.entry):
                outcomes += importer.import_image(image)
    if importer.has_recorded:
        store.update_index()
    return tuple(outcomes)


def _list_images(store: ContentStore, received: Received) -> list[_ListedImage]:
    """Return the images of the archive, from `index.json`, or without this file from Docker's list."""
    if (raw := received.lists.get(INDEX)) is not None:
        at = f"{received.source}: {INDEX}"
        roots = manifest.children(raw, mediatypes.OCI_INDEX, at=at)
        images = [_from_index(root, at=f"{at}.manifests[{number}]") for number, root in enumerate(roots)]
    elif (raw := received.lists.get(layout.DOCKER_LIST)) is not None:
        items = fields.parse_objects(raw, at=f"{received.source}: {layout.DOCKER_LIST}")
        images = [_from_docker(store, received, item, at=at) for at, item in items]
    else:
        raise InvalidInput(
            f"not an archive of images, found neither {INDEX} nor {layout.DOCKER_LIST}",
            subject=received.source,
        )
    if not images:
        raise InvalidInput("expected at least one image, got an empty list", subject=received.source)
    return images


def _from_index(root: Descriptor, *, at: str) -> _ListedImage:
    name = layout.image_name(root)
    others = tuple((key, value) for key, value in root.annotations if key not in NAMES)
    bare = replace(root, annotations=others)
    return _ListedImage(at=at, names=() if name is None else (name,), root=lambda: bare, entry=root)


def _from_docker(store: ContentStore, received: Received, item: fields.Json, *, at: str) -> _ListedImage:
    names = tuple(dict.fromkeys(map(layout.expand_name, fields.strings(item, "RepoTags", at=at))))
    return _ListedImage(at=at, names=names, root=partial(docker.build_manifest, store, received, item, at=at))


class _Importer:
    def __init__(self, store: ContentStore, lease: Lease, source: str, fallback: tuple[str, ...]) -> None:
        self.related = RelatedManifests.of(store, ())
        self._store, self._lease, self._source, self._fallback = store, lease, source, fallback
        self._taken: dict[str, Descriptor] = {}

    @property
    def has_recorded(self) -> bool:
        """True if the name of an image was recorded."""
        return bool(self._taken)

    def import_image(self, image: _ListedImage) -> list[Imported]:
        """Record an image under its names and return a result for each name. An incomplete image gives an error."""
        children = presence.present_children(self._store)
        names = image.names or self._fallback
        try:
            root = image.root()
            self._lease.take(root)
            with self._store.exclude_gc():
                presence.require(self._store, root, children=children, name=", ".join(names) or image.at)
            if not names:
                raise InvalidInput(f"the archive has no full name for {root}; specify a name for the image", subject=image.at)
        except DistError as exc:
            return [Imported(name=name, descriptor=None, error=exc) for name in names or (None,)]
        return [self._record(name, root) for name in names]

    def _record(self, name: str, root: Descriptor) -> Imported:
        first = self._taken.setdefault(name, root)
        store = self._store
        try:
            if first.key != root.key:
                raise InvalidInput(
                    f"{self._source} has this name for {first} and for {root}; only the first is imported",
                    subject=name,
                )
            claimed = self.related.claim(root, name=name)
            roots = (root, *(referrer.descriptor for referrer in claimed))
            referrers = merge_referrers(self._recorded_referrers(name, root), claimed)
            platforms, is_lacking = presence.present_platforms(store, root)
            self._lease.take(*roots)
            with store.exclude_gc():
                presence.require(store, *roots, children=presence.present_children(store), name=name)
                store.names.put(
                    name,
                    root,
                    source=self._source,
                    platforms=platforms,
                    lacks_attestations=is_lacking,
                    referrers=referrers,
                )
        except DistError as exc:
            return Imported(name=name, descriptor=root, error=exc)
        return Imported(name=name, descriptor=root, referrers=len(referrers))

    def _recorded_referrers(self, name: str, root: Descriptor) -> tuple[Referrer, ...]:
        """Return the referrers that the store has already recorded for the same name and image."""
        if name not in self._store.names:
            return ()
        known = self._store.names.get(name)
        return known.referrers if known.descriptor.key == root.key else ()
