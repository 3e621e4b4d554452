"""Gates: programs and functions of users that are asked before an image is published, and may veto it.

This is where signatures are verified and scanners run. A gate that says no is obeyed; one that cannot be asked has failed, and
nothing is published either.
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

_LOOK_S = 0.1
_TOLD_BYTES = 2000


class Veto(Exception):
    """Raised by a gate: this image is not to be published, for the reason that the text gives."""


class GateFailed(DistError):
    """A gate could not be asked, or broke."""


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Gate:
    """A gate: a program with its arguments, which may take `timeout_s`, or a Python callable `module:name`.

    A program finds what `Candidate` has in its environment, as DIST_REFERENCE, DIST_DIGEST, DIST_PINNED and DIST_STORE. Exit
    status 0 lets the image pass; any other is a veto, and the last line that it wrote the reason. A callable is given the
    `Candidate`, and raises `Veto` or returns. With `existing`, each run also asks about images that were mirrored before.
    """

    command: tuple[str, ...] = ()
    entry_point: str | None = None
    timeout_s: float = 300
    existing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An image that is whole in the store: its reference at the source, its digest, and the URL of the store."""

    reference: Reference
    digest: Digest
    store: str

    @property
    def pinned(self) -> str:
        """Return the image by its digest, which cannot move before the gate reads it."""
        return f"{self.reference.locator}@{self.digest}"


def ask(gate: Gate, candidate: Candidate, *, check: Callable[[], None]) -> str | None:
    """Return why the gate vetoes an image; None if it passes. `check` is called regularly, and may raise to end this.

    Raises:
        GateFailed: it is not there, cannot be started, was killed, takes too long or raises something else.
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


def _run(gate: Gate, candidate: Candidate, check: Callable[[], None]) -> str | None:
    subject = f"gate {gate.command[0]}: {candidate.reference}"
    with tempfile.TemporaryFile() as told:
        with _start(gate, candidate, told, subject) as process:
            deadline = time.monotonic() + gate.timeout_s
            while (status := _wait(process)) is None:
                check()
                if time.monotonic() > deadline:
                    raise GateFailed(f"{subject}: gave no answer in {gate.timeout_s:g} s")
        if status < 0:
            raise GateFailed(f"{subject}: was killed by {signal.Signals(-status).name}")
        return None if status == 0 else f"{_last_line(told) or 'no reason given'} (exit status {status})"


@contextlib.contextmanager
def _start(gate: Gate, candidate: Candidate, told: Any, subject: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start the program. At the end of this block, kill it and its children unless it ended."""
    facts = {
        "DIST_REFERENCE": str(candidate.reference),
        "DIST_DIGEST": str(candidate.digest),
        "DIST_PINNED": candidate.pinned,
        "DIST_STORE": candidate.store,
    }
    try:
        process = subprocess.Popen(  # noqa: S603 - the user's own program
            gate.command,
            env=os.environ | facts,
            stdin=subprocess.DEVNULL,
            stdout=told,
            stderr=told,
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
        return process.wait(_LOOK_S)
    except subprocess.TimeoutExpired:
        return None


def _last_line(told: Any) -> str:
    """Return the last line of a program's output that is not blank, escaped for messages."""
    end = told.seek(0, os.SEEK_END)
    told.seek(max(end - _TOLD_BYTES, 0))
    lines = told.read().decode(errors="replace").split("\n")
    return next((one_line(line) for line in reversed(lines) if line.strip()), "")
