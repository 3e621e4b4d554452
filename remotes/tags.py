"""The tags of a repository (distribution-spec 1.1, "Listing Tags")."""

from collections.abc import Iterator

from prefect_dist.ocispec.reference import is_tag
from prefect_dist.remotes import listing
from prefect_dist.remotes.repository import Repository

KIND = listing.Kind(path="tags/list", key="tags", one="tag", is_name=is_tag, grammar="1 to 128 letters, digits and . _ -")


def listed(repository: Repository) -> Iterator[str]:
    """The tags of a repository, each once, in the registry's order; a page is asked for when those before it are taken.

    Raises:
        DistError: as `remotes.listing.names`.
    """
    return listing.names(repository, KIND, at=f"tags of {repository.locator}")
