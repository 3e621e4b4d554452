"""The target names that entries can claim, as far as the configuration shows before the source registry is listed.

The reach may be too large, never too small: no entry claims a name out of reach.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prefect_dist.mirror.entry import Entry
from prefect_dist.mirror.naming import Naming
from prefect_dist.ocispec import Reference
from prefect_dist.ocispec.errors import InvalidInput
from prefect_dist.ocispec.reference import expand

# The sample has two components, because `library/` is added to a single one on Docker Hub.
_REPOSITORY, _TAG = "name/name", "tag"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """The target names in `names`, and each name that starts with a prefix in `prefixes`."""

    names: frozenset[Reference]
    prefixes: tuple[str, ...]

    def has(self, target: Reference) -> bool:
        """Return whether the name is within reach."""
        return target in self.names or str(target).startswith(self.prefixes)


def compute_reach(entries: Iterable[Entry]) -> Reach:
    """Return the common reach of entries."""
    names, prefixes = set[Reference](), dict[str, None]()
    for entry in entries:
        if entry.type == "image":
            names.update(entry.list_valid_targets(Reference.parse(entry.source)))
        else:
            prefixes.update(dict.fromkeys(_prefixes(entry)))
    return Reach(names=frozenset(names), prefixes=tuple(prefixes))


def _prefixes(entry: Entry) -> Iterator[str]:
    for naming in entry.targets:
        if naming.template.refers_to("Ref"):
            yield _literal(naming)
        else:
            yield _prefix(naming, entry.source, f"/{_REPOSITORY}:{_TAG}" if entry.type == "registry" else f":{_TAG}")


def _prefix(naming: Naming, source: str, varying: str) -> str:
    """Return the common prefix of the names that a naming makes by appending the source's repository or tag."""
    try:
        target = naming.make_name(Reference.parse(f"{source}{varying}"))
    except InvalidInput:  # a rename may make an invalid name of the sample
        return ""
    is_kept = not naming.renames and str(target).endswith(varying)
    return str(target)[: 1 - len(varying)] if is_kept else f"{target.host}/"


def _literal(naming: Naming) -> str:
    """Return the common prefix of the names that a template makes: the text before the first action, if the text has a host."""
    host, slash, path = naming.template.text.partition("{{")[0].lstrip().partition("/")
    if not slash:
        return ""
    known = expand(f"{host}/{_REPOSITORY}:{_TAG}")
    is_kept = known.startswith(f"{host}/") and host != "docker.io" and not naming.renames
    return f"{known.partition('/')[0]}/{path if is_kept else ''}"
