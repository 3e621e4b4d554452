"""The command server manages the local Prefect server."""

import os
import sys
import webbrowser
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

from cyclopts import Parameter

from prefect_dist.cli import local_process, local_server, local_state, output
from prefect_dist.cli.inputs import BadInput
from prefect_dist.cli.options import Shared, option
from prefect_dist.cli.output import print_error
from prefect_dist.ocispec.units import duration, format_count

Action = Literal["status", "start", "stop", "open"]
_IDLE_S = 600
_LOCK_S = 120


def server(
    action: Annotated[
        Action,
        Parameter(name="ACTION", help="status, start, stop, or open: show the UI in a browser, and print the address."),
    ],
    run: Annotated[str | None, Parameter(name="RUN", help="With open: ID of the flow run to show.")] = None,
    /,
    *,
    foreground: Annotated[bool, option("With start: run in this process until SIGTERM, for service managers.")] = False,
    force: Annotated[bool, option("With stop: end the server although commands use it.")] = False,
    context: Shared,
) -> int:
    """Manage the local server, and return the exit code."""
    _check_arguments(action, run, foreground=foreground, force=force)
    home, api = _read_settings()
    if api and action == "open":
        raise BadInput(f"PREFECT_API_URL is set: commands use the Prefect server {api}; open {_find_ui(api)}{_find_page(run)}")
    if api:
        print_error(f"PREFECT_API_URL is set: commands use the Prefect server {api}, not the local server")
    if action == "status":
        return _show_status(home, context, api=api)
    if action == "stop":
        is_stopped = local_server.stop_server(home, answer_s=context.connect_timeout_s, force=force)
        if context.output == "json":
            output.print_json({"stopped": is_stopped})
        else:
            output.print_lines(["stopped" if is_stopped else "no local Prefect server is running"])
        return 0
    if action == "start" and foreground:
        _run_in_foreground(home, context.connect_timeout_s)
    with local_server.use_server(home, answer_s=context.connect_timeout_s, notify=print_error, min_idle_s=_IDLE_S) as used:
        if used.is_new:
            print_error("starting a local Prefect server")
        used.wait_until_ready()
        return _open(used, run, context) if action == "open" else _show_status(home, context, api=api)


def _check_arguments(action: Action, run: str | None, *, foreground: bool, force: bool) -> None:
    if foreground and action != "start":
        raise BadInput(f"--foreground: expected with 'dist server start', not with 'dist server {action}'")
    if force and action != "stop":
        raise BadInput(f"--force: expected with 'dist server stop', not with 'dist server {action}'")
    if run is None:
        return
    if action != "open":
        raise BadInput(f"{run!r}: expected no argument after 'dist server {action}'")
    try:
        UUID(run)
    except ValueError as exc:
        raise BadInput(f"{run!r}: expected the ID of a flow run, such as c7323d19-79bb-43b4-ada4-747ca34d920b") from exc


def _read_settings() -> tuple[Path, str | None]:
    """Return the directory of the local server, and the configured API."""
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME

    return PREFECT_HOME.value(), PREFECT_API_URL.value()


def _find_ui(api: str) -> str:
    """Return the URL of the UI of the configured API, without a slash at the end."""
    from prefect.settings import PREFECT_UI_URL

    return (PREFECT_UI_URL.value() or api.removesuffix("/api")).rstrip("/")


def _find_page(run: str | None) -> str:
    """Return the path of a run in the UI, or of the first page."""
    return f"/runs/flow-run/{run}" if run else "/"


def _show_status(home: Path, context: Shared, *, api: str | None) -> int:
    status = local_server.read_status(home, answer_s=context.connect_timeout_s)
    if context.output == "json":
        output.print_json({"running": status is not None, **(status or dict.fromkeys(local_server.STATUS_KEYS))})
    elif status is None:
        output.print_lines(["no local Prefect server is running" + ("" if api else "; the next run command starts one")])
    else:
        output.print_lines(_describe(status))
    return 0


def _describe(status: dict[str, Any]) -> list[str]:
    use = format_count(status["commands"], "command")
    limit = status["ends_after_s"]
    end = "runs until SIGTERM" if limit is None else f"ends after {duration(limit)} without use"
    return [
        f"running: Prefect {status['prefect']}, process {status['pid']}, since {status['started_at']}",
        f"use: {use} now, last request {duration(status['idle_s'])} ago; {end}",
        f"UI: {status['url']} (to log in: dist server open)",
        f"log: {status['log']}",
    ]


def _open(used: local_server.LocalServer, run: str | None, context: Shared) -> int:
    path = _find_page(run)
    if context.output == "json":
        output.print_json({"url": f"{used.url.removesuffix('/api')}{path}"})
        return 0
    if sys.stdout.isatty() and _has_display():
        address, page = used.write_page(path)
        webbrowser.open(page)
    else:
        address = used.make_address(path)
    output.print_lines([address])
    return 0


def _has_display() -> bool:
    return sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))


def _run_in_foreground(home: Path, answer_s: float) -> None:
    """Replace this process by a server without an idle limit, which logs to standard error."""
    local_state.prepare_home(home)
    with local_state.hold_lock(home, timeout_s=_LOCK_S):
        if local_server.read_status(home, answer_s=answer_s) is not None:
            raise BadInput("a local Prefect server is running already; stop it with 'dist server stop'")
        listening, secret = local_process.listen(), local_process.make_secret()
        listening.set_inheritable(True)
        port = listening.getsockname()[1]
        state = local_process.make_state(os.getpid(), port, secret, None)
        local_state.write_state(home, state)
    print_error(f"local Prefect server on {state.url}; to end it, press Ctrl-C, send SIGTERM, or run 'dist server stop'")
    command = local_process.make_command(listening, float("inf"))
    environment = local_process.make_environment(home, secret, port)  # before the change of directory: `home` may be relative
    os.umask(0o077)
    os.chdir(home)
    os.execve(command[0], command, environment)  # noqa: S606 - a module of this package
