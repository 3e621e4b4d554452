"""Gates: programs and functions of users that the run asks before a publication, and that may veto the image.

Gates verify signatures and run scanners. An image with a veto is not published. If a gate fails, the image is not published
either.
"""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

from prefect_dist.ocispec import Digest, Reference
from prefect_dist.ocispec.errors import DistError
from prefect_dist.remotes.errors import one_line

_POLL_S = 0.1
_OUTPUT_BYTES = 2000
# Credentials of Prefect's API. No scanner needs them, and a local worker has those of the local server.
_SECRETS = frozenset({"PREFECT_API_AUTH_STRING", "PREFECT_API_KEY"})


class Veto(Exception):
    """Raised by a gate to veto an image. The text is the reason."""


class GateFailed(DistError):
    """A gate could not be run, or failed."""


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Gate:
    """A gate: a program with arguments and the timeout `timeout_s`, or a Python callable `module:name`.

    A program gets the fields of `Candidate` as the environment variables DIST_REFERENCE, DIST_DIGEST, DIST_PINNED and
    DIST_STORE, and no credentials of Prefect's API. The image passes with exit status 0. Any other exit status is a veto, with
    the last line of output as the reason. A callable gets the `Candidate`, and raises `Veto` or returns. With `existing`, each
    run also asks about images that were mirrored before.
    """

    command: tuple[str, ...] = ()
    entry_point: str | None = None
    timeout_s: float = 300
    existing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An image in the store: the reference at the source, the digest, and the URL of the store."""

    reference: Reference
    digest: Digest
    store: str

    @property
    def pinned(self) -> str:
        """The reference of the image by digest. A move of the tag does not change the image that the gate reads."""
        return f"{self.reference.locator}@{self.digest}"


def ask(gate: Gate, candidate: Candidate, *, check: Callable[[], None]) -> str | None:
    """Return the reason why the gate vetoes an image, or None if the image passes.

    `check` is called regularly, and may raise an error to end the gate.

    Raises:
        GateFailed: the gate does not exist, cannot be started, was killed, exceeds the timeout or raises another error.
    """
    if gate.entry_point is not None:
        return _call(gate.entry_point, candidate)
    return _run(gate, candidate, check)


def _call(entry_point: str, candidate: Candidate) -> str | None:
    subject = f"gate {entry_point}"
    try:
        function = resolve_name(entry_point)
    except (ImportError, AttributeError, ValueError) as exc:
        raise GateFailed(f"{subject}: cannot be imported ({one_line(str(exc))})") from exc
    try:
        function(candidate)
    except Veto as exc:
        return one_line(str(exc)) or "no reason given"
    except Exception as exc:
        raise GateFailed(f"{subject}: {candidate.reference}: {type(exc).__name__}: {one_line(str(exc))}") from exc
    return None


def name_signal(number: int) -> str:
    """Return the name of a signal, such as SIGTERM. Most realtime signals have only a number."""
    return next((one.name for one in signal.Signals if one == number), f"signal {number}")


def _run(gate: Gate, candidate: Candidate, check: Callable[[], None]) -> str | None:
    subject = f"gate {gate.command[0]}: {candidate.reference}"
    with tempfile.TemporaryFile() as output:
        with _start(gate, candidate, output, subject) as process:
            deadline = time.monotonic() + gate.timeout_s
            while (status := _wait(process)) is None:
                check()
                if time.monotonic() > deadline:
                    raise GateFailed(f"{subject}: gave no answer in {gate.timeout_s:g} s")
        if status < 0:
            raise GateFailed(f"{subject}: was killed by {name_signal(-status)}")
        return None if status == 0 else f"{_last_line(output) or 'no reason given'} (exit status {status})"


@contextlib.contextmanager
def _start(gate: Gate, candidate: Candidate, output: Any, subject: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start the program. At the end of this block, kill the program and its children, if they still run."""
    facts = {
        "DIST_REFERENCE": str(candidate.reference),
        "DIST_DIGEST": str(candidate.digest),
        "DIST_PINNED": candidate.pinned,
        "DIST_STORE": candidate.store,
    }
    try:
        process = subprocess.Popen(  # noqa: S603 - the user's own program
            gate.command,
            env={name: value for name, value in os.environ.items() if name not in _SECRETS} | facts,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    except (OSError, ValueError) as exc:
        raise GateFailed(f"{subject}: cannot be started ({getattr(exc, 'strerror', None) or exc})") from exc
    with process:
        try:
            yield process
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def _wait(process: subprocess.Popen[bytes]) -> int | None:
    try:
        return process.wait(_POLL_S)
    except subprocess.TimeoutExpired:
        return None


def _last_line(output: Any) -> str:
    """Return the last non-blank line of a program's output, escaped for messages."""
    end = output.seek(0, os.SEEK_END)
    output.seek(max(end - _OUTPUT_BYTES, 0))
    lines = output.read().decode(errors="replace").split("\n")
    return next((one_line(line) for line in reversed(lines) if line.strip()), "")
