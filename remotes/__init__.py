"""Registries: resolve references, fetch and push content, list tags and referrers. Synchronous and thread-safe.

`Registries.resolve(reference)` returns the name to record, the descriptor, and the source to fetch from. Registries follow the
OCI distribution-spec 1.1 or Docker's registry protocol v2.
"""

from prefect_dist.remotes.credentials import (
    Credentials,
    CredentialSource,
    DockerConfig,
    Origin,
    StaticCredentials,
    chain_sources,
)
from prefect_dist.remotes.errors import Exchange, RegistryError
from prefect_dist.remotes.fetcher import Source
from prefect_dist.remotes.hosts import Hosts, HostSettings, Tls
from prefect_dist.remotes.pusher import Pusher
from prefect_dist.remotes.registry import Registries, RegistrySettings, Resolved
from prefect_dist.remotes.throttled import Quota

__all__ = [
    "CredentialSource",
    "Credentials",
    "DockerConfig",
    "Exchange",
    "HostSettings",
    "Hosts",
    "Origin",
    "Pusher",
    "Quota",
    "Registries",
    "RegistryError",
    "RegistrySettings",
    "Resolved",
    "Source",
    "StaticCredentials",
    "Tls",
    "chain_sources",
]
