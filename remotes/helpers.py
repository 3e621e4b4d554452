"""Credential helpers: programs `docker-credential-NAME`, which return the credentials for a server.

Follows the protocol of docker/docker-credential-helpers 0.9: `get` with a server's name on standard input prints a JSON object.
The choice of the helper for a server is left to `remotes.credentials`.
"""

import contextlib
import logging
import os
import re
import selectors
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from typing import IO, NewType, cast

import orjson

from prefect_dist.ocispec.errors import Denied

HelperName = NewType("HelperName", str)
"""The NAME of a program `docker-credential-NAME`, checked by `is_name`."""

_log = logging.getLogger(__name__)
# name ::= alnum { alnum | "." | "_" | "-" }: no path, no option, no character that is special in a shell or a message
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# The standard output of all helpers, with exit status 1, for an unknown server.
_UNKNOWN = b"credentials not found in native keychain"
# The longest known tokens, those of Amazon, have about 3 KB.
_MAX_ANSWER_BYTES = 64 * 1024


def is_name(text: str) -> bool:
    """Return True for a valid `HelperName`."""
    return _NAME.fullmatch(text) is not None


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class HelperCredentials:
    """The credentials that a helper returned for a server."""

    username: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class _HelperRequest:
    """A request to a credential helper for a server."""

    helper: HelperName
    server: str

    def __str__(self) -> str:
        return f"{self.server}: credential helper docker-credential-{self.helper}"

    def failure(self, what: str) -> Denied:
        """Return the error for a failing helper: without the helper's output, but with the command to see it."""
        return Denied(f"{self} {what}; to see why: echo {self.server} | docker-credential-{self.helper} get")


class Helpers:
    """Runs credential helpers: once for each server, and once more for each rejected secret. Thread-safe."""

    def __init__(self, *, timeout_s: float = 30) -> None:
        self._timeout_s = timeout_s
        self._answers: dict[_HelperRequest, HelperCredentials | Denied | None] = {}
        self._refused: set[tuple[_HelperRequest, HelperCredentials]] = set()
        self._locks: dict[_HelperRequest, threading.Lock] = {}
        self._guard = threading.Lock()

    def get(self, helper: HelperName, server: str) -> HelperCredentials | None:
        """Return the credentials for `server` from `docker-credential-HELPER`, found on PATH; None if the helper has none.

        Raises:
            Denied: the program is missing, fails, takes too long, or prints other output. It is not run again.
        """
        request = _HelperRequest(helper=helper, server=server)
        with self._lock(request):  # threads with the same request wait for one run
            if request not in self._answers:
                self._answers[request] = self._run_helper(request)
            answer = self._answers[request]
        if isinstance(answer, Denied):
            raise Denied(str(answer))  # a copy: threads that raise one object would share its traceback
        return answer

    def get_another(self, helper: HelperName, server: str, refused: HelperCredentials) -> HelperCredentials | None:
        """Return credentials different from `refused`; None if the helper has no others.

        The helper is run once for each rejected secret.

        Raises:
            Denied: the helper fails, see `get`.
        """
        request = _HelperRequest(helper=helper, server=server)
        with self._lock(request):
            known = self._answers.get(request)
            if isinstance(known, HelperCredentials) and known != refused:
                return known  # another thread was faster
            if (request, refused) in self._refused:
                return None
            self._refused.add((request, refused))
            answer = self._run_helper(request)
            if isinstance(answer, Denied):
                raise answer
            if answer is None or (request, answer) in self._refused:
                return None
            self._answers[request] = answer
            return answer

    def _lock(self, request: _HelperRequest) -> threading.Lock:
        with self._guard:
            return self._locks.setdefault(request, threading.Lock())

    def _run_helper(self, request: _HelperRequest) -> HelperCredentials | Denied | None:
        _log.debug("running docker-credential-%s for %s", request.helper, request.server)
        try:
            return _parse_output(request, *_run(request, timeout_s=self._timeout_s))
        except Denied as exc:
            return Denied(str(exc))  # without the traceback


def _run(request: _HelperRequest, *, timeout_s: float) -> tuple[int, bytes]:
    """Run a helper; return its exit status and its standard output."""
    program = shutil.which(f"docker-credential-{request.helper}")
    if program is None:
        raise Denied(f"{request} is not on PATH; install it, or log in without it")
    deadline = time.monotonic() + timeout_s
    try:
        # Without a terminal: a prompt would collide with the progress display, or wait forever in a worker.
        process = subprocess.Popen(  # noqa: S603 - the name is checked, and PATH is the user's
            [program, "get"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
        )
    except OSError as exc:
        raise request.failure(f"cannot be started ({exc.strerror})") from exc
    with process:
        try:
            raw = _communicate(process, request, deadline)
            return process.wait(max(deadline - time.monotonic(), 0)), raw
        except (TimeoutError, subprocess.TimeoutExpired):
            _kill(process)
            raise request.failure(f"did not finish within {timeout_s:g} s") from None
        except BaseException:
            _kill(process)
            raise


def _communicate(process: subprocess.Popen[bytes], request: _HelperRequest, deadline: float) -> bytes:
    """Write the server's name to the helper, and return its output.

    Raises:
        TimeoutError: the helper has not finished at the deadline.
        Denied: the output is too long.
    """
    stdin, stdout = cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stdout)
    with contextlib.suppress(BrokenPipeError), stdin:  # the helper may exit without reading
        stdin.write(request.server.encode())  # fits into any pipe
    raw = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        while len(raw) <= _MAX_ANSWER_BYTES:
            if not selector.select(max(deadline - time.monotonic(), 0)):
                raise TimeoutError
            piece = os.read(stdout.fileno(), _MAX_ANSWER_BYTES)
            if not piece:
                return raw
            raw += piece
    raise request.failure(f"printed more than {_MAX_ANSWER_BYTES} bytes")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a helper and its child processes."""
    if process.returncode is None:  # later the process id may be reused
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _parse_output(request: _HelperRequest, status: int, raw: bytes) -> HelperCredentials | None:
    """Return the credentials in the output of a helper; None if the helper has none."""
    if raw.strip() == _UNKNOWN:
        return None
    if status != 0:
        raise request.failure(f"failed with exit status {status}")
    try:
        document = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise request.failure("printed something other than JSON") from None  # the parser's error quotes the text
    if document == {}:
        return None  # as in docker and podman
    username, secret = (document.get("Username"), document.get("Secret")) if isinstance(document, dict) else (None, None)
    if not isinstance(username, str) or not isinstance(secret, str):
        raise request.failure("printed no strings Username and Secret")
    return HelperCredentials(username=username, secret=secret) if secret else None
