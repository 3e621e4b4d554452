"""Publishes images from the store: backups, the missing content in order, and the tag last."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from prefect_dist.ocispec import Descriptor, Digest, Platform, Reference
from prefect_dist.ocispec.children import Children, children_reader, walk_tree, without_foreign
from prefect_dist.ocispec.errors import Conflict, NotFound
from prefect_dist.ocispec.index_filter import filter_index
from prefect_dist.ocispec.platform import Platforms
from prefect_dist.ocispec.referrers import Referrer
from prefect_dist.remotes import RegistryError
from prefect_dist.storage import presence
from prefect_dist.storage.presence import present_children
from prefect_dist.transfer import content
from prefect_dist.transfer.delivery import deliver, has_written, put_manifest
from prefect_dist.transfer.fetching import fetch_content
from prefect_dist.transfer.listing import resolve_target
from prefect_dist.transfer.push_order import push_order
from prefect_dist.transfer.session import Session

# The error codes of a registry that lacks content of an index (distribution-spec 1.1, "Error Codes").
_INCOMPLETE = ("MANIFEST_BLOB_UNKNOWN", "MANIFEST_UNKNOWN")
_NO_SPARSE = "this registry accepts no sparse index, but demands the missing manifests"
_SELECTED_REMEDY = "publish all platforms, or a new index of the selected platforms (rewriteIndex, --rewrite-index)"
_STORED_REMEDY = "push the image of one platform (--platform), or fetch all platforms and push the whole index"


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Publication:
    """An image of the store, and the tag to publish the image under.

    Attributes:
        replaces: the digest of the tag when the publication was planned; None if the tag did not exist.
        platforms: the wanted platforms of an index; None is every platform.
        rewritten: the target gets a new index of the wanted platforms.
        referrers: the referrers to publish with the image.
        backup: the tag for the previous manifest of the target tag.
        is_stored: the platforms are those in the store, which the user did not select.
    """

    root: Descriptor
    target: Reference
    replaces: Digest | None = None
    platforms: Platforms = None
    rewritten: bool = False
    referrers: tuple[Referrer, ...] = ()
    backup: Reference | None = None
    is_stored: bool = False


def publish(session: Session, wanted: Publication) -> Descriptor:
    """Push the missing content of an image, in order, and set the tag last. Return the root at the target.

    Raises:
        NotFound: content of the image is not in the store.
        Conflict: the tag moved since the publication was planned. The tag stays unchanged.
        DistError: see `transfer.content`. The next attempt skips pushed content.
    """
    root, platforms = wanted.root, wanted.platforms
    if wanted.rewritten and platforms is not None:
        root, platforms = _select_platforms(session, wanted, platforms), None
    if wanted.backup is not None:
        _back_up(session, _require_unmoved(session, wanted, root), wanted.target, root, wanted.backup)
    try:
        check = partial(_require_unmoved, session, wanted, root)
        children = session.recorder.children(platforms)
        _push_tree(session, root, wanted.target, children, wanted.referrers, before_last=check)
    except RegistryError as exc:
        is_incomplete = not exc.retryable and any(code.startswith(_INCOMPLETE) for code in exc.exchange.codes)
        if platforms is None or not is_incomplete:
            raise
        remedy = _STORED_REMEDY if wanted.is_stored else _SELECTED_REMEDY
        raise type(exc)(f"{exc}; {_NO_SPARSE}; {remedy}", exc.exchange) from exc
    return root


def _select_platforms(session: Session, wanted: Publication, platforms: tuple[Platform, ...]) -> Descriptor:
    """Return the root of a tree with only these platforms. The store keeps the new indexes until the run ends."""
    selected = filter_index(wanted.root, platforms, session.store.manifest, is_missing=session.recorder.is_missing)
    unused = session.remotes.open_origin(wanted.target)  # the descriptors of new indexes contain their bytes
    session.recorder.keep(selected.root)
    for index in selected.indexes:
        fetch_content(session, index, unused, place=wanted.target)
    return replace(selected.root, data=None)


def _require_unmoved(session: Session, wanted: Publication, root: Descriptor) -> Descriptor | None:
    """Return the current descriptor of the target tag, or None if the tag does not exist.

    Raises:
        Conflict: the descriptor is neither `root` nor the descriptor of the plan, and not a list that this run has written.
    """
    found = resolve_target(session, wanted.target)
    is_expected = found is None or found.digest in (wanted.replaces, root.digest) or has_written(session, wanted.target)
    if found is not None and not is_expected:
        before = wanted.replaces or "no manifest"
        raise Conflict(
            f"target tag moved from {before} to {found.digest} since the plan was made; run again", subject=wanted.target
        )
    return found


def _back_up(session: Session, old: Descriptor | None, target: Reference, new: Descriptor, backup: Reference) -> None:
    """Set the tag `backup` to `old`, the current manifest of the target tag, unless the target tag stays unchanged."""
    pusher = session.remotes.open_target(backup)
    if old is None or old.digest == new.digest or pusher.has(old, tag=backup.tag):
        return
    session.recorder.keep(old)
    if backup.locator == target.locator:
        fetch_content(session, old, session.remotes.open_origin(target), place=target)
        content.put(session.store, pusher, old, tag=backup.tag, notify=session.counter.sent)
        return
    _fetch_tree(session, old, target)
    _push_tree(session, old, backup, present_children(session.store))


def _fetch_tree(session: Session, root: Descriptor, target: Reference) -> None:
    """Fetch a tree from a target. Manifests in an index may be missing: a target may have only some platforms."""
    source = session.remotes.open_origin(target)
    read, missing = children_reader(session.store.manifest), set[object]()

    def children(descriptor: Descriptor) -> Sequence[Descriptor]:
        return () if descriptor.key in missing else read(descriptor)

    for descriptor in walk_tree(children, root):
        try:
            fetch_content(session, descriptor, source, place=target)
        except NotFound:
            if descriptor is root or not descriptor.is_manifest:
                raise
            missing.add(descriptor.key)


def _push_tree(
    session: Session,
    root: Descriptor,
    target: Reference,
    children: Children,
    referrers: Sequence[Referrer] = (),
    *,
    before_last: Callable[[], object] = lambda: None,
) -> None:
    """Push a tree and the referrers. The last step sets the target tag."""
    wanted = without_foreign(children)
    roots = (root, *(referrer.descriptor for referrer in referrers))
    found = presence.require(session.store, *roots, children=wanted, name=str(target))
    *others, last = push_order(session.store, found, wanted, root=root, tag=target.tag, referrers=referrers)
    for descriptor, tag in others:
        _push(session, descriptor, target, tag)
    before_last()
    descriptor, tag = last
    _push(session, descriptor, target, tag)


def _push(session: Session, descriptor: Descriptor, target: Reference, tag: str | None) -> None:
    if descriptor.is_manifest:
        put_manifest(session, descriptor, target, tag)
    else:
        deliver(session, descriptor, target)
