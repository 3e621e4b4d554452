"""Errors of the content store: the border where a file system's errors become ours."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from ocispec.errors import Denied, DistError, InvalidInput, NotFound, Unavailable

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TEXT = 300
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}


class StoreFull(Unavailable):
    """No space left. What was written stays and is gone on with; trying again at once does not help."""

    retryable = False


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Raise what a file system raises as an error of ours; `what` says what was being done, and on what.

    The libraries of object stores raise not only OSError but errors of their own, of which fsspec says nothing, and ValueError
    for options that cannot be right. What else Python itself raises is a mistake of ours, and stays one.
    """
    try:
        yield
    except DistError:
        raise
    except OSError as exc:
        raise _translate(exc, what) from exc
    except Exception as exc:
        if type(exc).__module__ == "builtins" and not isinstance(exc, ValueError):
            raise
        raise Unavailable(f"{what}: {_one_line(exc)}") from exc


def _translate(exc: OSError, what: str) -> DistError:
    cause = exc.strerror or _one_line(exc)
    if isinstance(exc, FileNotFoundError):
        return NotFound(f"{what}: not there")
    if isinstance(exc, NotADirectoryError | IsADirectoryError | FileExistsError):
        return InvalidInput(f"{what}: {cause} ({exc.filename})")
    if exc.errno in _FULL:
        return StoreFull(f"{what}: {cause}; make room and run again, what was fetched is kept")
    if exc.errno in _REFUSED or isinstance(exc, PermissionError):
        return Denied(f"{what}: {cause}")
    return Unavailable(f"{what}: {cause}")


def _one_line(exc: Exception) -> str:
    return " ".join(str(exc).split())[:_TEXT] or type(exc).__name__
