"""PostgreSQL (Debian's `postgresql`) on loopback, for Prefect servers that share one database."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.peers.processes import LOOPBACK, free_port, listening, running

_PROGRAMS = Path("/usr/lib/postgresql")  # Debian has the programs of a server only here, by version
_USER = "postgres"


def find_programs() -> Path | None:
    """Return the directory with the programs of the newest installed server, or None."""
    found = sorted(_PROGRAMS.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


@contextmanager
def postgresql(directory: Path, programs: Path) -> Iterator[str]:
    """Run a server that keeps its database in the new `directory`. Yield the database URL for Prefect.

    The server refuses to run as root. With root, the server runs as the user `postgres` of the package, who must be able to
    reach `directory`.
    """
    directory.mkdir(parents=True)
    user: list[str] = []
    if os.geteuid() == 0:
        shutil.chown(directory, _USER, _USER)
        user = ["setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--clear-groups"]
    data, port = directory / "data", free_port()
    init: list[str | Path] = [
        *user,
        programs / "initdb",
        "--auth=trust",
        f"--username={_USER}",
        "--encoding=UTF8",
        "--pgdata",
        data,
    ]
    subprocess.run(init, check=True, stdout=subprocess.DEVNULL, cwd=directory)
    # A unix socket needs a short path, and nothing here uses the socket.
    server: list[str | Path] = [*user, programs / "postgres", "-D", data, "-h", LOOPBACK, "-p", str(port), "-k", ""]
    with running(server, ready=listening(port), log=directory.with_suffix(".log"), cwd=directory):
        yield f"postgresql+asyncpg://{_USER}@{LOOPBACK}:{port}/postgres"
