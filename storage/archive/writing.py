"""Export: images of a store as one tar stream, an image layout that other tools read (image-spec 1.1, image-layout.md).

Its `index.json` has each image under its name, for skopeo's `oci-archive:FILE:NAME` and for containerd. Images of one platform
are also listed as `docker save` does, for `docker load` and skopeo's `docker-archive:FILE:NAME`.
"""

from collections.abc import Iterable, Sequence
from typing import IO

from ocispec import Descriptor, manifest
from ocispec.errors import InvalidInput
from storage import completeness, index
from storage.archive import docker, layout, tar
from storage.names import Name
from storage.store import ContentStore

_Image = tuple[Name, Sequence[Descriptor]]


def export_images(store: ContentStore, names: Iterable[str], file: IO[bytes]) -> tuple[Name, ...]:
    """Write images to `file`, which need not seek, and answer with their names. The same content gives the same bytes.

    Exactly the blobs that the images consist of are written, each once and verified on its way. What counts as whole is
    said by `storage.completeness.held_children`: of an index, manifests that are not in the store are left out.

    Raises:
        NotFound: no such name, or an image lacks something; nothing has been written.
        InvalidInput: names whose list no importer would read, for its size; nothing has been written.
        Corrupt: a blob is not what its digest says; what has been written is of no use.
        OSError: what `file` raises.
    """
    children = completeness.held_children(store)
    wanted = tuple(store.names.get(name) for name in sorted(set(names)))
    images = [(name, completeness.require(store, name.descriptor, children=children, name=name.name)) for name in wanted]
    sizes = {descriptor.digest: descriptor.size for _, found in images for descriptor in found}
    for path, document in _documents(store, images).items():
        tar.write(file, path, size=len(document), pieces=(document,))
    for digest in sorted(sizes):
        tar.write(file, layout.blob_entry(digest), size=sizes[digest], pieces=store.chunks(digest))
    file.write(tar.END)
    return wanted


def _documents(store: ContentStore, images: Sequence[_Image]) -> dict[str, bytes]:
    documents = {
        layout.MARKER: index.MARKER,
        layout.INDEX: index.document((name for name, _ in images), under=layout.NAMES),
        layout.DOCKER_LIST: docker.listed(store, images),
    }
    for path, document in documents.items():
        if len(document) > manifest.MAX_BYTES:
            raise InvalidInput(
                f"export: expected at most {manifest.MAX_BYTES} bytes in {path}, got {len(document)}; name fewer"
            )
    return documents
