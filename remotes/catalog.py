"""The repositories of a registry (Docker's registry API v2, "Catalog"). The distribution-spec has no such list.

Many registries have none either, or show it to administrators alone.
"""

from collections.abc import Iterator

from prefect_dist.ocispec.reference import is_repository
from prefect_dist.remotes import listing
from prefect_dist.remotes.errors import RegistryDenied, RegistryNotFound, RegistryRefused
from prefect_dist.remotes.repository import Repository

# "registry" is the type and "catalog" the name of the resource ("Token Scope Documentation" of distribution).
SCOPE = "registry:catalog:*"
KIND = listing.Kind(
    path="_catalog",
    key="repositories",
    one="repository",
    is_name=is_repository,
    grammar="lower-case letters, digits and . _ - / between them",
)
# So answer those that have no such list, or not for us: Docker Hub 401, GHCR 403, others as if there were no such path.
_NOT_SHOWN = frozenset({401, 403, 404, 405})


def listed(registry: Repository, *, prefix: str = "") -> Iterator[str]:
    """The repositories of a registry, each once, in its order; of those that begin with `prefix`, what comes behind it.

    Raises:
        RegistryDenied, RegistryNotFound, RegistryRefused: it has no such list, or not for us; the message says what to do.
        DistError: as `remotes.listing.names`.
    """
    try:
        for name in listing.names(registry, KIND, at=f"repositories of {registry.locator}"):
            if name.startswith(prefix) and name != prefix:
                yield name.removeprefix(prefix)
    except (RegistryDenied, RegistryNotFound, RegistryRefused) as exc:
        if exc.exchange.status not in _NOT_SHOWN:
            raise
        instead = "not every registry lists its repositories, and not to everybody: name those that are wanted instead"
        raise type(exc)(f"{exc}; {instead}", exc.exchange) from exc
