"""The resources of a run for the units of work: the store, the remotes, the cancel token, the statistics.

A run opens a session from a small, picklable specification, and closes the session at the end. Tasks find the session through
`current_session`. A session is never a parameter of a task: Prefect would walk through the session, hash it and show it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

from prefect_dist.ocispec import Reference
from prefect_dist.remotes import (
    Credentials,
    CredentialSource,
    DockerConfig,
    Registries,
    RegistrySettings,
    Remotes,
    Source,
    StaticCredentials,
    chain_sources,
)
from prefect_dist.remotes.store_source import StoredSource
from prefect_dist.storage import ContentStore, open_store
from prefect_dist.transfer.cancellation import CancelToken, current_token
from prefect_dist.transfer.events import Notify, Throttled, ignore_event
from prefect_dist.transfer.recorder import ImageRecorder
from prefect_dist.transfer.stats import TransferCounter, TransferStats

Memo = TypeVar("Memo")


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSpec:
    """The specification of a session.

    Attributes:
        store: a path or an fsspec URL.
        store_options: options of fsspec, which may be secret.
        credentials: credentials by registry, see `StaticCredentials`.
        ways: the ways to give credentials that error messages mention, see `remotes.credentials`.
        offline: images come only from the store, and source registries get no request.
        is_shared: other processes carry out the same run, so large content is claimed before its transfer.
    """

    store: str
    store_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    registries: RegistrySettings = field(default_factory=RegistrySettings)
    credentials: Mapping[str, Credentials] = field(default_factory=dict, repr=False)
    ways: tuple[str, ...] = ()
    offline: bool = False
    is_shared: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Session:
    """The resources of one run. Thread-safe."""

    spec: SessionSpec
    store: ContentStore
    remotes: Remotes
    recorder: ImageRecorder
    cancel: CancelToken
    notify: Notify
    counter: TransferCounter
    _memos: dict[object, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def stats(self) -> TransferStats:
        """The counts of transfers so far."""
        return self.counter.stats

    def memo(self, kind: Callable[[], Memo]) -> Memo:
        """Return the only object of the class `kind` in this run. The first call creates the object.

        A memo is the state of one kind of work during a run, such as known answers. The module of the work defines the class.
        """
        if kind not in self._memos:
            self._memos.setdefault(kind, kind())
        memo: Memo = self._memos[kind]
        return memo

    def open_source(self, reference: Reference) -> Source:
        """Return the source of an image: a registry with its registry mirrors, or the store in an offline run."""
        return self._open_stored(reference) if self.spec.offline else self.remotes.open_source(reference)

    def origin_of(self, reference: Reference) -> Reference:
        """Return the repository that an image comes from. In an offline run, this is the repository that the name records."""
        return self._open_stored(reference).origin if self.spec.offline else reference

    def source_hosts(self, reference: Reference) -> frozenset[str]:
        """Return the registries that requests for the source of an image go to: none in an offline run."""
        return frozenset() if self.spec.offline else frozenset({reference.host})

    def _open_stored(self, reference: Reference) -> StoredSource:
        sources = self.memo(_StoredSources)
        return sources.get(reference) or sources.setdefault(reference, StoredSource(self.store, reference.name))


class _StoredSources(dict[Reference, StoredSource]):
    """The sources of an offline run, so that the record of each name is read once."""


_CURRENT: ContextVar[Session] = ContextVar("session")
_GIVEN: ContextVar[tuple[tuple[CredentialSource, str | None], ...]] = ContextVar("given", default=())


def current_session() -> Session:
    """Return the session of the current task's run. Prefect copies the context into its threads."""
    return _CURRENT.get()


@contextmanager
def use_credentials(credentials: CredentialSource, *, way: str | None) -> Iterator[None]:
    """Let sessions that are opened in this block use these credentials first. No run gets credentials as a parameter.

    `way` describes how the user gives the credentials, see `remotes.credentials`; None is not mentioned in messages.
    """
    token = _GIVEN.set(((credentials, way),))
    try:
        yield
    finally:
        _GIVEN.reset(token)


@contextmanager
def open_session(spec: SessionSpec, *, notify: Notify = ignore_event) -> Iterator[Session]:
    """Open a session for a run. The end of the block aborts all transfers in flight.

    Raises:
        InvalidInput: the store cannot be used, or the configuration file of Docker is damaged.
    """
    given = _GIVEN.get()
    sources = (*(source for source, _ in given), StaticCredentials(spec.credentials).get, DockerConfig.load().get)
    ways = (*(way for _, way in given if way is not None), *spec.ways)
    cancel = current_token()

    def notify_throttled(server: str, seconds: float) -> None:
        notify(Throttled(server, seconds))

    found = chain_sources(*sources)
    with (
        open_store(spec.store, options=spec.store_options) as store,
        store.leases.hold() as lease,
        Remotes(
            Registries(spec.registries, credentials=found, ways=ways, on_throttled=notify_throttled),
            credentials=found,
            open_store=lambda: store,
        ) as remotes,
        cancel.on_cancel(remotes.abort),
    ):
        session = Session(
            spec=spec,
            store=store,
            remotes=remotes,
            recorder=ImageRecorder(store, lease, offline=spec.offline),
            cancel=cancel,
            notify=notify,
            counter=TransferCounter(notify, cancel),
        )
        token = _CURRENT.set(session)
        try:
            yield session
        except BaseException:
            cancel.set("the run was ended")
            remotes.abort()
            raise
        finally:
            _CURRENT.reset(token)
