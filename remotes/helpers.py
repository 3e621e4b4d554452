"""Credential helpers: programs `docker-credential-NAME` that know what a registry wants to hear.

Follows the protocol of docker/docker-credential-helpers 0.9: `get` with a server's name on standard input gives a JSON object.
Which helper is asked for which server is `remotes.credentials`'s.
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
# name ::= alnum { alnum | "." | "_" | "-" }: no path, no option, nothing that a shell or a message would stumble over
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# What all helpers say, on standard output and then with exit status 1, of a server that they do not know.
_UNKNOWN = b"credentials not found in native keychain"
# The longest tokens, Amazon's, have some 3 KB.
_MAX_ANSWER_BYTES = 64 * 1024


def is_name(text: str) -> bool:
    """Return True for a valid `HelperName`."""
    return _NAME.fullmatch(text) is not None


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Answer:
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
        """Return the error for a helper that fails. It has no output of the helper, but the command that shows it."""
        return Denied(f"{self} {what}; to see why: echo {self.server} | docker-credential-{self.helper} get")


class Helpers:
    """Credential helpers. Each is run once for each server, and once more for each secret that is refused. Thread-safe."""

    def __init__(self, *, timeout_s: float = 30) -> None:
        self._timeout_s = timeout_s
        self._answers: dict[_HelperRequest, Answer | Denied | None] = {}
        self._refused: set[tuple[_HelperRequest, Answer]] = set()
        self._locks: dict[_HelperRequest, threading.Lock] = {}
        self._guard = threading.Lock()

    def get(self, helper: HelperName, server: str) -> Answer | None:
        """Return the credentials of `docker-credential-HELPER`, found on PATH, for `server`; None for none.

        Raises:
            Denied: there is no such program, it fails, takes too long, or answers with something else. It is not run again.
        """
        request = _HelperRequest(helper=helper, server=server)
        with self._lock(request):  # threads with the same request wait for one answer
            if request not in self._answers:
                self._answers[request] = self._run_helper(request)
            answer = self._answers[request]
        if isinstance(answer, Denied):
            raise Denied(str(answer))  # a new one: threads that raised the same would write into one traceback
        return answer

    def get_another(self, helper: HelperName, server: str, refused: Answer) -> Answer | None:
        """Another answer than the one that was `refused`; None if the helper has no other. Runs it once for each refused one.

        Raises:
            Denied: the helper fails, see `get`.
        """
        request = _HelperRequest(helper=helper, server=server)
        with self._lock(request):
            known = self._answers.get(request)
            if isinstance(known, Answer) and known != refused:
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

    def _run_helper(self, request: _HelperRequest) -> Answer | Denied | None:
        _log.debug("asking docker-credential-%s for %s", request.helper, request.server)
        try:
            return _parse_output(request, *_run(request, timeout_s=self._timeout_s))
        except Denied as exc:
            return Denied(str(exc))  # without what hangs on a raised one


def _run(request: _HelperRequest, *, timeout_s: float) -> tuple[int, bytes]:
    """The exit status of a helper and what it writes to standard output."""
    program = shutil.which(f"docker-credential-{request.helper}")
    if program is None:
        raise Denied(f"{request} is not on PATH; install it, or log in without it")
    deadline = time.monotonic() + timeout_s
    try:
        # Without a terminal: it could not be asked there, beside a progress display or by a worker, and would wait for ever.
        process = subprocess.Popen(  # noqa: S603 - its name is checked, and PATH is the user's
            [program, "get"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
        )
    except OSError as exc:
        raise request.failure(f"cannot be run ({exc.strerror})") from exc
    with process:
        try:
            raw = _communicate(process, request, deadline)
            return process.wait(max(deadline - time.monotonic(), 0)), raw
        except (TimeoutError, subprocess.TimeoutExpired):
            _kill(process)
            raise request.failure(f"gave no answer in {timeout_s:g} s") from None
        except BaseException:
            _kill(process)
            raise


def _communicate(process: subprocess.Popen[bytes], request: _HelperRequest, deadline: float) -> bytes:
    """Tell a program the server, and read all that it writes.

    Raises:
        TimeoutError: it has not ended that in time.
        Denied: it writes too much.
    """
    stdin, stdout = cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stdout)
    with contextlib.suppress(BrokenPipeError), stdin:  # it may end without reading
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
    raise request.failure(f"answers with more than {_MAX_ANSWER_BYTES} bytes")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a program and what it started."""
    if process.returncode is None:  # afterwards the number may be another's
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _parse_output(request: _HelperRequest, status: int, raw: bytes) -> Answer | None:
    """Parse the output of a helper."""
    if raw.strip() == _UNKNOWN:
        return None
    if status != 0:
        raise request.failure(f"failed with exit status {status}")
    try:
        document = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise request.failure("answers with something that is not JSON") from None  # the parser's error shows the text
    if document == {}:
        return None  # docker and podman take it so
    username, secret = (document.get("Username"), document.get("Secret")) if isinstance(document, dict) else (None, None)
    if not isinstance(username, str) or not isinstance(secret, str):
        raise request.failure("answers without the strings Username and Secret")
    return Answer(username=username, secret=secret) if secret else None
