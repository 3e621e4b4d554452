"""Lists the tags of repositories, and resolves the references of targets."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from prefect_dist.ocispec import Descriptor, Reference
from prefect_dist.ocispec.errors import DistError, NotFound
from prefect_dist.transfer.session import Session


class _TagLists(dict[Reference, tuple[str, ...]]):
    """The tags of repositories that the run has listed."""


def list_tags(session: Session, repositories: Sequence[Reference], *, workers: int) -> list[tuple[str, ...] | DistError]:
    """Return the tags of each repository, or the error of its list. At most `workers` repositories are listed at once.

    A run lists a repository once.

    Raises:
        Stopped: the run was cancelled.
    """

    def list_one(repository: Reference) -> tuple[str, ...] | DistError:
        return session.cancel.catch_error(lambda: tuple(session.open_source(repository).tags()))

    known = session.memo(_TagLists)
    new = [repository for repository in repositories if repository not in known]
    with ThreadPoolExecutor(workers) as executor:
        found = dict(zip(new, executor.map(list_one, new), strict=True))
    known |= {repository: tags for repository, tags in found.items() if isinstance(tags, tuple)}
    return [found.get(repository) or known[repository] for repository in repositories]


def list_own_tags(session: Session, place: Reference) -> Iterable[str]:
    """Return the tags of a repository from its own registry.

    The list of a registry mirror may lack tags: some mirrors list only tags that a client requested before.
    """
    known = session.memo(_TagLists).get(place.without_object())
    if known is not None and not session.spec.registries.hosts.settings_for(place.host).mirrors:
        return known
    return session.remotes.open_origin(place).tags()


def resolve_target(session: Session, target: Reference) -> Descriptor | None:
    """Return the descriptor of a target at its own registry, or None if the target does not exist.

    A target with both a tag and a digest is resolved by the tag, because a publication has to set the tag.

    Raises:
        DistError: an error of the registry.
    """
    by_tag = target if target.tag is None else target.with_tag(target.tag)
    try:
        return session.remotes.open_origin(target).resolve(by_tag)
    except NotFound:
        return None
