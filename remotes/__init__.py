"""Remotes: where content comes from. `resolve(reference) → (name, descriptor, fetcher)`. Synchronous and thread-safe.

Registries speak the OCI distribution-spec 1.1 and Docker's registry protocol v2.
"""

from remotes.credentials import Credentials, CredentialSource, DockerConfig, Given, Origin, first_of
from remotes.errors import Exchange, RegistryError
from remotes.fetcher import Source
from remotes.hosts import Hosts, HostSettings, Tls
from remotes.pusher import Pusher
from remotes.registry import Registries, RegistrySettings, Resolved
from remotes.throttled import Quota

__all__ = [
    "CredentialSource",
    "Credentials",
    "DockerConfig",
    "Exchange",
    "Given",
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
    "Tls",
    "first_of",
]
