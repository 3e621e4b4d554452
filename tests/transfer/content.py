"""Puts images into the store of a session, and lists the requests that a registry received."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from prefect_dist.ocispec import Descriptor, Digest, Reference
from prefect_dist.ocispec.errors import AlreadyExists
from prefect_dist.transfer.fetching import fetch
from prefect_dist.transfer.session import Session
from tests.fakes.registry import FakeRegistry
from tests.images import BuiltImage


def put_image(session: Session, image: BuiltImage) -> Descriptor:
    """Put an image into the store without a store name, and return the descriptor of its root."""
    for digest, data in (*image.blobs.items(), *((m.digest, m.raw) for m in image.manifests)):
        with (
            suppress(AlreadyExists),
            session.store.writer(digest, expected=Digest.parse(digest), total=len(data)) as writer,
        ):
            writer.write(data)
            writer.commit()
    return root_of(image)


def fetch_tree(session: Session, reference: Reference, root: Descriptor, *, workers: int) -> None:
    """Fetch the content of a tree into the store, level by level, at most `workers` descriptors at a time."""
    seen, level = set[Descriptor](), {root: None}
    with ThreadPoolExecutor(workers) as executor:
        while level:
            seen.update(level)
            fetched = executor.map(lambda one: fetch(session, one, reference), level)
            level = {child: None for result in fetched for child in result.children if child not in seen}


def root_of(image: BuiltImage) -> Descriptor:
    """Return the descriptor of the root of an image."""
    root = image.root
    return Descriptor(media_type=root.media_type, digest=Digest.parse(root.digest), size=root.size)


def reference_at(registry: FakeRegistry, named: str) -> Reference:
    """Return the reference `named` at a registry."""
    return Reference.parse(f"{registry.host}/{named}")


def list_requests(registry: FakeRegistry) -> list[str]:
    """Return the requests that a registry has received, each as "METHOD PATH"."""
    return [f"{one.method} {one.path}" for one in registry.requests]
