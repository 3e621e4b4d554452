"""Handlers: composable functions over descriptors, after containerd's `images/handlers.go`.

A handler works on one descriptor and answers with the descriptors to visit next. Handlers stack without knowing each other:

    fetch_image = chain(fetch_handler(…), filter_platforms(children_handler(store.read), platforms))
    dispatch(fetch_image, root, workers=4)

Two signals steer a walk from inside a handler: `SkipChildren` (this descriptor's children are not visited; its siblings are)
and `StopChain` (later handlers of a chain do not see this descriptor; what earlier ones answered stands).
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from prefect_dist.ocispec import manifest, mediatypes
from prefect_dist.ocispec.attestations import attested
from prefect_dist.ocispec.descriptor import Descriptor
from prefect_dist.ocispec.errors import NotFound, shown
from prefect_dist.ocispec.frontier import Frontier
from prefect_dist.ocispec.platform import Platform, best

Handler = Callable[[Descriptor], Sequence[Descriptor]]

# An index for more platforms than these, as none is in earnest, is not listed to its end in a message.
_LISTED = 20


class SkipChildren(Exception):
    """Raised by a handler: do not visit the children of this descriptor."""


class StopChain(Exception):
    """Raised by a handler in a chain: later handlers pass over this descriptor."""


def chain(*handlers: Handler) -> Handler:
    """One handler that runs several in order on a descriptor and concatenates what they answer."""

    def handle(descriptor: Descriptor) -> Sequence[Descriptor]:
        found: list[Descriptor] = []
        for handler in handlers:
            try:
                found.extend(handler(descriptor))
            except StopChain:
                break
        return found

    return handle


def visit(handler: Handler, descriptor: Descriptor) -> Sequence[Descriptor]:
    """Run `handler` on one descriptor the way every walk does: `SkipChildren` means that there is nothing below."""
    try:
        return handler(descriptor)
    except SkipChildren:
        return ()


def walk(handler: Handler, *roots: Descriptor) -> None:
    """Visit the trees below `roots` in sequence, depth first, siblings in order. The first error ends the walk."""
    pending = list(reversed(roots))
    while pending:
        pending.extend(reversed(visit(handler, pending.pop())))


def dispatch(handler: Handler, *roots: Descriptor, workers: int) -> None:
    """Visit the trees below `roots` with at most `workers` descriptors at once, equal descriptors once.

    The first error is raised when those under way have ended; none is started after it.
    """
    with ThreadPoolExecutor(workers) as executor:

        def start(descriptor: Descriptor) -> Future[Sequence[Descriptor]]:
            return executor.submit(visit, handler, descriptor)

        frontier = Frontier(start, window=workers)
        frontier.add(roots)
        for _, future in frontier:
            frontier.add(future.result())


def children_handler(read: Callable[[Descriptor], bytes]) -> Handler:
    """Answers with the children of manifests, whose bytes `read` gives; everything else is a leaf."""

    def handle(descriptor: Descriptor) -> Sequence[Descriptor]:
        raw = read(descriptor) if descriptor.is_manifest else b""
        return manifest.children(raw, descriptor.media_type, at=str(descriptor))

    return handle


def filter_platforms(handler: Handler, platforms: Iterable[Platform] | None) -> Handler:
    """Passes on, of an index's manifests, those that `serving` chooses; None passes all.

    The result raises:
        NotFound: see `serving`.
    """
    if platforms is None:
        return handler
    wanted = tuple(platforms)
    return lambda descriptor: serving(wanted, descriptor, handler(descriptor))


def serving(
    platforms: Sequence[Platform] | None, descriptor: Descriptor, children: Sequence[Descriptor]
) -> Sequence[Descriptor]:
    """Return the children of an index that serve `platforms` best, and the attestation manifests of these.

    All children are returned if `platforms` is None, or if the parent is no index.

    Raises:
        NotFound: nothing in the index serves any of them; the message lists what it has.
    """
    if platforms is None or descriptor.kind != "index" or not children:
        return children
    chosen = best(platforms, children)
    if not chosen:
        has = sorted({shown(str(child.platform)) for child in children})
        listed = ", ".join(has[:_LISTED]) + (f" and {len(has) - _LISTED} more" if len(has) > _LISTED else "")
        raise NotFound(f"{descriptor}: no manifest for {', '.join(map(str, platforms))}; it has {listed}")
    keys, digests = {id(child) for child in chosen}, {str(child.digest) for child in chosen}
    return tuple(child for child in children if id(child) in keys or attested(child) in digests)


def without_missing_attestations(handler: Handler, is_missing: Callable[[Descriptor], bool]) -> Handler:
    """Return a handler that passes on all but attestation manifests that are missing."""

    def handle(descriptor: Descriptor) -> Sequence[Descriptor]:
        return [child for child in handler(descriptor) if attested(child) is None or not is_missing(child)]

    return handle


def limit_manifests(handler: Handler, limit: int) -> Handler:
    """Passes on at most `limit` manifests of an index, the first ones; children of all else pass.

    The result raises:
        NotFound: an index that has none.
    """

    def handle(descriptor: Descriptor) -> Sequence[Descriptor]:
        found = handler(descriptor)
        if descriptor.kind != "index":
            return found
        if not found:
            raise NotFound(f"{descriptor}: lists no manifests")
        return found[:limit]

    return handle


def without_foreign(handler: Handler) -> Handler:
    """Passes on all but layers that are not to be distributed, if their descriptors say where else they are to be had."""

    def handle(descriptor: Descriptor) -> Sequence[Descriptor]:
        return [child for child in handler(descriptor) if not (mediatypes.is_foreign(child.media_type) and child.urls)]

    return handle
