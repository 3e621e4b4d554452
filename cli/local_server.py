"""The local Prefect server: a process in the background that later commands of the same user and PREFECT_HOME use again.

The server uses the database `$PREFECT_HOME/prefect.db`, like `prefect server start`. A command holds a lease on the server. The
server ends after the time of DIST_SERVER_IDLE without a lease and without a request. With `DIST_SERVER_IDLE=0`, the server that
a command starts serves only this command, and ends with the command. docs/dev/adr/0009 has the reasons for the design.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

from prefect_dist.cli import local_auth, local_process, local_state
from prefect_dist.cli.local_client import Connection, Ending, NoAnswer, NotOurs, open_connection
from prefect_dist.cli.local_state import State
from prefect_dist.ocispec.errors import Busy, Unavailable
from prefect_dist.ocispec.units import format_count

# The migration of a new database takes about 15 s on a slow machine.
_START_S = 120
STATUS_KEYS = ("url", "pid", "started_at", "prefect", "commands", "idle_s", "ends_after_s", "log")
"""The keys of `read_status`."""
_ANSWER_S = 10
_NOTE_S = 1

Notify = Callable[[str], None]


class LocalServer:
    """A starting or running server, which the command uses until `close`. `is_new` is True if this command starts it."""

    def __init__(self, home: Path, state: State, lock: contextlib.ExitStack, connection: Connection | None = None) -> None:
        self.is_new = connection is None
        self.url, self.secret = f"{state.url}/api", state.secret
        self._home, self._state, self._lock, self._connection = home, state, lock, connection

    def wait_until_ready(self) -> None:
        """Wait until the server answers, and take a lease. From now on, other commands can use the server.

        Raises:
            Unavailable: the server did not start. The message has the last line of the log.
        """
        try:
            # The socket listens already, so the request waits until the server is ready.
            self._connection = self._connection or _take_lease(self._state, _START_S)
            if not self._state.is_ready and local_state.read_state(self._home) == self._state:
                local_state.write_state(self._home, replace(self._state, is_ready=True))
            self._lock.close()
        except (NoAnswer, NotOurs) as exc:
            local_process.kill(self._state)
            local_state.remove_state(self._home)
            reason = local_process.read_last_line(self._home) or str(exc)
            log = local_state.log_path(self._home)
            remedy = "run commands with --direct to work without a server"
            raise Unavailable(f"local Prefect server: did not start: {reason} (log: {log}); {remedy}") from exc

    def is_running(self) -> bool:
        """Return True if the process of the server runs."""
        return self._state.is_process_running()

    def make_address(self, path: str) -> str:
        """Return an address that logs a browser in and opens a page of the UI. The address is valid once, for ten minutes.

        Raises:
            Unavailable: the server does not answer.
        """
        return self._complete_address(self._issue_code(), path)

    def write_page(self, path: str) -> tuple[str, str]:
        """Return an address as `make_address`, and the URL of a private file that leads a browser to the address.

        The server removes the file when the address has been used or is no longer valid.

        Raises:
            Unavailable: the server does not answer, or the file cannot be written.
        """
        code = self._issue_code()
        address = self._complete_address(code, path)
        return address, local_state.write_page(self._home, code, local_auth.make_start_page(address)).as_uri()

    def _issue_code(self) -> str:
        try:
            with open_connection(self._state, timeout_s=_ANSWER_S) as connection:
                return str(connection.request("POST", "/dist/codes")["code"])
        except (NoAnswer, NotOurs) as exc:
            raise _hangs(self._state) from exc

    def _complete_address(self, code: str, path: str) -> str:
        return f"{self._state.url}/open?{urlencode({'code': code, 'to': path}, safe='/')}"

    def describe_address(self, path: str, *, is_terminal: bool) -> str:
        """Return a line with the URL of a page of the UI. Only the line for a terminal has a code that logs a browser in."""
        run = path.rpartition("/")[2]
        if self._state.idle_s == 0:  # the server ends with this command
            return f"run: {run}; to open it, run 'dist server open {run}'"
        if is_terminal:
            with contextlib.suppress(Unavailable):
                return f"run: {self.make_address(path)}"
        return f"run: {self._state.url}{path} (to log in: dist server open {run})"

    def close(self) -> None:
        """End the lease."""
        if self._connection is not None:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def use_server(home: Path, *, answer_s: float, notify: Notify, min_idle_s: float = 0) -> Iterator[LocalServer]:
    """Find or start a server. Call `wait_until_ready` before a request.

    A running server must answer within `answer_s`. `notify` gets messages for the user.

    Raises:
        Unavailable: the server does not answer, or a file cannot be written.
        Busy: another command does not finish the start of a server.
    """
    idle_s = max(local_process.read_idle(), min_idle_s)
    local_state.prepare_home(home)
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(contextlib.ExitStack())
        lock.enter_context(local_state.hold_lock(home, timeout_s=_START_S))
        while isinstance(found := _find(home, answer_s), _EndingServer):
            lock.close()  # the runs on the server can take hours
            _wait_for_end(found, notify)
            lock.enter_context(local_state.hold_lock(home, timeout_s=_START_S))
        if found is None:
            shared_s = idle_s if local_state.is_private(home) else 0
            server = LocalServer(home, stack.enter_context(local_process.run_process(home, idle_s=shared_s)), lock)
        else:
            server = LocalServer(home, found[0], lock, found[1])
        yield stack.enter_context(server)


def read_status(home: Path, *, answer_s: float) -> dict[str, Any] | None:
    """Return the state of the running server without its secret, and its use, or None if no server runs.

    Raises:
        Unavailable: the server does not answer.
    """
    state = _read_running(home)
    if state is None:
        return None
    try:
        with open_connection(state, timeout_s=_limit_answer(state, answer_s)) as connection:
            use = connection.request("GET", "/dist/status")
    except NotOurs:
        return None
    except NoAnswer as exc:
        raise _hangs(state) from exc
    return {
        "url": state.url,
        "pid": state.pid,
        "started_at": state.started_at,
        "prefect": state.build["prefect"],
        "commands": use["leases"],
        "idle_s": round(use["idle_s"], 1),
        "ends_after_s": state.idle_s,
        "log": str(local_state.log_path(home)),
    }


def stop_server(home: Path, *, answer_s: float, force: bool) -> bool:
    """End the server after it has recorded what it has received. Return False if no server runs.

    Raises:
        Busy: commands use the server, and `force` is False.
        Unavailable: the server still runs after its time limit.
    """
    state = _read_running(home)
    if state is None:
        return False
    try:
        with open_connection(state, timeout_s=_limit_answer(state, answer_s)) as connection:
            answer = connection.request("POST", f"/dist/stop?when={'now' if force else 'unused'}")
    except NoAnswer:
        local_process.kill(state)
    except NotOurs:  # the server ends already
        pass
    else:
        if not answer["stops"]:
            users = format_count(answer["leases"], "command")
            raise Busy(f"local Prefect server: {users} in use; wait for the end of the runs, or run 'dist server stop --force'")
    if not local_process.wait_for_exit(state, timeout_s=local_process.END_S):
        raise _hangs(state)
    return True


@dataclass(frozen=True, slots=True)
class _EndingServer:
    """A server that ends after its last lease. `users` is the number of leases, and `is_other` True for another build."""

    state: State
    users: int
    is_other: bool


def _find(home: Path, answer_s: float) -> tuple[State, Connection] | _EndingServer | None:
    """Return the running server and a lease, or a server that must end first: two servers must not migrate a database.

    The result is None if a server can be started now. The caller holds the lock.
    """
    state = _read_running(home)
    if state is None:
        return None
    is_other = state.build != local_process.describe_build()
    try:
        if not is_other:
            with contextlib.suppress(Ending):
                return state, _take_lease(state, _limit_answer(state, answer_s))
        with open_connection(state, timeout_s=_limit_answer(state, answer_s)) as connection:
            users = connection.request("POST", "/dist/stop?when=released")["leases"]
    except NoAnswer as exc:
        raise _hangs(state) from exc
    except NotOurs:  # the server does not listen any more
        users = 0
    return _EndingServer(state, users, is_other)


def _wait_for_end(server: _EndingServer, notify: Notify) -> None:
    """Wait until the process of a server has ended. Its commands have no time limit.

    Raises:
        Unavailable: the server has no commands, but does not end.
    """
    if not server.users:
        if not local_process.wait_for_exit(server.state, timeout_s=local_process.END_S):
            raise _hangs(server.state)
    elif not local_process.wait_for_exit(server.state, timeout_s=_NOTE_S):
        kind = f"with Prefect {server.state.build['prefect']} and other settings" if server.is_other else "that ends after it"
        notify(f"waiting for the end of {format_count(server.users, 'command')} on a local server {kind}")
        while not local_process.wait_for_exit(server.state, timeout_s=_NOTE_S):
            pass


def _read_running(home: Path) -> State | None:
    """Return the state of the running server, or None. The file of a server that was killed is left to the next start."""
    state = local_state.read_state(home)
    return state if state is not None and state.is_process_running() else None


def _take_lease(state: State, timeout_s: float) -> Connection:
    connection = open_connection(state, timeout_s=timeout_s)
    try:
        connection.lease()
    except BaseException:
        connection.close()
        raise
    return connection


def _limit_answer(state: State, answer_s: float) -> float:
    """Return the seconds to wait for an answer. A server whose starter was killed may still be starting."""
    age = (datetime.now(UTC) - datetime.fromisoformat(state.started_at)).total_seconds()
    return answer_s if state.is_ready else max(answer_s, _START_S - max(age, 0))


def _hangs(state: State) -> Unavailable:
    return Unavailable(
        f"local Prefect server: process {state.pid} does not answer on {state.url}; "
        "end the server with 'dist server stop', and run the command again"
    )
