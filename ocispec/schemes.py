"""The schemes of locators: the built-in ones, and those of installed plug-ins.

A plug-in is an entry point of the group `prefect_dist.remotes`, and the name of the entry point is the scheme.
"""

import re
from functools import cache
from importlib.metadata import EntryPoint, entry_points

GROUP = "prefect_dist.remotes"
"""The group of entry points of plug-ins."""

LAYOUT, OCI_ARCHIVE, DOCKER_ARCHIVE, STORE = "oci", "oci-archive", "docker-archive", "store"
BUILT_IN = (LAYOUT, OCI_ARCHIVE, DOCKER_ARCHIVE, STORE)
"""The schemes that need no plug-in."""

_NAME = re.compile(r"[a-z][a-z0-9+-]*")


def is_scheme(name: str) -> bool:
    """Return True if a remote serves the scheme `name`. Installed packages are searched only for names of plug-ins."""
    return name in BUILT_IN or name in find_plugins()


def list_schemes() -> list[str]:
    """Return all schemes: the built-in ones first, then those of plug-ins in alphabetical order."""
    return [*BUILT_IN, *sorted(find_plugins())]


@cache
def find_plugins() -> dict[str, tuple[EntryPoint, ...]]:
    """Return the entry points of the installed plug-ins by scheme. Several packages may claim the same scheme.

    Built-in schemes and names that are no scheme are left out.
    """
    found = dict[str, tuple[EntryPoint, ...]]()
    for point in entry_points(group=GROUP):
        if _NAME.fullmatch(point.name) and point.name not in BUILT_IN:
            found[point.name] = (*found.get(point.name, ()), point)
    return found
