"""What stands for what, before a mirror begins: an image's tag at its source, and those at its targets. No Prefect here."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from ocispec import Descriptor, Digest, Reference, manifest
from ocispec.errors import Corrupt, DistError, InvalidInput, NotFound
from ocispec.handlers import Handler, children_handler, filter_platforms, visit
from ocispec.platform import Platforms
from remotes import Registries, Source
from storage import ContentStore
from tasks import transfer
from tasks.transfer import Observer, Receipt

T = TypeVar("T")


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Ask:
    """An image that may have to be brought to some places; `platforms` are those that are wanted of an index, None is all."""

    source: Reference
    targets: tuple[Reference, ...]
    platforms: Platforms = None


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Found:
    """What stands for an image at its source and, in the order of the targets, there; None is nothing.

    `content` is all that it consists of, where it has to be brought somewhere; `fetched` counts the bytes of it that were taken
    into the store already. An error is what was said instead.
    """

    ask: Ask
    root: Descriptor | DistError
    standing: tuple[Descriptor | DistError | None, ...]
    content: tuple[Descriptor, ...] | DistError = ()
    fetched: int = 0

    @property
    def errors(self) -> tuple[DistError, ...]:
        """All that went wrong."""
        return tuple(one for one in (self.root, self.content, *self.standing) if isinstance(one, DistError))


def find(ask: Ask, store: ContentStore, registries: Registries, *, keep: bool, observer: Observer) -> Found:
    """Ask what stands for an image now: one HEAD at the source and at each target.

    Where it has to be brought somewhere its manifests are read, too; with `keep` into the store, where a walk finds them.
    Mirrors of a target are not asked: what counts is what it has itself.
    """
    root = _or_error(lambda: registries.resolve(ask.source).descriptor)
    standing = tuple(_or_error(partial(_standing, registries, target)) for target in ask.targets)
    if isinstance(root, DistError) or all(_is(one, root) for one in standing):
        return Found(ask=ask, root=root, standing=standing)
    receipts: list[Receipt] = []
    read = _reader(store, registries.fetcher(ask.source), keep=keep, observer=observer, receipts=receipts)
    children = filter_platforms(children_handler(read), ask.platforms)
    content = _or_error(lambda: _content(root, children))
    fetched = sum(receipt.transferred for receipt in receipts)
    return Found(ask=ask, root=root, standing=standing, content=content, fetched=fetched)


def _standing(registries: Registries, target: Reference) -> Descriptor | None:
    try:
        return registries.itself(target).resolve(target)
    except NotFound:
        return None


def _is(standing: Descriptor | DistError | None, root: Descriptor) -> bool:
    """Whether nothing is to be done: it is there, or nobody can tell."""
    return isinstance(standing, DistError) or (standing is not None and standing.digest == root.digest)


def _content(root: Descriptor, children: Handler) -> tuple[Descriptor, ...]:
    """The distinct content of a tree."""
    found = {root.content: root}
    pending = [root]
    while pending:
        new = {child.content: child for child in visit(children, pending.pop()) if child.content not in found}
        found |= new
        pending += new.values()
    return tuple(found.values())


def _reader(
    store: ContentStore, source: Source, *, keep: bool, observer: Observer, receipts: list[Receipt]
) -> Callable[[Descriptor], bytes]:
    def read(descriptor: Descriptor) -> bytes:
        if keep:
            receipts.append(transfer.fetch(store, source, descriptor, observer=observer))
        if keep or store.holds(descriptor):
            return store.manifest(descriptor)
        return _verified(source, descriptor)

    return read


def _verified(source: Source, descriptor: Descriptor) -> bytes:
    if descriptor.size > manifest.MAX_BYTES:
        raise InvalidInput(f"{descriptor}: expected at most {manifest.MAX_BYTES} bytes, it is said to have {descriptor.size}")
    raw = b"".join(source.fetch(descriptor))
    found = Digest.of(raw, algorithm=descriptor.digest.algorithm)
    if found != descriptor.digest:
        raise Corrupt(f"{descriptor}: expected {descriptor.digest}, got {found}")
    return raw


def _or_error(ask: Callable[[], T]) -> T | DistError:
    try:
        return ask()
    except DistError as exc:
        return exc
