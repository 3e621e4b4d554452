"""The parameters of a run that name the content store and the connections to registries. They become a `SessionSpec`.

Parameters may name Prefect blocks. Only `flows` can read blocks, so a `BlockReader` is one of the values.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from prefect_dist.mirror.locations import BLOCK
from prefect_dist.ocispec.errors import InvalidInput
from prefect_dist.remotes import Credentials, Hosts, RegistrySettings
from prefect_dist.remotes.advice import TlsAdvice
from prefect_dist.storage.options import merge_options, refuse_secrets
from prefect_dist.transfer.session import SessionSpec

if TYPE_CHECKING:
    from prefect_dist.mirror.config import Mirror


class BlockReader(Protocol):
    """Reads Prefect blocks.

    Each method raises `InvalidInput` if a block does not exist or has unusable values.
    """

    def read_store(self, name: str, options: Mapping[str, Any], /) -> tuple[str, dict[str, Any]]:
        """Return the URL and the file system options of the store in a block. `options` take precedence over the block's."""

    def read_credentials(self, names: Iterable[str], /) -> dict[str, Credentials]:
        """Return the credentials in blocks, by registry."""

    def read_configuration(self, name: str, /) -> str:
        """Return the YAML text of the configuration in a block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkParameters:
    """The connection settings of a run. Times are in seconds.

    `credentials` are names of Prefect blocks. `hosts` and `ca_file` are paths of a hosts file and of a CA bundle.
    """

    plain_http: bool = False
    connect_timeout: float = 30
    read_timeout: float = 60
    insecure: tuple[str, ...] | list[str] = ()
    credentials: tuple[str, ...] | list[str] = ()
    hosts: str | None = None
    ca_file: str | None = None

    def make_settings(self) -> RegistrySettings:
        """Return the settings for `remotes`.

        Raises:
            InvalidInput: the hosts file or the CA bundle is missing or invalid.
        """
        return RegistrySettings(
            hosts=self._load_hosts(), connect_timeout_s=self.connect_timeout, read_timeout_s=self.read_timeout
        )

    def _load_hosts(self) -> Hosts:
        if self.hosts is None and self.ca_file is None and not self.insecure:
            return Hosts(plain_http=self.plain_http)
        from prefect_dist.mirror.hosts_file import hosts  # noqa: PLC0415 - pydantic takes a tenth of a second

        return hosts(self.hosts, plain_http=self.plain_http, ca_file=self.ca_file, insecure=self.insecure)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResources:
    """The parameters of a run for the store and the registries.

    Attributes:
        store: a path, an fsspec URL or `block:NAME`; None for the store of the configuration.
        store_options: options of the store's file system, without secrets.
        blocks: reads the blocks that other parameters and the configuration name.
        ways: the ways to give credentials that messages mention, see `remotes.credentials`.
        advice: the remedies for TLS failures that messages mention; None for the command options.
    """

    store: str | None
    store_options: Mapping[str, Any]
    network: NetworkParameters
    blocks: BlockReader
    ways: tuple[str, ...] = ()
    advice: TlsAdvice | None = None

    def make_session(self) -> SessionSpec:
        """Return the specification of the session of a run.

        Raises:
            InvalidInput: the options of the store contain a secret, a block is missing, or the hosts file is invalid.
        """
        if self.store is None:
            raise InvalidInput("store: missing; name a path or URL")
        return self._make_session(self.store, {})

    def make_mirror_session(self, wanted: "Mirror") -> SessionSpec:
        """Return the specification of the session of a mirror run. Parameters take precedence over the configuration.

        Raises:
            InvalidInput: no store is named; or see `make_session`.
        """
        place = self.store or wanted.store
        if place is None:
            raise InvalidInput(f"{wanted.path}: store: missing; set it to a path or URL, or set the parameter store of the run")
        configured = wanted.store_options if self.store is None else {}  # options in the file are those of its own store
        spec = self._make_session(place, configured)
        given = spec.registries.hosts
        hosts = replace(given, named={**wanted.hosts.named, **given.named}, advice=wanted.hosts.advice or given.advice)
        blocks = self.blocks.read_credentials(wanted.credential_blocks) if wanted.credential_blocks else {}
        return replace(
            spec,
            registries=replace(spec.registries, hosts=hosts),
            credentials={**wanted.credentials, **blocks, **spec.credentials},
            ways=(*([] if wanted.way is None else [wanted.way]), *spec.ways),
        )

    def _make_session(self, store: str, configured: Mapping[str, Any]) -> SessionSpec:
        url, options = self._locate_store(store, configured)
        registries = self.network.make_settings()
        if self.advice is not None:
            registries = replace(registries, hosts=replace(registries.hosts, advice=self.advice))
        names = self.network.credentials
        return SessionSpec(
            store=url,
            store_options=options,
            registries=registries,
            credentials=self.blocks.read_credentials(names) if names else {},
            ways=self.ways,
        )

    def _locate_store(self, store: str, configured: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return the path or URL of a store, and the options of its file system.

        The options of the parameter must not contain secrets. They take precedence over the `configured` options, which may
        contain secrets.
        """
        refuse_secrets(self.store_options)
        options = merge_options(configured, self.store_options)
        if store.startswith(BLOCK):
            return self.blocks.read_store(store.removeprefix(BLOCK), options)
        return store, options
