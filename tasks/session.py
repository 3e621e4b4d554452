"""What the tasks of a run share: the store, the registries, and whether to stop. No Prefect here.

A run opens its session from a small, picklable specification and closes it; tasks find it through `current`. Nothing of it is
ever a task's parameter: Prefect would walk through it, hash it and show it.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

from ocispec import Descriptor, Digest, Platform, Reference
from ocispec.errors import DistError, InvalidInput, NotFound
from ocispec.handlers import Handler, chain, children_handler, filter_platforms
from ocispec.platform import Platforms
from ocispec.referrers import Referrer
from ocispec.selected import select
from remotes import (
    Credentials,
    CredentialSource,
    DockerConfig,
    Given,
    Registries,
    RegistryError,
    RegistrySettings,
    Source,
    first_of,
)
from storage import ContentStore, Name, completeness, open_store
from storage.completeness import Completeness
from storage.leases import Lease
from tasks import gate, removal, stopping, survey, transfer
from tasks.delivery import Delivery, Publication
from tasks.gate import Candidate, Gate
from tasks.offline import Stored
from tasks.removal import Removed
from tasks.stopping import Stopping
from tasks.survey import Ask, Found, Reader, Related

# How a registry refuses an index that names what it has not (distribution-spec 1.1, "Error Codes").
_INCOMPLETE = "MANIFEST_BLOB_UNKNOWN"
_NO_SPARSE = (
    "this registry takes no index of which some platforms are missing: mirror all of them, or have a new index made of those "
    "that are wanted (rewriteIndex)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSpec:
    """What a session is opened from. `store` is a path or fsspec URL.

    `store_options` are fsspec's, and may be secret. `credentials` are by registry, as `remotes.Given` takes them. `offline`
    images come from the store alone, and no source is asked.
    """

    store: str
    store_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    registries: RegistrySettings = field(default_factory=RegistrySettings)
    credentials: Mapping[str, Credentials] = field(default_factory=dict, repr=False)
    offline: bool = False


class Session:
    """The resources of one run. Thread-safe."""

    def __init__(
        self,
        spec: SessionSpec,
        store: ContentStore,
        lease: Lease,
        registries: Registries,
        *,
        observer: transfer.Observer,
        stopping: Stopping,
    ) -> None:
        self.spec = spec
        self.store = store
        self.registries = registries
        self.stopping = stopping
        # Mirrors of a target are not asked: what counts is what it has itself.
        self._delivery = Delivery(store, source=registries.itself, pusher=registries.pusher, observer=self)
        self._observer = observer
        self._lease = lease
        self._found: dict[Ask, Found] = {}

    def look(self, reference: Reference, root: Descriptor, *, platforms: Platforms = None) -> Completeness:
        """What the store has of an image: if that is all, its name is recorded; if not, gc is kept from it meanwhile.

        `platforms` are those that are wanted of an index; None is all of them.

        Raises:
            NotFound: it is all there but for other platforms.
        """
        with self.store.unswept():
            found = completeness.check(self.store, root, children=self._children(platforms))
            if found.whole:
                self._name(reference, root, platforms=platforms)
        if not found.whole:
            self._lease.take(root)
        return found

    def hold(self, root: Descriptor, *, platforms: Platforms = None) -> Completeness:
        """What the store has of a tree, all of which gc is kept from until the run ends."""
        self._lease.take(root)
        with self.store.unswept():
            return completeness.check(self.store, root, children=self._children(platforms))

    def record(
        self,
        reference: Reference,
        root: Descriptor,
        *,
        platforms: Platforms = None,
        referrers: tuple[Referrer, ...] | None = None,
    ) -> None:
        """Record the name of an image with its `referrers`, after a last look that nothing of them is missing.

        No referrers, None, says that nobody asked for them: those that are known of the same content stay.

        Raises:
            NotFound: something is, or it is all there but for other platforms; the name is not recorded.
        """
        roots = (root, *(referrer.descriptor for referrer in referrers or ()))
        with self.store.unswept():
            completeness.require(self.store, *roots, children=self._children(platforms), name=str(reference))
            self._name(reference, root, platforms=platforms, referrers=referrers)

    def _name(
        self, reference: Reference, root: Descriptor, *, platforms: Platforms, referrers: tuple[Referrer, ...] | None = None
    ) -> None:
        if platforms is not None:
            completeness.refuse_other_platforms(self.store, root, platforms)
        known = self._known(str(reference), root)
        if known is not None:
            platforms = _joined(known.platforms, platforms)
            referrers = known.referrers if referrers is None else referrers
        self.store.names.put(str(reference), root, source=reference.locator, platforms=platforms, referrers=referrers or ())

    def _known(self, name: str, root: Descriptor) -> Name | None:
        """The record of a name, if it stands for this content already."""
        try:
            known = self.store.names.get(name)
        except (NotFound, InvalidInput):
            return None
        return known if known.descriptor.digest == root.digest else None

    def _children(self, platforms: Platforms) -> Handler:
        return filter_platforms(children_handler(self.store.manifest), platforms)

    def resolve(self, reference: Reference) -> Descriptor:
        """The descriptor that a reference stands for now."""
        with self._endable():
            return self._source(reference).resolve(reference)

    def tags(self, repository: Reference) -> tuple[str, ...]:
        """The tags of a repository."""
        with self._endable():
            return tuple(self._source(repository).tags())

    def repositories(self, host: str) -> tuple[str, ...]:
        """The repositories of a registry."""
        with self._endable():
            return tuple(self.registries.repositories(host))

    def referrers(self, subject: Descriptor, reference: Reference, related: frozenset[Related]) -> tuple[Referrer, ...]:
        """The manifests about `subject` in a repository, see `tasks.survey`."""
        with self._endable():
            return survey.related_to(subject, self._source(reference), related)

    def fetching(self, reference: Reference, receipts: list[transfer.Receipt]) -> Handler:
        """The handler that fetches a descriptor from a repository, then answers with its children."""
        source = self._source(reference)
        fetch = transfer.fetch_handler(self.store, source, observer=self, pause=self.stopping.pause, receipts=receipts)
        handler = chain(fetch, children_handler(self.store.manifest))

        def handle(descriptor: Descriptor) -> Sequence[Descriptor]:
            with self._endable():
                return handler(descriptor)

        return handle

    def find(self, asks: Sequence[Ask], *, keep: bool, workers: int) -> list[Found]:
        """What stands for what, see `tasks.survey`; what was found without an error is not asked again in this run."""

        def find_one(ask: Ask) -> Found:
            reader = Reader(store=self.store, source=self._source(ask.source), keep=keep, observer=self)
            with self._endable():
                return survey.find(ask, reader, self._delivery.standing)

        new = [ask for ask in asks if ask not in self._found]
        with ThreadPoolExecutor(workers) as executor:
            found = dict(zip(new, executor.map(find_one, new), strict=True))
        self._found |= {ask: one for ask, one in found.items() if not one.errors}
        return [found.get(ask) or self._found[ask] for ask in asks]

    def deliver(self, blob: Descriptor, place: Reference) -> transfer.Receipt | None:
        """Bring a blob to the repository of `place`, see `tasks.delivery`."""
        with self._endable():
            return self._delivery.deliver(blob, place)

    def judge(self, judge: Gate, reference: Reference, root: Descriptor) -> str | None:
        """Why an image is not to be published, see `tasks.gate`."""
        candidate = Candidate(reference=reference, digest=root.digest, store=self.store.url)
        with self._endable():
            return gate.ask(judge, candidate, check=self.stopping.check)

    def publish(self, wanted: Publication) -> tuple[transfer.Receipt, ...]:
        """Bring all of an image to its target, and set its tag, see `tasks.delivery`."""
        with self._endable():
            root, platforms = wanted.root, wanted.platforms
            if wanted.rewritten and platforms is not None:
                root, platforms = self._selected(root, platforms, wanted.target), None
            kept = self._back_up(wanted, root) if wanted.backup is not None else ()
            children = self._children(platforms)
            try:
                return (*kept, *self._delivery.publish(root, wanted.target, children=children, referrers=wanted.referrers))
            except RegistryError as exc:
                if platforms is not None and any(code.startswith(_INCOMPLETE) for code in exc.exchange.codes):
                    raise type(exc)(f"{exc}; {_NO_SPARSE}", exc.exchange) from exc
                raise

    def _selected(self, root: Descriptor, platforms: tuple[Platform, ...], reference: Reference) -> Descriptor:
        """The root of a tree for some platforms alone, whose new indexes are in the store until the run ends."""
        selected = select(root, platforms, self.store.manifest)
        self._lease.take(selected.root)
        for index in selected.indexes:
            transfer.fetch(
                self.store, self._source(reference), index, observer=self
            )  # asks nobody: the descriptor has its bytes
        return replace(selected.root, data=None)

    def _back_up(self, wanted: Publication, root: Descriptor) -> tuple[transfer.Receipt, ...]:
        """Keep what is about to be overwritten. It is asked for anew: other runs may have changed it since the plan."""
        old = self._delivery.standing(wanted.target)
        if wanted.backup is None or old is None or old.digest == root.digest:
            return ()
        self._lease.take(old)
        return self._delivery.back_up(old, wanted.target, wanted.backup)

    def remove(self, target: Reference, digest: Digest, doomed: frozenset[Reference]) -> Removed:
        """Remove a tag, see `tasks.removal`."""
        with self._endable():
            return removal.remove(target, digest, doomed=doomed, registries=self.registries, standing=self._delivery.standing)

    def stands(self, target: Reference, descriptor: Descriptor) -> bool:
        """Whether `target` stands for `descriptor` at its registry, whatever mirrors of that say."""
        with self._endable():
            return self.registries.pusher(target).has(descriptor, tag=target.tag)

    def push(self, descriptor: Descriptor, target: Reference, *, source: str | None, tag: str | None) -> transfer.Receipt:
        """Bring a descriptor's content to the repository of `target`, and set a tag there: see `tasks.transfer.push`."""
        with self._endable():
            return transfer.push(self.store, self.registries.pusher(target), descriptor, source=source, tag=tag, observer=self)

    def advanced(self, descriptor: Descriptor, offset: int, gained: int) -> None:
        """Pass on how a transfer goes, and end it if the run is to stop."""
        self.stopping.check()
        self._observer.advanced(descriptor, offset, gained)

    def _source(self, reference: Reference) -> Source:
        """Where an image comes from."""
        return Stored(self.store, reference) if self.spec.offline else self.registries.fetcher(reference)

    @contextmanager
    def _endable(self) -> Iterator[None]:
        """Work that a stop breaks off: what fails because connections were cut has `Stopped` for its reason."""
        self.stopping.check()
        try:
            yield
        except DistError:
            self.stopping.check()
            raise


def _joined(one: Platforms, other: Platforms) -> Platforms:
    """The platforms of two runs; None is all."""
    return None if one is None or other is None else tuple(dict.fromkeys((*one, *other)))


_CURRENT: ContextVar[Session] = ContextVar("session")
_GIVEN: ContextVar[CredentialSource | None] = ContextVar("given", default=None)


def current() -> Session:
    """The session of the run that this task belongs to. Prefect's thread runner carries it into its threads."""
    return _CURRENT.get()


@contextmanager
def known(credentials: CredentialSource) -> Iterator[None]:
    """Have sessions that are opened in this block ask here first for credentials: what is typed is nobody's parameter."""
    token = _GIVEN.set(credentials)
    try:
        yield
    finally:
        _GIVEN.reset(token)


@contextmanager
def open_session(spec: SessionSpec, *, observer: transfer.Observer) -> Iterator[Session]:
    """A session for the length of a run; leaving it stops what is still under way.

    Raises:
        InvalidInput: an unusable store or a damaged Docker configuration file.
    """
    given = _GIVEN.get()
    sources = (*((given,) if given else ()), Given(spec.credentials).get, DockerConfig.load().get)
    stop = stopping.current()
    with (
        open_store(spec.store, options=spec.store_options) as store,
        store.leases.hold() as lease,
        Registries(spec.registries, credentials=first_of(*sources)) as registries,
        stop.heard(registries.abort),
    ):
        session = Session(spec, store, lease, registries, observer=observer, stopping=stop)
        token = _CURRENT.set(session)
        try:
            yield session
        except BaseException:
            stop.set("the run was ended")
            registries.abort()
            raise
        finally:
            _CURRENT.reset(token)
