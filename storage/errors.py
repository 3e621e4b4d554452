"""Translation of file system errors to the errors of this program."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from prefect_dist.ocispec.errors import Denied, DistError, InvalidInput, NotFound, Unavailable

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TEXT = 300
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP}


class StoreFull(Unavailable):
    """No space is left. The ingest keeps its data and can be resumed. An immediate retry would fail again."""

    retryable = False


class ServiceDenied(Denied):
    """An object store refused the operation. The message names the settings to check."""


@contextmanager
def translate_errors(what: str, *, service: str | None = None) -> Iterator[None]:
    """Convert errors of a file system in this block to `DistError`. `what` names the operation and its object.

    `service` is the URL of an object store. Messages of errors then contain the URL and a hint at the settings to check.

    Besides OSError, the libraries of object stores raise undocumented classes, and ValueError for impossible options. Other
    built-in exceptions are programming errors and pass unchanged.
    """
    try:
        yield
    except DistError:
        raise
    except OSError as exc:
        raise _translate(exc, what, service) from exc
    except Exception as exc:
        if type(exc).__module__ == "builtins" and not isinstance(exc, ValueError):
            raise
        raise _unavailable(what, _one_line(exc), service) from exc


def _translate(exc: OSError, what: str, service: str | None) -> DistError:
    cause = exc.strerror or _one_line(exc)
    if isinstance(exc, FileNotFoundError):
        return NotFound("not found", subject=what)
    if isinstance(exc, NotADirectoryError | IsADirectoryError | FileExistsError):
        is_named = exc.filename is None or str(exc.filename) in what
        return InvalidInput(cause if is_named else f"{cause} ({exc.filename})", subject=what)
    if exc.errno == errno.EXDEV:
        places = f"{exc.filename} and {exc.filename2} are on different file systems"
        return InvalidInput(
            f"{places}; keep the whole store on one file system, since content is renamed into place", subject=what
        )
    if exc.errno in _FULL:
        return StoreFull(f"{cause}; free some space and run again, the run resumes", subject=what)
    if exc.errno in _REFUSED or isinstance(exc, PermissionError):
        denied = Denied if service is None else ServiceDenied
        return denied(f"{cause}{_check('the credentials and their permissions', what, service)}", subject=what)
    is_busy = exc.errno == errno.EBUSY and service is not None  # such as 503 SlowDown of S3
    return _busy(what, cause) if is_busy else _unavailable(what, cause, service)


def _busy(what: str, cause: str) -> Unavailable:
    return Unavailable(f"the service is busy ({cause.rstrip('.')}); run again later", subject=what)


def _unavailable(what: str, cause: str, service: str | None) -> Unavailable:
    return Unavailable(f"{cause}{_check('the credentials, the bucket and the endpoint', what, service)}", subject=what)


def _check(things: str, what: str, service: str | None) -> str:
    if service is None:
        return ""
    return f"; check {things}" if service in what else f"; check {things} ({service})"


def _one_line(exc: Exception) -> str:
    return " ".join(str(exc).split())[:_TEXT].rstrip(".") or type(exc).__name__
