"""The worker process of one command: `python -P -m prefect_dist.cli._worker POOL LIMIT`. See `cli.local_workers`.

The process is a process worker of Prefect for the work pool POOL, with at most LIMIT processes. It ends by SIGTERM, and when
standard input ends: the command holds the other end of the pipe, so the worker ends also after the command was killed.
"""

import os
import signal
import sys
import threading
from socket import gethostname


def _end_with_input() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Run the worker."""
    pool, limit = sys.argv[1:]
    threading.Thread(target=_end_with_input, name="end of input", daemon=True).start()
    from prefect.cli import app

    sys.argv = ["prefect", "worker", "start", "--pool", pool, "--type", "process", "--limit", limit, "--name", gethostname()]
    app()


if __name__ == "__main__":
    main()
