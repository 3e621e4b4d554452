"""The content of a new version of an archive: from the content store, from the previous version, and new indexes."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial

from prefect_dist.ocispec import Descriptor, Digest, Hasher, manifest
from prefect_dist.ocispec.children import children_reader, walk_tree, without_foreign
from prefect_dist.ocispec.errors import Corrupt, InvalidInput, NotFound
from prefect_dist.remotes.layout_files import LayoutFiles
from prefect_dist.storage import ContentStore
from prefect_dist.storage.archive.writing import Content


class ArchiveContent:
    """The content that a new version of an archive may have.

    `pushed` has the sizes of the content that the run pushed, which is in the store. `made` has the indexes of referrers.
    """

    def __init__(
        self, store: ContentStore, pushed: Mapping[Digest, int], previous: LayoutFiles | None, *, check: Callable[[], None]
    ) -> None:
        self._store, self._pushed, self._previous, self._check = store, pushed, previous, check
        self.made: dict[Digest, bytes] = {}

    def size(self, digest: Digest) -> int | None:
        """Return the size of a blob in bytes; None for a missing blob."""
        if digest in self.made:
            return len(self.made[digest])
        if digest in self._pushed:
            return self._pushed[digest]
        if self._previous is not None:
            with suppress(NotFound):
                return self._previous.size(digest)
        return None

    def read(self, descriptor: Descriptor) -> Iterator[bytes]:
        """Yield the bytes of a blob.

        Raises:
            Corrupt: the bytes do not match the digest, raised after the last piece.
            NotFound, Unavailable, Denied, Conflict: the blob is missing or cannot be read.
        """
        if descriptor.digest in self.made or descriptor.digest in self._pushed or self._previous is None:
            pieces = self._read_run(descriptor)
        else:
            pieces = _verify(descriptor, self._previous.read(descriptor, 0))
        for piece in pieces:
            self._check()
            yield piece

    def read_document(self, descriptor: Descriptor) -> bytes:
        """Return the bytes of a manifest.

        Raises:
            InvalidInput: the manifest is larger than a manifest may be.
            Corrupt: the bytes do not match the descriptor.
            DistError: the manifest is missing or cannot be read.
        """
        if descriptor.size > manifest.MAX_BYTES:
            raise InvalidInput(
                f"expected at most {manifest.MAX_BYTES} bytes, its descriptor states {descriptor.size}", subject=descriptor
            )
        return b"".join(self.read(descriptor))

    def walk(self, root: Descriptor, *, at: str | None = None) -> list[Descriptor]:
        """Return the present content of a tree, each descriptor once. Manifests of an index may be missing.

        With `at`, other missing content is an error, and `at` is its subject.

        Raises:
            NotFound: the root is missing, or see `at`.
            DistError: a manifest cannot be read.
        """
        read = without_foreign(children_reader(self.read_document))

        def read_present(parent: Descriptor) -> Sequence[Descriptor]:
            found = read(parent)
            missing = [child for child in found if self.size(child.digest) is None]
            lost = [child for child in missing if parent.kind != "index" or not child.is_manifest]
            if lost and at is not None:
                raise NotFound(f"{lost[0]} was not pushed before its manifest", subject=at)
            return [child for child in found if child not in missing]

        if self.size(root.digest) is None:
            raise NotFound(f"{root} was not pushed", subject=at)
        return list(walk_tree(read_present, root))

    def collect(self, trees: Sequence[Sequence[Descriptor]]) -> dict[Digest, Content]:
        """Return the content of some trees by digest."""
        distinct = {one.digest: one for tree in trees for one in tree}
        return {digest: (self.size(digest) or 0, partial(self.read, one)) for digest, one in distinct.items()}

    def _read_run(self, descriptor: Descriptor) -> Iterator[bytes]:
        """Return the bytes of content of this run, which the store verifies."""
        digest = descriptor.digest
        if digest in self._pushed:
            return self._store.chunks(digest)
        if digest not in self.made:
            raise NotFound("was not pushed", subject=descriptor)
        return iter((self.made[digest],))


def _verify(descriptor: Descriptor, pieces: Iterable[bytes]) -> Iterator[bytes]:
    hasher = Hasher(descriptor.digest.algorithm)
    for piece in pieces:
        hasher.update(piece)
        yield piece
    if (found := hasher.digest()) != descriptor.digest:
        raise Corrupt(f"the archive has {found} in its place; remove the archive", subject=descriptor)
