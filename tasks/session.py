"""What the tasks of a run share: the store, the registries, and the wish to stop. No Prefect here.

A run opens its session from a small, picklable specification and closes it; tasks find it through `current`. Nothing of it is
ever a task's parameter: Prefect would walk through it, hash it and show it.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from ocispec import Descriptor, Reference
from ocispec.errors import DistError
from ocispec.handlers import Handler, chain, children_handler, filter_platforms
from ocispec.platform import Platform
from remotes import DockerConfig, Registries, RegistrySettings
from storage import ContentStore, open_store
from tasks import transfer


class Stopped(DistError):
    """The run is being ended: what has arrived is kept, another run goes on with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSpec:
    """What a session is opened from. `platforms` None means all; `store` is a path or fsspec URL."""

    store: str
    platforms: tuple[Platform, ...] | None = None
    registries: RegistrySettings = field(default_factory=RegistrySettings)


class Session:
    """The resources of one run. Thread-safe."""

    def __init__(self, spec: SessionSpec, store: ContentStore, registries: Registries, observer: transfer.Observer) -> None:
        self.spec = spec
        self.store = store
        self.registries = registries
        self._observer = observer
        self._stopping = threading.Event()

    @property
    def children(self) -> Handler:
        """The handler that answers with the children in the store, of the platforms of this run."""
        return filter_platforms(children_handler(self.store.manifest), self.spec.platforms)

    def fetching(self, reference: Reference, receipts: list[transfer.Receipt]) -> Handler:
        """The handler that fetches a descriptor from a repository, then answers with its children."""
        source = self.registries.fetcher(reference)
        fetch = transfer.fetch_handler(self.store, source, observer=self, pause=self.pause, receipts=receipts)
        return chain(fetch, self.children)

    def advanced(self, descriptor: Descriptor, offset: int, gained: int) -> None:
        """Pass on how a transfer goes, and end it if the run is to stop."""
        self._check()
        self._observer.advanced(descriptor, offset, gained)

    def pause(self, seconds: float) -> None:
        """Sleep, unless the run is to stop."""
        self._stopping.wait(seconds)
        self._check()

    def stop(self) -> None:
        """Let every transfer end at its next piece."""
        self._stopping.set()

    def _check(self) -> None:
        if self._stopping.is_set():
            raise Stopped("the run was stopped; what has arrived is kept, run again to go on")


_CURRENT: ContextVar[Session] = ContextVar("session")


def current() -> Session:
    """The session of the run that this task belongs to. Prefect's thread runner carries it into its threads."""
    return _CURRENT.get()


@contextmanager
def open_session(spec: SessionSpec, *, observer: transfer.Observer) -> Iterator[Session]:
    """A session for the length of a run; leaving it stops what is still under way.

    Raises:
        InvalidInput: an unusable store or a damaged Docker configuration file.
    """
    credentials = DockerConfig.load()
    with Registries(spec.registries, credentials=credentials.get) as registries:
        session = Session(spec, open_store(spec.store), registries, observer)
        token = _CURRENT.set(session)
        try:
            yield session
        finally:
            session.stop()
            _CURRENT.reset(token)
