"""Advice on texts that are no references of dist: transports of skopeo, locators of other programs, and paths."""

import re
from collections.abc import Mapping

from prefect_dist.ocispec.schemes import BUILT_IN

_COPY = "copy the image with skopeo copy {scheme}:… oci:DIR:TAG, and write oci:DIR:TAG"
_TRANSPORTS: Mapping[str, str] = {
    "dir": f"a directory of skopeo, with one image; {_COPY}",
    "sif": f"a file of Singularity; {_COPY}",
    "ostree": f"a repository of OSTree; {_COPY}",
    "tarball": f"a file system in an archive; {_COPY}",
    "docker-daemon": "an image of a Docker daemon; save the image with docker save -o FILE, and write docker-archive:FILE",
    "containers-storage": (
        "an image in the storage of Podman; save the image with podman save --format oci-archive -o FILE, and write "
        "oci-archive:FILE"
    ),
}
# The schemes of other programs for image layouts: regclient and BuildKit.
_LAYOUTS = ("ocidir", "oci-layout", "oci-dir")
_PROTOCOLS = ("s3", "gs", "az", "abfs", "file")
_PATH = re.compile(r"(?:~|\.{1,2})?/")
# The text `dir:5000/x` is an image of the registry `dir:5000`.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+-]*):(?![0-9]{1,5}/)(?P<slashes>//)?(?P<rest>.*)", re.DOTALL)


def find_advice(text: str) -> str | None:
    """Return the kind of a text that is no reference, and the locator to write in its place; None for other texts.

    The advice contains no part of a text with `@` or a query, which may be a password.
    """
    is_shown = text.isprintable() and not re.search("[@?#]", text)
    if _PATH.match(text):
        shown = text if is_shown else "PATH"
        return f"this is a path; write oci:{shown} for an image layout, or oci-archive:{shown} or docker-archive:{shown}"
    match = _SCHEME.match(text)
    return None if match is None else _advise(match[1], match["rest"] if is_shown else "…", has_slashes=bool(match["slashes"]))


def _advise(scheme: str, rest: str, *, has_slashes: bool) -> str | None:
    lower = scheme.lower()
    if lower in _TRANSPORTS and not has_slashes:
        return f"{lower}: is {_TRANSPORTS[lower].format(scheme=lower)}"
    if lower in _LAYOUTS:
        return f"{lower}: is another program's name for an image layout; write oci:{rest}"
    if lower in _PROTOCOLS and has_slashes:
        return f"this is a URL; write oci:{lower}://… for an image layout"
    if scheme != lower and lower == "docker" and has_slashes:
        return f"schemes are lower-case; write docker://{rest}"
    return f"schemes are lower-case; write {lower}:{rest}" if scheme != lower and lower in BUILT_IN else None
