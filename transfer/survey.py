"""Resolves images at the source and at the targets, before a mirror begins."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, copy_context
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial

from prefect_dist.ocispec import Descriptor, Digest, Platform, Reference, config, manifest
from prefect_dist.ocispec.children import Children, children_reader, walk_tree
from prefect_dist.ocispec.errors import Corrupt, DistError, InvalidInput, NotFound, Unsupported, quote_text
from prefect_dist.ocispec.index_filter import FilteredIndex, filter_index, select_image
from prefect_dist.ocispec.platform import Platforms
from prefect_dist.ocispec.referrers import Referrer
from prefect_dist.remotes import Source
from prefect_dist.transfer.cancellation import Stopped
from prefect_dist.transfer.delivery import note_content
from prefect_dist.transfer.events import ContentAdvanced
from prefect_dist.transfer.fetching import fetch_content, report_corruption
from prefect_dist.transfer.listing import resolve_target
from prefect_dist.transfer.related import NOTHING, Related, find_all_related, list_at_source, list_at_target
from prefect_dist.transfer.repositories import NewRepositories
from prefect_dist.transfer.session import Session

# A new empty set takes 216 bytes, and a run has thousands of images.
NO_REFERRER: frozenset[Digest] = frozenset()
_NO_TARGET: frozenset[Reference] = frozenset()


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class ImageQuery:
    """A query for an image and its targets.

    Attributes:
        platforms: the wanted platforms of an index; None is every platform.
        rewritten: the targets get an index of only these platforms.
        single: the targets get the index's image for this platform instead of the index.
        related: the related manifests to mirror; these may be new although the image is unchanged.
        unrecorded: the targets without a record of earlier runs. Such a target may have an index with fewer platforms.
        dated: the result needs the date of the image.
        whole: the result needs the whole content of the image.
        force: the image is mirrored even if a target has the image.
        settled: the digest of an immutable tag when it was mirrored. If every target has the digest, the source gets no
            request.
        verified: the digests of referrers with a subject that an earlier run compared.
    """

    source: Reference
    targets: tuple[Reference, ...]
    platforms: Platforms = None
    rewritten: bool = False
    single: Platform | None = None
    related: Related = NOTHING
    verified: frozenset[Digest] = frozenset()
    unrecorded: tuple[Reference, ...] = ()
    dated: bool = False
    whole: bool = False
    force: bool = False
    settled: Digest | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInfo:
    """The content of an image, as far as the query needs the content.

    Attributes:
        root: the descriptor at the source.
        target_root: the descriptor for the targets.
        content: the whole content below `root`.
        sent: the whole content below `target_root`.
        incomplete: the targets without a record that have the index, and lack manifests of the wanted platforms.
        referrers: the referrers at the source, if every target has the image.
        target_referrers: the referrers at targets without a record, with their tags.
    """

    root: Descriptor
    target_root: Descriptor
    content: tuple[Descriptor, ...] = ()
    sent: tuple[Descriptor, ...] = ()
    incomplete: frozenset[Reference] = _NO_TARGET
    referrers: frozenset[Digest] = NO_REFERRER
    target_referrers: Mapping[Reference, Mapping[Digest, str | None]] = field(default_factory=dict)
    created: datetime | None = None


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class QueryResult:
    """The result of a query: the image, and the descriptor at each target, None if the tag does not exist.

    An error takes the place of a missing result.
    """

    query: ImageQuery
    image: ImageInfo | DistError
    standing: tuple[Descriptor | DistError | None, ...]

    @property
    def errors(self) -> tuple[DistError, ...]:
        """The errors of the image and of the targets."""
        return tuple(one for one in (self.image, *self.standing) if isinstance(one, DistError))


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads manifests and configs: from the store, otherwise from one source. With `keep`, the store keeps them.

    `place` is an image in the repository of `source`. Images have equal descriptors of common layers: `shared` has one instance
    of each, which saves memory.
    """

    session: Session
    source: Source
    place: Reference
    keep: bool
    shared: dict[Descriptor, Descriptor] = field(default_factory=dict, compare=False)

    def children(self, platforms: Platforms) -> Children:
        """Return a handler for the children of manifests: of an index, the manifests for `platforms`."""
        return self.session.recorder.children(platforms, read=self.read)

    def read(self, descriptor: Descriptor) -> bytes:
        """Return the verified content of a descriptor.

        Raises:
            InvalidInput: the content is longer than a document may be.
            DistError: an error of the store or the source.
        """
        store = self.session.store
        if descriptor.size > manifest.MAX_BYTES:
            raise InvalidInput(
                f"expected at most {manifest.MAX_BYTES} bytes, its descriptor states {descriptor.size}",
                subject=descriptor,
            )
        if self.keep:
            fetch_content(self.session, descriptor, self.source, place=self.place)
        if self.keep or store.holds(descriptor):
            return store.manifest(descriptor)
        with report_corruption(self.session, descriptor, self.place):
            return _read_verified(self.source, descriptor)


class _Results(dict[ImageQuery, QueryResult]):
    """The results of queries without errors, for a repetition of the other queries of the same unit."""


class _CorruptSources(set[Reference]):
    """The images whose manifest was corrupt when it was requested by tag."""


def survey_images(session: Session, queries: Sequence[ImageQuery], *, keep: bool, workers: int) -> list[QueryResult]:
    """Return the results of queries. At most `workers` queries are resolved at once.

    A run resolves a query again only after an error. With `keep`, the store keeps the manifests.
    """
    known, shared = session.memo(_Results), dict[Descriptor, Descriptor]()
    new = [query for query in queries if query not in known]

    def survey(query: ImageQuery, context: Context) -> QueryResult:
        return context.run(_survey_image, session, query, shared, keep=keep)

    with ThreadPoolExecutor(workers) as executor:
        # Each thread gets the context of the unit: Prefect adds the current flow run to an event.
        found = dict(zip(new, executor.map(survey, new, [copy_context() for _ in new]), strict=True))
    if any(one.errors for one in found.values()):
        known |= {query: one for query, one in found.items() if not one.errors}
    return [found.get(query) or known[query] for query in queries]


def _survey_image(session: Session, query: ImageQuery, shared: dict[Descriptor, Descriptor], *, keep: bool) -> QueryResult:
    """Resolve an image at the source and at the targets by one HEAD each.

    Manifests are read only if the image has to be mirrored to a target, or if the query needs more.
    """
    catch, source = session.cancel.catch_error, session.open_source(query.source)
    reader = Reader(session, source, query.source, keep, shared)
    try:
        there = tuple(catch(partial(_find_tag, session, target)) for target in query.targets)
        settled = _settled_root(query, there)
        if settled is not None and not (query.related or query.dated or query.whole):
            return QueryResult(query=query, image=ImageInfo(root=settled, target_root=settled), standing=there)
        image = catch(lambda: _image_info(query, settled or _resolve(query, there, reader), there, reader))
        if isinstance(image, ImageInfo):
            standing = zip(query.targets, there, strict=True)
            there = tuple(catch(partial(_check_accepted, session, target, found, image)) for target, found in standing)
    except Stopped as exc:  # the unit of work keeps the results of its other queries
        return QueryResult(query=query, image=exc, standing=(exc,) * len(query.targets))
    return QueryResult(query=query, image=image, standing=there)


def _find_tag(session: Session, target: Reference) -> Descriptor | None:
    """Return the descriptor of a tag, or None if the tag does not exist. A new repository has no tag.

    Raises:
        Unsupported: the place is read-only, which is found before content is fetched.
        DistError: an error of the place.
    """
    session.remotes.open_target(target)
    return None if _is_new(session, target) else resolve_target(session, target)


def _check_accepted(
    session: Session, target: Reference, found: Descriptor | DistError | None, image: ImageInfo
) -> Descriptor | DistError | None:
    """Return `found`, after checking that the target accepts the image if the image has to be published.

    Raises:
        Unsupported: the target does not accept the image.
    """
    is_other = isinstance(found, Descriptor) and (found.digest != image.target_root.digest or target in image.incomplete)
    if found is None or is_other:
        session.remotes.open_target(target).check_image(image.sent)
    return found


def _is_new(session: Session, target: Reference) -> bool:
    return session.memo(NewRepositories).has(session, target)


def _settled_root(query: ImageQuery, there: Sequence[Descriptor | DistError | None]) -> Descriptor | None:
    """Return the root of a settled tag if every target has the root; otherwise None."""
    roots = [one for one in there if isinstance(one, Descriptor) and one.digest == query.settled]
    return roots[0] if roots and len(roots) == len(there) else None


def _resolve(query: ImageQuery, there: Sequence[object], reader: Reader) -> Descriptor:
    """Return the root at the source.

    For a target in a new repository the run needs the manifest, and one GET replaces HEAD and GET. HEAD is left if the source
    counts pulls, because tags often share a manifest; if the store has the image; and after corrupt content, because a source
    can avoid a registry only for a known digest.
    """
    session, source, corrupt = reader.session, reader.source, reader.session.memo(_CorruptSources)
    missing = [target for target, found in zip(query.targets, there, strict=True) if found is None]
    is_first = bool(reader.keep and missing) and all(_is_new(session, target) for target in missing)
    is_known = query.source in corrupt or session.remotes.counts_pulls(query.source)
    if not is_first or is_known or query.source.name in session.store.names:
        return source.resolve(query.source)
    try:
        found = source.download(query.source)
        if found.data is None:
            return found
        session.counter.received(ContentAdvanced(found, found.size, found.size))
        fetch_content(session, found, source, place=reader.place)
    except Corrupt:
        corrupt.add(query.source)
        raise
    return replace(found, data=None)


def _image_info(query: ImageQuery, found: Descriptor, standing: Sequence[object], reader: Reader) -> ImageInfo:
    if not found.is_manifest:  # the index of a layout may contain any content
        raise Unsupported(f"expected a manifest or an index, got the type {quote_text(found.media_type)}", subject=found)
    root = found if query.single is None else select_image(found, query.single, reader.read)
    is_rewritten = query.rewritten and query.platforms is not None
    selected = (
        filter_index(root, query.platforms or (), reader.read, is_missing=reader.session.recorder.is_missing)
        if is_rewritten
        else FilteredIndex(root=root)
    )
    target_root = selected.root
    with_root = [target for target, there in zip(query.targets, standing, strict=True) if _has_root(there, target_root)]
    is_absent = any(there is None or isinstance(there, Descriptor) for there in standing if not _has_root(there, target_root))
    incomplete = (
        frozenset(target for target in with_root if _lacks_manifests(query, target, root, reader.session)) or _NO_TARGET
    )
    due = query.force or is_absent or bool(incomplete)
    if not (due or query.related or query.dated or query.whole):
        return ImageInfo(root=root, target_root=target_root)
    children = reader.children(query.platforms)
    content = tuple(reader.shared.setdefault(one, one) for one in walk_tree(children, root))
    sent = _written(selected, reader) if selected.indexes else content
    # A registry has the content of its manifests. With `force`, the target may have an index with fewer platforms.
    for target in () if query.force else with_root:
        if target not in incomplete:
            note_content(reader.session, target, sent)
    referrers, trees = ({}, {}) if due else _all_related(query, content, children, reader)
    unknown = [target for target in query.targets if target in query.unrecorded] if referrers else []
    return ImageInfo(
        root=root,
        target_root=target_root,
        content=content,
        sent=sent,
        incomplete=incomplete,
        referrers=frozenset(referrers) or NO_REFERRER,
        target_referrers={target: _related_there(query, content, trees, target, reader.session) for target in unknown},
        created=_creation_date(content, reader) if query.dated else None,
    )


def _has_root(there: object, root: Descriptor) -> bool:
    return isinstance(there, Descriptor) and there.digest == root.digest


def _lacks_manifests(query: ImageQuery, target: Reference, root: Descriptor, session: Session) -> bool:
    """Return True if a target without a record has the index `root` and lacks manifests of the wanted platforms.

    The record of a target has the published platforms. Without a record, only the target knows: an earlier copy may have
    published fewer platforms of the same index. The index is read at the target, so the source counts no pull.
    """
    if target not in query.unrecorded or root.kind != "index" or query.force or query.rewritten:
        return False
    children = Reader(session, session.remotes.open_origin(target), target, keep=False).children(query.platforms)
    place = session.remotes.open_target(target)
    found = walk_tree(lambda one: children(one) if one.kind == "index" else (), root)
    try:
        return not all(place.has(one) for one in found if one.is_manifest and one is not root)
    except NotFound:
        return True


def _all_related(
    query: ImageQuery, content: Sequence[Descriptor], children: Children, reader: Reader
) -> tuple[dict[Digest, Referrer], dict[Digest, tuple[Descriptor, ...]]]:
    """Return the related manifests of an image at its source, and the manifests in the tree of each, both by digest."""
    trees: dict[Digest, tuple[Descriptor, ...]] = {}

    def manifests_of(root: Descriptor) -> tuple[Descriptor, ...]:
        tree = walk_tree(children, root) if root.kind == "index" else (root,)
        return trees.setdefault(root.digest, tuple(one for one in tree if one.is_manifest))

    def referrers_of(subject: Descriptor) -> tuple[Referrer, ...]:
        return list_at_source(reader.session, subject, query.source, query.related, read=reader.read, verified=query.verified)

    subjects = [descriptor for descriptor in content if descriptor.is_manifest] if query.related else []
    return find_all_related(subjects, referrers_of, manifests_of, at=str(query.source)), trees


def _related_there(
    query: ImageQuery,
    content: Sequence[Descriptor],
    trees: Mapping[Digest, tuple[Descriptor, ...]],
    target: Reference,
    session: Session,
) -> dict[Digest, str | None]:
    """Return the digests and tags of related manifests at a target; of manifests unknown at the source, no referrers."""
    subjects = [descriptor for descriptor in content if descriptor.is_manifest]
    found = find_all_related(
        subjects,
        lambda one: list_at_target(session, one, target, query.related),
        lambda root: trees.get(root.digest, ()),
        at=str(query.source),
    )
    return {digest: referrer.tag for digest, referrer in found.items()}


def _creation_date(content: Sequence[Descriptor], reader: Reader) -> datetime | None:
    """Return the creation date of an image's first platform. The platforms of an image are built together."""
    configured = next((descriptor for descriptor in content if descriptor.kind == "config"), None)
    return None if configured is None else config.creation_date(reader.read(configured), at=str(configured))


def _written(selected: FilteredIndex, reader: Reader) -> tuple[Descriptor, ...]:
    """Return the distinct content of a tree with rewritten indexes."""
    new = {index.digest: index.data for index in selected.indexes}
    children = children_reader(lambda descriptor: new.get(descriptor.digest) or reader.read(descriptor))
    return tuple(walk_tree(children, selected.root))


def _read_verified(source: Source, descriptor: Descriptor) -> bytes:
    raw = descriptor.data if descriptor.data is not None else b"".join(source.fetch(descriptor))
    return descriptor.verify(raw, source="the source")
