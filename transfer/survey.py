"""Resolves images at their source and at their targets, before a mirror begins."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from prefect_dist.ocispec import Descriptor, Digest, Platform, Reference, config, manifest
from prefect_dist.ocispec.children import Children, children_reader, filter_platforms, walk_tree, without_missing_attestations
from prefect_dist.ocispec.errors import Corrupt, DistError, InvalidInput
from prefect_dist.ocispec.index_filter import FilteredIndex, filter_index, select_image
from prefect_dist.ocispec.platform import Platforms
from prefect_dist.ocispec.referrers import Referrer
from prefect_dist.remotes import Source
from prefect_dist.storage import ContentStore
from prefect_dist.transfer import content as transfer
from prefect_dist.transfer.events import Notify
from prefect_dist.transfer.related import NOTHING, Related, RelatedLookup, find_all_related

T = TypeVar("T")


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class ImageQuery:
    """A query for an image and the targets that it is mirrored to.

    Attributes:
        platforms: the platforms wanted of an index; None is all.
        rewritten: the targets get an index of these platforms only.
        single: the targets get the index's image for this platform instead of the index.
        related: the related manifests that are mirrored, too; they may be new although the image is not.
        unrecorded: the targets whose related manifests no record lists.
        dated: the result needs the date of the image.
        whole: the result needs all content of the image.
        force: the image has to be mirrored even if a target has it.
        settled: the digest that an immutable tag was mirrored with. If all targets have it, the source is not requested.
        verified: the digests of referrers whose subject an earlier run compared.
    """

    source: Reference
    targets: tuple[Reference, ...]
    platforms: Platforms = None
    rewritten: bool = False
    single: Platform | None = None
    related: Related = NOTHING
    verified: frozenset[Digest] = frozenset()
    unrecorded: frozenset[Reference] = frozenset()
    dated: bool = False
    whole: bool = False
    force: bool = False
    settled: Digest | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInfo:
    """The content of an image, as far as the query needs it.

    Attributes:
        root: the descriptor that the source resolves to.
        target_root: the descriptor that targets get.
        content: all content below `root`.
        sent: all content below `target_root`.
        referrers: the referrers at the source, if all targets have the image.
        target_referrers: the referrers at targets without a record, with their tags.
    """

    root: Descriptor
    target_root: Descriptor
    content: tuple[Descriptor, ...] = ()
    sent: tuple[Descriptor, ...] = ()
    referrers: frozenset[Digest] = frozenset()
    target_referrers: Mapping[Reference, Mapping[Digest, str | None]] = field(default_factory=dict)
    created: datetime | None = None


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class QueryResult:
    """The result of a query: the image, and the descriptor that each target resolves to, None if there is no such tag.

    An error takes the place of what could not be resolved.
    """

    query: ImageQuery
    image: ImageInfo | DistError
    standing: tuple[Descriptor | DistError | None, ...]

    @property
    def errors(self) -> tuple[DistError, ...]:
        """Return all errors."""
        return tuple(one for one in (self.image, *self.standing) if isinstance(one, DistError))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Reads manifests and configs of one source: from the store if it has them. With `keep` the others are stored.

    If the source `is_offline`, it is the store: attestation manifests that are missing there are left out.
    """

    store: ContentStore
    source: Source
    keep: bool
    notify: Notify
    is_offline: bool = False

    @property
    def is_missing(self) -> Callable[[Descriptor], bool] | None:
        """Return the test for attestation manifests that are left out; None if all are needed."""
        return (lambda descriptor: not self.store.holds(descriptor)) if self.is_offline else None

    def children(self, platforms: Platforms) -> Children:
        """Return a handler for the children of manifests: of an index, the manifests for `platforms`."""
        children = children_reader(self.read)
        if self.is_missing is not None and platforms is not None:
            children = without_missing_attestations(children, self.is_missing)
        return filter_platforms(children, platforms)

    def read(self, descriptor: Descriptor) -> bytes:
        """Return the verified content of a descriptor.

        Raises:
            InvalidInput: the content is longer than a document may be.
            DistError: an error of the store or the source.
        """
        if descriptor.size > manifest.MAX_BYTES:
            raise InvalidInput(
                f"{descriptor}: expected at most {manifest.MAX_BYTES} bytes, it is said to have {descriptor.size}"
            )
        if self.keep:
            transfer.fetch(self.store, self.source, descriptor, notify=self.notify)
        if self.keep or self.store.holds(descriptor):
            return self.store.manifest(descriptor)
        return _read_verified(self.source, descriptor)


def find(
    query: ImageQuery, reader: Reader, standing: Callable[[Reference], Descriptor | None], related: RelatedLookup
) -> QueryResult:
    """Resolve an image at its source and at its targets: one HEAD each. `standing` resolves a target.

    More is read if the image has to be mirrored to a target, or if the query needs it.
    """
    there = tuple(_or_error(lambda target=target: standing(target)) for target in query.targets)  # type: ignore[misc]
    settled = _settled_root(query, there)
    if settled is not None and not (query.related or query.dated or query.whole):
        return QueryResult(query=query, image=ImageInfo(root=settled, target_root=settled), standing=there)
    image = _or_error(lambda: _image_info(query, settled or reader.source.resolve(query.source), there, reader, related))
    return QueryResult(query=query, image=image, standing=there)


def _settled_root(query: ImageQuery, there: Sequence[Descriptor | DistError | None]) -> Descriptor | None:
    """Return the root of a settled tag, if all targets have it; otherwise None."""
    roots = [one for one in there if isinstance(one, Descriptor) and one.digest == query.settled]
    return roots[0] if roots and len(roots) == len(there) else None


def _image_info(
    query: ImageQuery, found: Descriptor, standing: Sequence[object], reader: Reader, related: RelatedLookup
) -> ImageInfo:
    root = found if query.single is None else select_image(found, query.single, reader.read)
    is_rewritten = query.rewritten and query.platforms is not None
    selected = (
        filter_index(root, query.platforms or (), reader.read, is_missing=reader.is_missing)
        if is_rewritten
        else FilteredIndex(root=root)
    )
    target_root = selected.root
    due = query.force or any(
        there is None or (isinstance(there, Descriptor) and there.digest != target_root.digest) for there in standing
    )
    if not (due or query.related or query.dated or query.whole):
        return ImageInfo(root=root, target_root=target_root)
    children = reader.children(query.platforms)
    content = tuple(walk_tree(children, root))
    referrers, trees = ({}, {}) if due else _all_related(query, content, children, reader, related)
    unknown = [target for target in query.targets if target in query.unrecorded] if referrers else []
    return ImageInfo(
        root=root,
        target_root=target_root,
        content=content,
        sent=_written(selected, reader) if selected.indexes else content,
        referrers=frozenset(referrers),
        target_referrers={target: _related_there(query, content, trees, target, related) for target in unknown},
        created=_creation_date(content, reader) if query.dated else None,
    )


def _all_related(
    query: ImageQuery, content: Sequence[Descriptor], children: Children, reader: Reader, related: RelatedLookup
) -> tuple[dict[Digest, Referrer], dict[Digest, tuple[Descriptor, ...]]]:
    """Return the related manifests of an image at its source, and the manifests in the tree of each, both by digest."""
    trees: dict[Digest, tuple[Descriptor, ...]] = {}

    def manifests_of(root: Descriptor) -> tuple[Descriptor, ...]:
        tree = walk_tree(children, root) if root.kind == "index" else (root,)
        return trees.setdefault(root.digest, tuple(one for one in tree if one.is_manifest))

    def referrers_of(subject: Descriptor) -> tuple[Referrer, ...]:
        return related.at_source(subject, query.source, query.related, read=reader.read, verified=query.verified)

    subjects = [descriptor for descriptor in content if descriptor.is_manifest] if query.related else []
    return find_all_related(subjects, referrers_of, manifests_of, at=str(query.source)), trees


def _related_there(
    query: ImageQuery,
    content: Sequence[Descriptor],
    trees: Mapping[Digest, tuple[Descriptor, ...]],
    target: Reference,
    related: RelatedLookup,
) -> dict[Digest, str | None]:
    """Return the digests and tags of related manifests at a target; of manifests unknown at the source, no referrers."""
    subjects = [descriptor for descriptor in content if descriptor.is_manifest]
    found = find_all_related(
        subjects,
        lambda one: related.at_target(one, target, query.related),
        lambda root: trees.get(root.digest, ()),
        at=str(query.source),
    )
    return {digest: referrer.tag for digest, referrer in found.items()}


def _creation_date(content: Sequence[Descriptor], reader: Reader) -> datetime | None:
    """Return when the first platform of an image was made. All platforms are made together."""
    configured = next((descriptor for descriptor in content if descriptor.kind == "config"), None)
    return None if configured is None else config.creation_date(reader.read(configured), at=str(configured))


def _written(selected: FilteredIndex, reader: Reader) -> tuple[Descriptor, ...]:
    """Return the distinct content of a tree with rewritten indexes."""
    new = {index.digest: index.data for index in selected.indexes}
    children = children_reader(lambda descriptor: new.get(descriptor.digest) or reader.read(descriptor))
    return tuple(walk_tree(children, selected.root))


def _read_verified(source: Source, descriptor: Descriptor) -> bytes:
    raw = descriptor.data if descriptor.data is not None else b"".join(source.fetch(descriptor))
    found = Digest.of(raw, algorithm=descriptor.digest.algorithm)
    if found != descriptor.digest:
        raise Corrupt(f"{descriptor}: expected {descriptor.digest}, got {found}")
    return raw


def _or_error(call: Callable[[], T]) -> T | DistError:
    try:
        return call()
    except DistError as exc:
        return exc
