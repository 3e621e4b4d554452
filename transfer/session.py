"""What the tasks of a run share: the store, the registries, and whether to stop.

A run opens its session from a small, picklable specification and closes it; tasks find it through `current`. Nothing of it is
ever a task's parameter: Prefect would walk through it, hash it and show it.
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
    Given,
    Registries,
    RegistrySettings,
    Source,
    first_of,
)
from prefect_dist.storage import ContentStore, open_store
from prefect_dist.storage.leases import Lease
from prefect_dist.transfer import cancellation as stopping
from prefect_dist.transfer import content as transfer
from prefect_dist.transfer import gate, survey
from prefect_dist.transfer import repair_source as locating
from prefect_dist.transfer.audit import Auditor, Expected, Finding
from prefect_dist.transfer.cancellation import Stopped, Stopping
from prefect_dist.transfer.delivery import Delivery, Publication
from prefect_dist.transfer.events import Notify, Throttled, ignore_event
from prefect_dist.transfer.gate import Candidate, Gate
from prefect_dist.transfer.offline import Stored
from prefect_dist.transfer.recorder import ImageRecorder
from prefect_dist.transfer.related import Related, RelatedLookup
from prefect_dist.transfer.removal import Removed, Remover, UnwantedTag
from prefect_dist.transfer.stats import Meter, Tally
from prefect_dist.transfer.survey import ImageQuery, QueryResult, Reader

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSpec:
    """What a session is opened from. `store` is a path or fsspec URL.

    `store_options` are fsspec's, and may be secret. `credentials` are by registry, as `remotes.Given` takes them; `ways` say
    where there could be more, see `remotes.credentials`. `offline` images come from the store alone, and no source is asked.
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
        stopping: Stopping,
    ) -> None:
        self.spec = spec
        self.store = store
        self.registries = registries
        self.stopping = stopping
        self.recorder = ImageRecorder(store, lease, offline=spec.offline)
        # Mirrors of a target are not asked: what counts is what it has itself.
        self.notify = notify
        self._received, self._sent = Meter(notify, stopping), Meter(notify, stopping)
        self._delivery = Delivery(
            self.recorder, source=registries.origin_fetcher, pusher=registries.pusher, received=self._received, sent=self._sent
        )
        self._found: dict[ImageQuery, QueryResult] = {}
        self._tags: dict[Reference, tuple[str, ...]] = {}
        self._ahead: dict[object, transfer.Receipt] = {}
        self._related = RelatedLookup(self._source, registries.origin_fetcher, self._own_tags, offline=spec.offline)
        self._auditors: dict[tuple[Expected, ...], Auditor] = {}
        self._removers: dict[str, Remover] = {}  # by repository
        self.failing: set[str] = set()  # hosts to which some content could not be brought after all attempts; single steps

    @property
    def tally(self) -> Tally:
        """What was moved so far."""
        counter = self._delivery.counter
        return Tally(
            received=self._received.total,
            sent=self._sent.total,
            mounted=counter.mounted,
            existed=counter.existed,
            mounted_bytes=counter.mounted_bytes,
            existed_bytes=counter.existed_bytes,
        )

    def resolve(self, reference: Reference) -> Descriptor:
        """The descriptor that a reference stands for now."""
        with self._endable():
            return self._source(reference).resolve(reference)

    def tags(self, repositories: Sequence[Reference], *, workers: int) -> list[tuple[str, ...] | DistError]:
        """The tags of some repositories, or why they cannot be had; what was listed is not asked for again in this run."""

        def list_one(repository: Reference) -> tuple[str, ...] | DistError:
            return self._told(lambda: tuple(self._source(repository).tags()))

        new = [repository for repository in repositories if repository not in self._tags]
        with ThreadPoolExecutor(workers) as executor:
            found = dict(zip(new, executor.map(list_one, new), strict=True))
        self._tags |= {repository: tags for repository, tags in found.items() if isinstance(tags, tuple)}
        return [found.get(repository) or self._tags[repository] for repository in repositories]

    def repositories(self, host: str) -> tuple[str, ...]:
        """The repositories of a registry."""
        with self._endable():
            return tuple(self.registries.repositories(host))

    def referrers(self, subject: Descriptor, reference: Reference, related: Related) -> tuple[Referrer, ...]:
        """Return the manifests in a source repository that refer to `subject`, see `transfer.related`."""
        with self._endable():
            return self._related.at_source(subject, reference, related, read=partial(self._fetch_ahead, reference))

    def _fetch_ahead(self, reference: Reference, descriptor: Descriptor) -> bytes:
        """Fetch a manifest whose unit of work follows. That unit gets the receipt."""
        receipt = self._fetch(descriptor, reference)
        if receipt.status == "fetched":
            self._ahead[descriptor.key] = receipt
        return self.store.manifest(descriptor)

    def _own_tags(self, place: Reference) -> Iterable[str]:
        """The tags of a repository as its registry lists them, whatever mirrors of that list."""
        known = self._tags.get(Reference.parse(place.locator))
        if known is not None and not self.spec.registries.hosts.of(place.host).mirrors:
            return known
        return self.registries.origin_fetcher(place).tags()

    def fetch(self, descriptor: Descriptor, reference: Reference) -> tuple[transfer.Receipt, tuple[Descriptor, ...]]:
        """Fetch a descriptor's content from a repository into the store. Return the receipt and the children."""
        children = children_reader(self.store.manifest)
        if self.spec.offline:
            children = without_missing_attestations(children, lambda child: not self.store.holds(child))
        with self._endable():
            receipt = self._fetch(descriptor, reference)
            return self._ahead.pop(descriptor.key, receipt), tuple(children(descriptor))

    def _fetch(self, descriptor: Descriptor, reference: Reference) -> transfer.Receipt:
        source = self._source(reference)
        return transfer.fetch(self.store, source, descriptor, notify=self._received, pause=self.stopping.pause)

    def find(self, queries: Sequence[ImageQuery], *, keep: bool, workers: int) -> list[QueryResult]:
        """What stands for what, see `transfer.survey`; what was found without an error is not asked again in this run."""

        def find_one(query: ImageQuery) -> QueryResult:
            try:
                with self._endable():
                    found = survey.find(query, self._reader(query.source, keep=keep), self._delivery.resolve, self._related)
                    if found.errors:  # which a stop may have caused
                        self.stopping.check()
                    return found
            except Stopped as exc:  # what is known of others is told all the same
                return QueryResult(query=query, image=exc, standing=(exc,) * len(query.targets))

        new = [query for query in queries if query not in self._found]
        with ThreadPoolExecutor(workers) as executor:
            found = dict(zip(new, executor.map(find_one, new), strict=True))
        self._found |= {query: one for query, one in found.items() if not one.errors}
        return [found.get(query) or self._found[query] for query in queries]

    def deliver(self, blob: Descriptor, place: Reference, *, origin: Reference | None = None) -> None:
        """Bring a blob to the repository of `place`, see `transfer.delivery`."""
        with self._endable():
            self._delivery.deliver(blob, place, origin=origin)

    def judge(self, judge: Gate, reference: Reference, root: Descriptor) -> str | None:
        """Why an image is not to be published, see `transfer.gate`."""
        candidate = Candidate(reference=reference, digest=root.digest, store=self.store.url)
        with self._endable():
            return gate.ask(judge, candidate, check=self.stopping.check)

    def publish(self, wanted: Publication) -> None:
        """Bring all of an image to its target, and set its tag, see `transfer.delivery`."""
        with self._endable():
            self._delivery.publish(wanted)

    def remove(self, target: Reference, unwanted: Sequence[UnwantedTag], *, known: Iterable[str] = (), workers: int) -> Removed:
        """Remove one of the `unwanted` tags of its repository; `known` tags may exist there. See `transfer.removal`."""
        with self._endable():
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
            error = self._told(partial(pusher.confirm_referrers, subject))
            if error is not None:
                failed.append((referrers, error))
        return failed

    def audit(self, expected: Sequence[Expected]) -> list[Finding | DistError]:
        """Return the result of an audit of each of some tags of one repository, or why it failed; see `transfer.audit`.

        After a failure, what is known is kept until these very tags are audited again without one.
        """
        place, key = expected[0].target, tuple(expected)
        auditor = self._auditors.pop(key, None) or Auditor(self.registries.origin_fetcher(place), self.registries.pusher(place))
        findings = [self._told(partial(auditor.audit, one)) for one in expected]
        if any(isinstance(one, DistError) for one in findings):
            self._auditors[key] = auditor
        return findings

    def locate(self, origin: Reference, expected: Expected, *, rewritten: bool) -> tuple[Descriptor, tuple[Referrer, ...]]:
        """The root of what should stand at a target, and what should be about it, see `transfer.repair_source`."""
        reader = self._reader(origin, keep=True)
        with self._endable():
            root = locating.locate(origin, expected, reader, rewritten=rewritten)
            return root, locating.referrers(origin, expected, reader)

    def _told(self, ask: Callable[[], T]) -> T | DistError:
        try:
            with self._endable():
                return ask()
        except Stopped:
            raise
        except DistError as exc:
            return exc

    def stands(self, target: Reference, descriptor: Descriptor) -> bool:
        """Whether `target` stands for `descriptor` at its registry, whatever mirrors of that say."""
        with self._endable():
            return self.registries.pusher(target).has(descriptor, tag=target.tag)

    def push(self, descriptor: Descriptor, target: Reference, *, source: str | None, tag: str | None) -> transfer.Receipt:
        """Bring a descriptor's content to the repository of `target`, and set a tag there: see `transfer.content.push`."""
        with self._endable():
            return transfer.push(
                self.store, self.registries.pusher(target), descriptor, source=source, tag=tag, notify=self._sent
            )

    def _reader(self, reference: Reference, *, keep: bool) -> Reader:
        source, offline = self._source(reference), self.spec.offline
        return Reader(store=self.store, source=source, keep=keep, notify=self._received, is_offline=offline)

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


_CURRENT: ContextVar[Session] = ContextVar("session")
_GIVEN: ContextVar[tuple[tuple[CredentialSource, str | None], ...]] = ContextVar("given", default=())


def current() -> Session:
    """The session of the run that this task belongs to. Prefect's thread runner carries it into its threads."""
    return _CURRENT.get()


@contextmanager
def known(credentials: CredentialSource, *, way: str | None) -> Iterator[None]:
    """Have sessions that are opened in this block ask here first for credentials, which are no parameters of runs.

    `way` says how the user gives them, see `remotes.credentials`; None is not mentioned in messages.
    """
    token = _GIVEN.set(((credentials, way),))
    try:
        yield
    finally:
        _GIVEN.reset(token)


@contextmanager
def open_session(spec: SessionSpec, *, notify: Notify = ignore_event) -> Iterator[Session]:
    """A session for the length of a run; leaving it stops what is still under way.

    Raises:
        InvalidInput: an unusable store or a damaged Docker configuration file.
    """
    given = _GIVEN.get()
    sources = (*(source for source, _ in given), Given(spec.credentials).get, DockerConfig.load().get)
    ways = (*(way for _, way in given if way is not None), *spec.ways)
    stop = stopping.current()

    def throttled(server: str, seconds: float) -> None:
        notify(Throttled(server, seconds))

    with (
        open_store(spec.store, options=spec.store_options) as store,
        store.leases.hold() as lease,
        Registries(spec.registries, credentials=first_of(*sources), ways=ways, left_alone=throttled) as registries,
        stop.heard(registries.abort),
    ):
        session = Session(spec, store, lease, registries, notify=notify, stopping=stop)
        token = _CURRENT.set(session)
        try:
            yield session
        except BaseException:
            stop.set("the run was ended")
            registries.abort()
            raise
        finally:
            _CURRENT.reset(token)
