"""Writes content to the content store, for remotes whose targets take their content from the store."""

from contextlib import suppress

from prefect_dist.ocispec import Descriptor
from prefect_dist.ocispec.errors import AlreadyExists, Corrupt
from prefect_dist.remotes.remote import Read
from prefect_dist.storage import ContentStore
from prefect_dist.storage.ingest import make_ref
from prefect_dist.storage.leases import Lease


def keep_content(store: ContentStore, lease: Lease, content: Descriptor, read: Read) -> None:
    """Ensure that the store has the bytes of `content`, and otherwise write the bytes of `read` to the store.

    A run has all content that it pushes in its store already.

    Raises:
        Corrupt: `read` yields other content than the descriptor describes.
        DistError: an error of the store or of `read`.
    """
    while not store.holds(content):
        lease.take(content)
        with suppress(AlreadyExists), store.writer(make_ref(content), expected=content.digest, total=content.size) as writer:
            for piece in read(writer.offset) if writer.offset < content.size else ():
                writer.write(piece)
            try:
                writer.commit()
            except Corrupt:
                writer.truncate()  # any byte may be wrong, so the next attempt starts at 0
                raise
