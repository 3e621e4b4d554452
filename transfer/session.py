"""The resources that the tasks of a run share: the store, the registries, and the cancel token.

A run opens its session from a small, picklable specification and closes it; tasks find it through `current_session`. Nothing of
it is ever a task's parameter: Prefect would walk through it, hash it and show it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from prefect_dist.ocispec import Descriptor, Digest, Reference
from prefect_dist.ocispec.children import children_reader, without_missing_attestations
from prefect_dist.ocispec.errors import DistError
from prefect_dist.ocispec.referrers import Referrer
from prefect_dist.remotes import (
    Credentials,
    CredentialSource,
    DockerConfig,
    Registries,
    RegistrySettings,
    Source,
    StaticCredentials,
    chain_sources,
)
from prefect_dist.storage import ContentStore, open_store
from prefect_dist.storage.leases import Lease
from prefect_dist.transfer import content as transfer
from prefect_dist.transfer import gate, repair_source, survey
from prefect_dist.transfer.audit import Auditor, Expected, Finding
from prefect_dist.transfer.cancellation import CancelToken, Stopped, current_token
from prefect_dist.transfer.delivery import Delivery, Publication, Receipts
from prefect_dist.transfer.events import Notify, Throttled, ignore_event
from prefect_dist.transfer.gate import Candidate, Gate
from prefect_dist.transfer.offline import Stored
from prefect_dist.transfer.recorder import ImageRecorder
from prefect_dist.transfer.related import Related, RelatedLookup
from prefect_dist.transfer.removal import Removed, Remover, UnwantedTag
from prefect_dist.transfer.stats import ByteCounter, TransferStats
from prefect_dist.transfer.survey import ImageQuery, QueryResult, Reader

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSpec:
    """The specification of a session. `store` is a path or fsspec URL.

    `store_options` are fsspec's, and may be secret. `credentials` are by registry, as `StaticCredentials` takes them; `ways`
    say where there could be more, see `remotes.credentials`. With `offline`, images come only from the store.
    """

    store: str
    store_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    registries: RegistrySettings = field(default_factory=RegistrySettings)
    credentials: Mapping[str, Credentials] = field(default_factory=dict, repr=False)
    ways: tuple[str, ...] = ()
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
        notify: Notify,
        cancel: CancelToken,
    ) -> None:
        self.spec = spec
        self.store = store
        self.registries = registries
        self.cancel = cancel
        self.recorder = ImageRecorder(store, lease, offline=spec.offline)
        # Targets are read at their own registry, not at a mirror of it.
        self.notify = notify
        self._received, self._sent = ByteCounter(notify, cancel), ByteCounter(notify, cancel)
        self._delivery = Delivery(
            self.recorder, source=registries.origin_fetcher, pusher=registries.pusher, received=self._received, sent=self._sent
        )
        self._found: dict[ImageQuery, QueryResult] = {}
        self._tags: dict[Reference, tuple[str, ...]] = {}
        self._ahead: dict[object, transfer.Receipt] = {}
        self._related = RelatedLookup(self._source, registries.origin_fetcher, self._own_tags, offline=spec.offline)
        self._auditors: dict[tuple[Expected, ...], Auditor] = {}
        self._removers: dict[str, Remover] = {}  # by repository
        self.failing: set[str] = set()  # hosts that refused some content in all attempts; changed in single steps

    @property
    def stats(self) -> TransferStats:
        """Return the counts so far."""
        counter = self._delivery.counter
        return TransferStats(
            received=self._received.total,
            sent=self._sent.total,
            mounted=counter.mounted,
            existed=counter.existed,
            mounted_bytes=counter.mounted_bytes,
            existed_bytes=counter.existed_bytes,
        )

    def resolve(self, reference: Reference) -> Descriptor:
        """Return the descriptor that a reference resolves to now."""
        with self._raising_stopped():
            return self._source(reference).resolve(reference)

    def tags(self, repositories: Sequence[Reference], *, workers: int) -> list[tuple[str, ...] | DistError]:
        """Return the tags of each repository, or the error of its list. A repository is listed once in a run."""

        def list_one(repository: Reference) -> tuple[str, ...] | DistError:
            return self._value_or_error(lambda: tuple(self._source(repository).tags()))

        new = [repository for repository in repositories if repository not in self._tags]
        with ThreadPoolExecutor(workers) as executor:
            found = dict(zip(new, executor.map(list_one, new), strict=True))
        self._tags |= {repository: tags for repository, tags in found.items() if isinstance(tags, tuple)}
        return [found.get(repository) or self._tags[repository] for repository in repositories]

    def repositories(self, host: str) -> tuple[str, ...]:
        """Return the repositories of a registry."""
        with self._raising_stopped():
            return tuple(self.registries.repositories(host))

    def referrers(self, subject: Descriptor, reference: Reference, related: Related) -> tuple[Referrer, ...]:
        """Return the manifests in a source repository that refer to `subject`, see `transfer.related`."""
        with self._raising_stopped():
            return self._related.at_source(subject, reference, related, read=partial(self._fetch_ahead, reference))

    def _fetch_ahead(self, reference: Reference, descriptor: Descriptor) -> bytes:
        """Fetch a manifest whose unit of work follows. That unit gets the receipt."""
        receipt = self._fetch(descriptor, reference)
        if receipt.status == "fetched":
            self._ahead[descriptor.key] = receipt
        return self.store.manifest(descriptor)

    def _own_tags(self, place: Reference) -> Iterable[str]:
        """Return the tags of a repository as its registry lists them. Mirrors of the registry may list others."""
        known = self._tags.get(Reference.parse(place.locator))
        if known is not None and not self.spec.registries.hosts.settings_for(place.host).mirrors:
            return known
        return self.registries.origin_fetcher(place).tags()

    def fetch(self, descriptor: Descriptor, reference: Reference) -> tuple[transfer.Receipt, tuple[Descriptor, ...]]:
        """Fetch a descriptor's content from a repository into the store. Return the receipt and the children."""
        children = children_reader(self.store.manifest)
        if self.spec.offline:
            children = without_missing_attestations(children, lambda child: not self.store.holds(child))
        with self._raising_stopped():
            receipt = self._fetch(descriptor, reference)
            return self._ahead.pop(descriptor.key, receipt), tuple(children(descriptor))

    def _fetch(self, descriptor: Descriptor, reference: Reference) -> transfer.Receipt:
        source = self._source(reference)
        return transfer.fetch(self.store, source, descriptor, notify=self._received, pause=self.cancel.pause)

    def find(self, queries: Sequence[ImageQuery], *, keep: bool, workers: int) -> list[QueryResult]:
        """Return the results of queries, see `transfer.survey`. A result without an error is kept for the run."""

        def find_one(query: ImageQuery) -> QueryResult:
            try:
                with self._raising_stopped():
                    found = survey.find(query, self._reader(query.source, keep=keep), self._delivery.resolve, self._related)
                    if found.errors:  # which a stop may have caused
                        self.cancel.check()
                    return found
            except Stopped as exc:  # the results of other queries stay
                return QueryResult(query=query, image=exc, standing=(exc,) * len(query.targets))

        new = [query for query in queries if query not in self._found]
        with ThreadPoolExecutor(workers) as executor:
            found = dict(zip(new, executor.map(find_one, new), strict=True))
        self._found |= {query: one for query, one in found.items() if not one.errors}
        return [found.get(query) or self._found[query] for query in queries]

    def deliver(self, blob: Descriptor, place: Reference, *, origin: Reference | None = None) -> transfer.Receipt:
        """Put a blob into the repository of `place`, see `transfer.delivery`."""
        with self._raising_stopped():
            return self._delivery.deliver(blob, place, origin=origin)

    def judge(self, judge: Gate, reference: Reference, root: Descriptor) -> str | None:
        """Return the reason why a gate vetoes an image, None if it passes; see `transfer.gate`."""
        candidate = Candidate(reference=reference, digest=root.digest, store=self.store.url)
        with self._raising_stopped():
            return gate.ask(judge, candidate, check=self.cancel.check)

    def has_image(self, root: Descriptor, target: Reference) -> bool:
        """Return whether `target` resolves to `root` at its registry, see `transfer.delivery`."""
        with self._raising_stopped():
            return self._delivery.has_image(root, target)

    def publish(self, wanted: Publication) -> Receipts:
        """Push all of an image to its target, and set its tag, see `transfer.delivery`."""
        with self._raising_stopped():
            return self._delivery.publish(wanted)

    def receipts(self, wanted: Publication) -> Receipts:
        """Return the receipts of a publication that failed."""
        return self._delivery.receipts(wanted)

    def remove(self, target: Reference, unwanted: Sequence[UnwantedTag], *, known: Iterable[str] = (), workers: int) -> Removed:
        """Remove one of the `unwanted` tags of its repository; `known` tags may exist there. See `transfer.removal`."""
        with self._raising_stopped():
            if target.locator not in self._removers:
                self._removers[target.locator] = self._remover(target, workers=workers)
            remover = self._removers[target.locator]
            remover.allow(unwanted)
            remover.add_known(known)
            return remover.remove(str(target.tag))

    def _remover(self, place: Reference, *, workers: int) -> Remover:
        source = self.registries.origin_fetcher(place)
        return Remover(
            place,
            source=source,
            pusher=self.registries.pusher(place),
            resolve=self._delivery.resolve,
            read=Reader(store=self.store, source=source, keep=False, notify=self._received).read,
            workers=workers,
        )

    def confirm_referrers(self, repository: Reference) -> list[tuple[frozenset[Digest], DistError]]:
        """List referrers again that this run listed under fallback tags and that others have overwritten since.

        Return the referrers that are still not listed, or for which that is not known, with the error.
        """
        pusher, failed = self.registries.pusher(repository), list[tuple[frozenset[Digest], DistError]]()
        for subject, referrers in pusher.fallback_referrers.items():
            error = self._value_or_error(partial(pusher.confirm_referrers, subject))
            if error is not None:
                failed.append((referrers, error))
        return failed

    def audit(self, expected: Sequence[Expected]) -> list[Finding | DistError]:
        """Return the result of an audit of each of some tags of one repository, or why it failed; see `transfer.audit`.

        After a failure, what is known is kept until these very tags are audited again without one.
        """
        place, key = expected[0].target, tuple(expected)
        auditor = self._auditors.pop(key, None) or Auditor(self.registries.origin_fetcher(place), self.registries.pusher(place))
        findings = [self._value_or_error(partial(auditor.audit, one)) for one in expected]
        if any(isinstance(one, DistError) for one in findings):
            self._auditors[key] = auditor
        return findings

    def locate(self, origin: Reference, expected: Expected, *, rewritten: bool) -> tuple[Descriptor, tuple[Referrer, ...]]:
        """Return the root and the referrers that a target should have, see `transfer.repair_source`."""
        reader = self._reader(origin, keep=True)
        with self._raising_stopped():
            root = repair_source.locate(origin, expected, reader, rewritten=rewritten)
            return root, repair_source.referrers(origin, expected, reader)

    def _value_or_error(self, ask: Callable[[], T]) -> T | DistError:
        try:
            with self._raising_stopped():
                return ask()
        except Stopped:
            raise
        except DistError as exc:
            return exc

    def _reader(self, reference: Reference, *, keep: bool) -> Reader:
        source, offline = self._source(reference), self.spec.offline
        return Reader(store=self.store, source=source, keep=keep, notify=self._received, is_offline=offline)

    def _source(self, reference: Reference) -> Source:
        """Return the source of an image: the store or its registry."""
        return Stored(self.store, reference) if self.spec.offline else self.registries.fetcher(reference)

    @contextmanager
    def _raising_stopped(self) -> Iterator[None]:
        """Raise `Stopped` instead of any error of this block if the run is cancelled: that aborts the connections."""
        self.cancel.check()
        try:
            yield
        except DistError:
            self.cancel.check()
            raise


_CURRENT: ContextVar[Session] = ContextVar("session")
_GIVEN: ContextVar[tuple[tuple[CredentialSource, str | None], ...]] = ContextVar("given", default=())


def current_session() -> Session:
    """Return the session of the run that this task belongs to. Prefect's thread runner copies it into its threads."""
    return _CURRENT.get()


@contextmanager
def use_credentials(credentials: CredentialSource, *, way: str | None) -> Iterator[None]:
    """Have sessions that are opened in this block look here first for credentials. They are no parameters of runs.

    `way` says how the user gives them, see `remotes.credentials`; None is not mentioned in messages.
    """
    token = _GIVEN.set(((credentials, way),))
    try:
        yield
    finally:
        _GIVEN.reset(token)


@contextmanager
def open_session(spec: SessionSpec, *, notify: Notify = ignore_event) -> Iterator[Session]:
    """Open a session for a run. Leaving the block ends what is still in flight.

    Raises:
        InvalidInput: an unusable store or a damaged Docker configuration file.
    """
    given = _GIVEN.get()
    sources = (*(source for source, _ in given), StaticCredentials(spec.credentials).get, DockerConfig.load().get)
    ways = (*(way for _, way in given if way is not None), *spec.ways)
    cancel = current_token()

    def throttled(server: str, seconds: float) -> None:
        notify(Throttled(server, seconds))

    with (
        open_store(spec.store, options=spec.store_options) as store,
        store.leases.hold() as lease,
        Registries(spec.registries, credentials=chain_sources(*sources), ways=ways, left_alone=throttled) as registries,
        cancel.on_cancel(registries.abort),
    ):
        session = Session(spec, store, lease, registries, notify=notify, cancel=cancel)
        token = _CURRENT.set(session)
        try:
            yield session
        except BaseException:
            cancel.set("the run was ended")
            registries.abort()
            raise
        finally:
            _CURRENT.reset(token)
