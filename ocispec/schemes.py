"""The schemes of locators: the built-in ones, and those of installed plug-ins.

A plug-in is an entry point of the group `prefect_dist.remotes`, and the name of the entry point is the scheme.
"""

import logging
import re
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import EntryPoint, distributions, entry_points

GROUP = "prefect_dist.remotes"
"""The group of entry points of plug-ins."""

LAYOUT, OCI_ARCHIVE, DOCKER_ARCHIVE, STORE = "oci", "oci-archive", "docker-archive", "store"
BUILT_IN = (LAYOUT, OCI_ARCHIVE, DOCKER_ARCHIVE, STORE)
"""The schemes that need no plug-in."""

ARCHIVES = (OCI_ARCHIVE, DOCKER_ARCHIVE)
"""The schemes of tar archives."""

PATHS = (LAYOUT, *ARCHIVES)
"""The schemes whose places are paths or URLs."""

_NAME = re.compile(r"[a-z][a-z0-9+-]*")
_log = logging.getLogger(__name__)


def is_scheme(name: str) -> bool:
    """Return True if a remote serves the scheme `name`. Installed packages are searched only for names of plug-ins."""
    return name in BUILT_IN or name in find_plugins()


def list_schemes() -> list[str]:
    """Return all schemes: the built-in ones first, then those of plug-ins in alphabetical order."""
    return [*BUILT_IN, *sorted(find_plugins())]


@cache
def find_plugins() -> dict[str, tuple[EntryPoint, ...]]:
    """Return the entry points of the installed plug-ins by scheme. Several packages may claim the same scheme.

    Built-in schemes and names that are no scheme are left out, with a warning.
    """
    found = dict[str, tuple[EntryPoint, ...]]()
    for point in _list_entry_points():
        if (fault := _find_fault(point.name)) is None:
            found[point.name] = (*found.get(point.name, ()), point)
        else:
            _log.warning("%s is ignored: %s; update or uninstall the package", describe_plugin(point), fault)
    return found


def _list_entry_points() -> Iterable[EntryPoint]:
    try:
        return entry_points(group=GROUP)
    except Exception:  # noqa: BLE001 - importlib raises any error for damaged metadata, of any package
        return list(_list_readable())  # slower, because this reads the names of all packages


def _list_readable() -> Iterator[EntryPoint]:
    """Yield the entry points of all packages whose metadata is readable. Log a warning for each other package."""
    seen = set[str]()
    for package in distributions():
        if (name := package.metadata["Name"] or "a package without a name") in seen:
            continue
        seen.add(name)
        try:
            yield from package.entry_points.select(group=GROUP)
        except Exception as exc:  # noqa: BLE001 - as above
            _log.warning("%s: the entry points of the package are ignored: %s; install the package again", name, exc)


def describe_plugin(point: EntryPoint) -> str:
    """Return the name of a plug-in for messages, with its package and version."""
    package = "unknown package" if point.dist is None else f"{point.dist.name} {point.dist.version}"
    return f"plug-in {point.value} ({package})"


def _find_fault(name: str) -> str | None:
    """Return the fault of the name of an entry point, or None for the scheme of a plug-in."""
    if name in BUILT_IN:
        return f"the scheme {name}: is built in"
    if not _NAME.fullmatch(name):
        return f"its scheme {name!r} is invalid: expected a lower-case letter, then lower-case letters, digits, + and -"
    return None
