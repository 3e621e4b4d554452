"""Archives as remotes, for tests: the remotes of a run with a content store, and short ways to read and write an archive."""

from collections.abc import Iterator
from contextlib import contextmanager

from prefect_dist.ocispec import Descriptor, Digest, Reference
from prefect_dist.ocispec.children import children_reader, walk_tree
from prefect_dist.ocispec.errors import DistError
from prefect_dist.remotes import Registries, RegistrySettings, Remotes, StaticCredentials
from prefect_dist.storage import ContentStore
from tests import images
from tests.storage.archives import memory_store


@contextmanager
def open_remotes(store: ContentStore | None = None) -> Iterator[Remotes]:
    """Yield the remotes of a run with this content store."""
    found = store or memory_store()
    credentials = StaticCredentials({}).get
    registries = Registries(RegistrySettings(), credentials=credentials)
    with Remotes(registries, credentials=credentials, open_store=lambda: found) as remotes:
        yield remotes


def read_image(text: str, *, remotes: Remotes | None = None) -> dict[str, bytes]:
    """Return the content of an image by digest, verified."""
    if remotes is None:
        with open_remotes() as opened:
            return read_image(text, remotes=opened)
    resolved = remotes.resolve(Reference.parse(text))
    content = dict[str, bytes]()

    def read(descriptor: Descriptor) -> bytes:
        raw = b"".join(resolved.fetcher.fetch(descriptor))
        assert Digest.of(raw, algorithm=descriptor.digest.algorithm) == descriptor.digest
        content[str(descriptor.digest)] = raw
        return raw

    for descriptor in walk_tree(children_reader(read), resolved.descriptor):
        if not descriptor.is_manifest:
            read(descriptor)
    return content


def content_of(image: images.BuiltImage) -> dict[str, bytes]:
    """Return the content of a built image by digest."""
    return image.blobs | {manifest.digest: manifest.raw for manifest in image.manifests}


def refuse(text: str) -> DistError:
    """Return the error of resolving a reference and reading the image."""
    try:
        read_image(text)
    except DistError as exc:
        return exc
    raise AssertionError(f"{text} was read")
