"""All remotes of a run: the entry point of this layer.

text → Reference → Remotes.resolve → (name, descriptor, fetcher) → fetcher.fetch(descriptor) → bytes

The scheme of a reference selects the remote. A reference without a scheme is an image in a registry. Other remotes are opened
at the first reference with their scheme, so that commands for registries do not import the modules of other remotes.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Self

from prefect_dist.ocispec import Reference
from prefect_dist.ocispec.errors import InvalidInput
from prefect_dist.ocispec.schemes import BUILT_IN, DOCKER_ARCHIVE, LAYOUT, OCI_ARCHIVE, STORE
from prefect_dist.remotes.credentials import Credentials, CredentialSource
from prefect_dist.remotes.plugins import PluginContext, open_plugin
from prefect_dist.remotes.registry import Registries
from prefect_dist.remotes.remote import Remote, Resolved, Source, Target

if TYPE_CHECKING:
    from prefect_dist.storage import ContentStore

# The class of each built-in remote. A class is called with an `OpenContext`.
_CLASSES: Mapping[str, str] = {
    LAYOUT: "prefect_dist.remotes.layout_remote:LayoutRemote",
    OCI_ARCHIVE: "prefect_dist.remotes.archive_remote:OciArchiveRemote",
    DOCKER_ARCHIVE: "prefect_dist.remotes.archive_remote:DockerArchiveRemote",
    STORE: "prefect_dist.remotes.store_remote:StoreRemote",
}

# Threads that import modules with common imports at the same time can get a module before it is complete.
_IMPORTING = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenContext:
    """The resources of a built-in remote: the registries, and a function that returns the content store of the command."""

    registries: Registries
    open_store: "Callable[[], ContentStore]"


class Remotes:
    """All remotes of a run. Thread-safe; the owner closes them, or uses them in a `with` block.

    `open_store` returns the content store of the command or run. `credentials` are those of all remotes.
    """

    def __init__(
        self, registries: Registries, *, credentials: CredentialSource, open_store: "Callable[[], ContentStore]"
    ) -> None:
        self.registries = registries
        self._open_store, self._credentials = open_store, credentials
        self._remotes: dict[str, Remote] = {"": registries}
        self._opening = dict[str, threading.Lock]()  # by scheme, so that a slow plug-in delays only its own scheme
        self._is_aborted = False

    def find(self, reference: Reference) -> Remote:
        """Return the remote of a reference.

        Raises:
            InvalidInput: no remote serves the scheme.
            PluginError: several plug-ins serve the scheme, or the plug-in cannot be loaded.
        """
        scheme = reference.scheme
        if (known := self._remotes.get(scheme)) is not None:
            return known
        with self._opening.setdefault(scheme, threading.Lock()):
            if scheme not in self._remotes:
                self._remotes[scheme] = self._open(scheme)
                if self._is_aborted:  # `abort` may have missed the new remote
                    self._remotes[scheme].abort()
            return self._remotes[scheme]

    def resolve(self, reference: Reference, *, media_type: str | None = None) -> Resolved:
        """Return the name, root descriptor and source of a reference, see `Source.resolve`."""
        return self.find(reference).resolve(reference, media_type=media_type)

    def open_source(self, reference: Reference) -> Source:
        """Return the source for the place of a reference: of a registry, its registry mirrors first."""
        return self.find(reference).open_source(reference)

    def open_origin(self, reference: Reference) -> Source:
        """Return the source for the place of a reference itself, without registry mirrors."""
        return self.find(reference).open_origin(reference)

    def open_target(self, reference: Reference) -> Target:
        """Return the target for the place of a reference.

        Raises:
            Unsupported: the place is read-only.
        """
        return self.find(reference).open_target(reference)

    def list_repositories(self, host: str) -> Iterator[str]:
        """Yield the repositories of a registry, or below a locator with a scheme, each once.

        Raises:
            Unsupported: the remote has no such list.
        """
        return self.find(Reference(f"{host}/")).list_repositories(host)  # with a slash, `localhost:5000` has no scheme

    def counts_pulls(self, reference: Reference) -> bool:
        """Return True if the source of a reference limits the number of requests for manifests."""
        return not reference.scheme and self.registries.counts_pulls(reference.host)

    def abort(self) -> None:
        """Abort the transfers in flight and refuse later ones: both fail with Unavailable."""
        self._is_aborted = True
        for remote in list(self._remotes.values()):
            remote.abort()

    def close(self) -> None:
        """Close all remotes, after waiting for requests in flight; `abort` first to stop them."""
        with ExitStack() as closing:  # closes all remotes, also after an error of one
            for remote in list(self._remotes.values()):
                closing.callback(remote.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, scheme: str) -> Remote:
        if scheme in BUILT_IN:
            module, _, name = _CLASSES[scheme].partition(":")
            with _IMPORTING:
                imported = import_module(module)
            opened: Remote = getattr(imported, name)(OpenContext(registries=self.registries, open_store=self._open_store))
            return opened
        return open_plugin(scheme, self._plugin_context(scheme))

    def _plugin_context(self, scheme: str) -> PluginContext:
        def open_source(reference: Reference) -> Source:
            if scheme not in self._remotes:
                raise InvalidInput("a plug-in can open sources only after its remote was made", subject=reference)
            return self.open_source(reference)

        def find_credentials(locator: str) -> Credentials | None:
            reference = Reference.parse(locator)
            if reference.scheme != scheme or reference.locator != locator:
                raise InvalidInput(
                    f"expected a locator {scheme}:… without a tag or digest; a plug-in gets no other credentials"
                )
            return self._credentials(locator, "")

        return PluginContext(scheme=scheme, open_source=open_source, find_credentials=find_credentials)
