"""Mounts of this machine, as far as locks depend on them."""

import os
from contextlib import suppress
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
# Options of an NFS mount with which flock keeps out only processes of the same machine (nfs(5)).
_LOCAL = {"nolock", "local_lock=all", "local_lock=flock"}


def shares_locks(path: str) -> bool:
    """Return whether a lock (flock) on a file at `path` is seen by every machine that has the file system mounted."""
    with suppress(OSError):  # other systems have no such list
        return shares_locks_by(_MOUNTS.read_text(), os.path.realpath(path))
    return True


def shares_locks_by(mounts: str, path: str) -> bool:
    """Return the same, from the text of a mountinfo file (proc_pid_mountinfo(5)) and a path without symbolic links."""
    longest, found = -1, True
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        place = left.split(" ")[4].encode().decode("unicode_escape")  # blanks are octal escapes
        kind, _, options = (*right.split(" "), "", "")[:3]
        is_above = path == place or path.startswith(place.rstrip("/") + "/")
        if is_above and len(place) >= longest:
            longest = len(place)
            found = not (kind.startswith("nfs") and _LOCAL & set(options.split(",")))
    return found
