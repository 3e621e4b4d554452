"""Export: writes images of a store as one tar stream, an image layout for other tools (image-spec 1.1, image-layout.md).

`index.json` lists each image under its name, for skopeo's `oci-archive:FILE:NAME` and for containerd. Docker's `manifest.json`
also lists the images of one platform, for `docker load` and skopeo's `docker-archive:FILE:NAME`, but cannot list referrers.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import IO

from prefect_dist.ocispec import Digest, manifest
from prefect_dist.ocispec.errors import InvalidInput
from prefect_dist.ocispec.image_layout import INDEX, MARKER, MARKER_NAME, NAMES
from prefect_dist.storage import index, presence
from prefect_dist.storage.archive import docker, layout, related, tar
from prefect_dist.storage.archive.related import TaggedManifest
from prefect_dist.storage.names import Name
from prefect_dist.storage.store import ContentStore

Content = tuple[int, Callable[[], Iterable[bytes]]]
"""The size of a blob in bytes, and a function that yields the content."""


def export_images(store: ContentStore, names: Iterable[str], file: IO[bytes]) -> tuple[Name, ...]:
    """Write images and their referrers to `file`, which need not be seekable, and return the names.

    Equal content gives equal bytes. The archive contains each blob of the images once, verified during the export, and the
    fallback indexes for referrers. `storage.presence.present_children` defines complete images: missing manifests of an index
    are left out.

    Raises:
        NotFound: an unknown name, or missing content of an image or referrer; nothing has been written.
        InvalidInput: too many names, so that no importer would read the list; nothing has been written.
        Corrupt: a blob does not match its digest; the written archive is useless.
        OSError: an error of `file`.
    """
    children = presence.present_children(store)
    wanted = tuple(store.names.get(name) for name in sorted(set(names)))
    images = [(name, presence.require(store, name.descriptor, children=children, name=name.name)) for name in wanted]
    referrers = [presence.require(store, *name.roots[1:], children=children, name=name.name) for name in wanted]
    tagged = _without_names(related.tagged_manifests(store, wanted), wanted)
    sizes = {one.digest: one.size for found in (*(found for _, found in images), *referrers) for one in found}
    indexes = {one.descriptor.digest: one.raw for one in tagged if one.raw is not None}
    blobs: dict[Digest, Content] = {digest: (size, partial(store.chunks, digest)) for digest, size in sizes.items()}
    blobs |= {digest: (len(raw), partial(iter, (raw,))) for digest, raw in indexes.items()}
    entries = [(one.name, one.descriptor) for one in tagged]
    listed = index.document((name for name, _ in images), under=NAMES, tagged=entries)
    write_archive(
        file,
        index=listed,
        docker_list=docker.docker_list(store.manifest, ((name.name, found) for name, found in images)),
        blobs=blobs,
    )
    return wanted


def write_archive(file: IO[bytes], *, index: bytes, docker_list: bytes, blobs: Mapping[Digest, Content]) -> None:
    """Write an archive to `file`, which need not be seekable. Equal arguments give equal bytes.

    `index` and `docker_list` are its lists of images. `blobs` has the content by digest.

    Raises:
        InvalidInput: a list exceeds the size limit of importers; nothing has been written.
        Corrupt: a blob does not match its digest; the written archive is useless.
        OSError: an error of `file`.
    """
    documents = {MARKER_NAME: MARKER, INDEX: index, layout.DOCKER_LIST: docker_list}
    for path, document in documents.items():
        if len(document) > manifest.MAX_BYTES:
            raise InvalidInput(
                f"export: expected at most {manifest.MAX_BYTES} bytes in {path}, got {len(document)}; export fewer images"
            )
    for path, document in documents.items():
        tar.write(file, path, size=len(document), pieces=(document,))
    for digest in sorted(blobs):
        size, read = blobs[digest]
        tar.write(file, layout.blob_entry(digest), size=size, pieces=read())
    file.write(tar.END)


def _without_names(tagged: Iterable[TaggedManifest], names: Iterable[Name]) -> list[TaggedManifest]:
    """Return the tagged manifests whose tags are not names in the archive."""
    named = {name.name for name in names}
    return [one for one in tagged if one.name not in named]
