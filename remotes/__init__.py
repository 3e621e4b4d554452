"""Remotes: where content comes from. `resolve(reference) → (name, descriptor, fetcher)`. Synchronous and thread-safe.

Registries speak the OCI distribution-spec 1.1 and Docker's registry protocol v2.
"""

from remotes.credentials import Credentials, DockerConfig
from remotes.errors import Exchange, RegistryError
from remotes.fetcher import Fetcher
from remotes.registry import Registries, RegistrySettings, Resolved

__all__ = ["Credentials", "DockerConfig", "Exchange", "Fetcher", "Registries", "RegistryError", "RegistrySettings", "Resolved"]
