"""Sets the attributes of an inode through an open handle: owner, extended attributes, mode and times."""

import errno
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from prefect_dist.storage.unpack.entries import Attributes

_log = logging.getLogger(__name__)
# Attributes that an image must not set: labels and access lists of this machine, and instructions to overlayfs.
_FOREIGN = ("security.selinux", "system.nfs4_acl", "trusted.overlay.")
_REFUSED = {errno.ENOTSUP, errno.EPERM}


class Restorer:
    """Sets the attributes of an image on inodes; owners only if `privileged`."""

    def __init__(self, *, privileged: bool) -> None:
        self._privileged = privileged
        self._refused: set[str] = set()

    def restore(self, handle: int, attributes: Attributes, *, mode: int | None) -> None:
        """Set the attributes of the inode that is open as `handle`, possibly with O_PATH. `mode` None keeps the mode of a link.

        The order matters: a new owner clears capabilities and setuid, and a mode may forbid setting extended attributes.

        Raises:
            OSError: the disk. A refused extended attribute is only logged.
        """
        inode = f"/proc/self/fd/{handle}"  # the only name of an inode, even of a link, that every call below accepts
        if self._privileged:
            os.chown(inode, attributes.uid, attributes.gid)
        self._set_xattrs(inode, dict(attributes.xattrs))
        if mode is not None:
            os.chmod(inode, mode)  # noqa: PTH101 - not a path but a handle
        os.utime(inode, ns=(attributes.mtime_ns, attributes.mtime_ns))

    def _set_xattrs(self, inode: str, wanted: dict[str, bytes]) -> None:
        """Set exactly these extended attributes. Others are removed, since a new inode may have inherited an access list."""
        for name in set(_own(_list_attributes(inode))) - wanted.keys():
            with self._log_refusal(name):
                os.removexattr(inode, name)
        for name in _own(wanted):
            with self._log_refusal(name):
                os.setxattr(inode, name, wanted[name])

    @contextmanager
    def _log_refusal(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            if exc.errno not in _REFUSED:
                raise
            if name not in self._refused:
                self._refused.add(name)
                _log.warning("the file system refuses the extended attribute %s, files lack it: %s", ascii(name), exc.strerror)


def _own(names: Iterable[str]) -> list[str]:
    return [name for name in names if not name.startswith(_FOREIGN)]


def _list_attributes(inode: str) -> list[str]:
    try:
        return os.listxattr(inode)
    except OSError as exc:
        if exc.errno == errno.ENOTSUP:
            return []
        raise
