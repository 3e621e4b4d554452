"""Remotes: resolve references, fetch and push content, list tags and referrers. Synchronous and thread-safe.

`Remotes.resolve(reference)` returns the name to record, the descriptor, and the source to fetch from. Registries follow the
OCI distribution-spec 1.1 or Docker's registry protocol v2. Other remotes read and write image layouts, archives and the content
store, and plug-ins add more.
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
from prefect_dist.remotes.hosts import Hosts, HostSettings, Tls
from prefect_dist.remotes.plugins import PluginContext, PluginError
from prefect_dist.remotes.registry import Registries, RegistrySettings
from prefect_dist.remotes.remote import Ability, Remote, Resolved, Source, Target
from prefect_dist.remotes.remotes import Remotes
from prefect_dist.remotes.throttled import Quota

__all__ = [
    "Ability",
    "CredentialSource",
    "Credentials",
    "DockerConfig",
    "Exchange",
    "HostSettings",
    "Hosts",
    "Origin",
    "PluginContext",
    "PluginError",
    "Quota",
    "Registries",
    "RegistryError",
    "RegistrySettings",
    "Remote",
    "Remotes",
    "Resolved",
    "Source",
    "StaticCredentials",
    "Target",
    "Tls",
    "chain_sources",
]
