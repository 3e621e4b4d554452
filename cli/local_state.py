"""The state file of the local Prefect server, and the lock for starts and stops.

`$PREFECT_HOME/dist-server.json` describes the running server of a user. The file has the secret of the server, so only the
owner can read the file. A file that another user could have written or read is ignored and replaced.
"""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import secrets
import stat
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from prefect_dist.ocispec.errors import Busy, Unavailable

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_STATE, _LOCK, _LOG = "dist-server.json", "dist-server.lock", "dist-server.log"
_PAGE_START, _PAGE_END = "dist-server-open-", ".html"
_MAX_STATE_BYTES = 64 * 1024
_POLL_S = 0.02
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True, slots=True)
class State:
    """A local server: its process, its port, its secret, and the versions and settings with which it started.

    `process_start` is the start time of the process in the form of `read_start_time`. `idle_s` is None for a server without an
    idle limit. `is_ready` is False until the server has answered for the first time.
    """

    __pydantic_config__ = {"extra": "forbid", "strict": True}  # noqa: RUF012 - not a field

    pid: int
    process_start: str
    port: int
    secret: str = field(repr=False)
    build: dict[str, str]
    started_at: str
    idle_s: float | None
    is_ready: bool

    def __post_init__(self) -> None:
        if self.pid <= 0 or not 0 < self.port < 1 << 16:
            raise ValueError("expected the ID of a process and a port")
        if datetime.fromisoformat(self.started_at).tzinfo is None:
            raise ValueError("expected a time with a time zone")
        if "prefect" not in self.build or not (self.idle_s is None or 0 <= self.idle_s < math.inf):
            raise ValueError("expected the version of Prefect and a time limit")

    @property
    def url(self) -> str:
        """URL of the UI, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    def is_process_running(self) -> bool:
        """Return True if the process of the server runs. A later process with the same id does not count."""
        return read_start_time(self.pid) == self.process_start


def state_path(home: Path) -> Path:
    """Return the path of the state file."""
    return home / _STATE


def log_path(home: Path) -> Path:
    """Return the path of the log of the server."""
    return home / _LOG


def prepare_home(home: Path) -> None:
    """Create the directory of the state file.

    Raises:
        Unavailable: the directory cannot be created.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise _explain(home, exc) from exc


def is_private(home: Path) -> bool:
    """Return True if only this user can replace files in the directory."""
    return _is_own(home.stat(), stat.S_IWOTH)


def read_state(home: Path) -> State | None:
    """Return the state, or None if there is no file, or if the file is damaged or not private to this user."""
    with contextlib.suppress(OSError, ValueError):
        return _state_adapter().validate_json(_read_private(state_path(home)))
    return None


def _read_private(path: Path) -> bytes:
    """Return the start of a regular file that only this user can read, or no bytes for another file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        found = os.fstat(descriptor)
        is_private_file = stat.S_ISREG(found.st_mode) and _is_own(found, _OTHERS)
        return os.read(descriptor, _MAX_STATE_BYTES) if is_private_file else b""
    finally:
        os.close(descriptor)


@cache
def _state_adapter() -> "TypeAdapter[State]":
    from pydantic import TypeAdapter  # the help of the commands needs no pydantic

    return TypeAdapter(State)


def write_state(home: Path, state: State) -> None:
    """Replace the state file atomically.

    Raises:
        Unavailable: the file cannot be written.
    """
    path = state_path(home)
    new = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = open_private(new, os.O_CREAT | os.O_EXCL)
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump(asdict(state), file)
            new.rename(path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
    except OSError as exc:
        raise _explain(path, exc) from exc


def remove_state(home: Path) -> None:
    """Remove the state file."""
    state_path(home).unlink(missing_ok=True)


def write_page(home: Path, code: str, text: str) -> Path:
    """Write the page that leads a browser to the address with a code, and return its path. The name does not show the code.

    Raises:
        Unavailable: the file cannot be written.
    """
    path = (home / _name_page(code)).absolute()
    try:
        with os.fdopen(open_private(path, os.O_CREAT | os.O_EXCL), "w") as file:
            file.write(text)
    except OSError as exc:
        raise _explain(path, exc) from exc
    return path


def remove_pages(home: Path, *, valid: Iterable[str]) -> None:
    """Remove the pages of all codes but the valid ones."""
    kept = {_name_page(code) for code in valid}
    with contextlib.suppress(OSError):
        for path in home.glob(f"{_PAGE_START}*{_PAGE_END}"):
            if path.name not in kept:
                path.unlink(missing_ok=True)


def _name_page(code: str) -> str:
    return f"{_PAGE_START}{hashlib.sha256(code.encode()).hexdigest()[:32]}{_PAGE_END}"


def open_private(path: Path, flags: int) -> int:
    """Open a file for writing that only this user can read. A symbolic link is not followed. Return the descriptor."""
    return os.open(path, os.O_WRONLY | os.O_NOFOLLOW | flags, 0o600)


def open_log(home: Path) -> int:
    """Empty the log, and return a descriptor for writing.

    Raises:
        Unavailable: the file cannot be written.
    """
    path = log_path(home)
    try:
        path.unlink(missing_ok=True)
        return open_private(path, os.O_CREAT | os.O_EXCL | os.O_APPEND)
    except OSError as exc:
        raise _explain(path, exc) from exc


def identify_file(path: Path) -> tuple[int, ...] | None:
    """Return numbers that differ if the file was removed or replaced, or None if the file does not exist."""
    try:
        found = path.stat(follow_symlinks=False)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns


@contextlib.contextmanager
def hold_lock(home: Path, *, timeout_s: float) -> Iterator[None]:
    """Hold the lock for starts and stops.

    Raises:
        Busy: another process holds the lock for longer than `timeout_s`.
        Unavailable: the lock file cannot be created.
    """
    path = home / _LOCK
    deadline = time.monotonic() + timeout_s
    try:
        descriptor = open_private(path, os.O_CREAT)
    except OSError as exc:
        raise _explain(path, exc) from exc
    with os.fdopen(descriptor, "wb"):
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                raise Busy(f"{path}: another dist command holds this lock for {timeout_s:g} s; end that command, or try again")
            time.sleep(_POLL_S)
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def read_start_time(pid: int) -> str | None:
    """Return the start time of a running process, or None. The text differs for a later process with the same id."""
    try:
        fields_ = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None if Path("/proc/self/stat").exists() else _ask_ps(pid)
    # proc(5): the third field is the state, the 22nd the start time in clock ticks since the boot.
    return None if fields_[0] in (b"Z", b"X") else f"{boot} {fields_[19].decode()}"


def _ask_ps(pid: int) -> str | None:
    """Return the start time of a process on a system without /proc."""
    argv = ["ps", "-o", "lstart=", "-p", str(pid)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)  # noqa: S603 - a program of POSIX
    return done.stdout.strip() or None


def _is_own(found: os.stat_result, forbidden: int) -> bool:
    """Return True if a file or directory belongs to this user, and has none of the `forbidden` permissions."""
    return found.st_uid == os.geteuid() and not found.st_mode & forbidden


def _explain(path: Path, exc: OSError) -> Unavailable:
    return Unavailable(
        f"{path}: {exc.strerror or exc}; the local Prefect server needs a writable directory with free space: "
        "set PREFECT_HOME to another directory, or PREFECT_API_URL to a Prefect server"
    )
