"""`make demo`: a real image, a real registry on loopback, `dist fetch`, and what came of it.

Everything happens below `.demo/`, which is made anew each time; whatever is started is ended again.
"""

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

from examples.image import build
from tests.peers import skopeo
from tests.peers.prefect import PrefectServer, prefect_server
from tests.peers.registry import cncf_registry

DEMO = Path(".demo")
STORE = DEMO / "store"


def main() -> None:
    """Show one fetch from beginning to end."""
    shutil.rmtree(DEMO, ignore_errors=True)
    DEMO.mkdir()
    os.environ.pop("PREFECT_API_URL", None)
    os.environ["PREFECT_HOME"] = str(DEMO.absolute() / "prefect")
    with cncf_registry(DEMO / "registry") as registry:
        name = f"{registry.host}/demo/busybox:latest"
        step("A real image for two platforms is built with umoci, and skopeo puts it into the CNCF registry.")
        build(DEMO / "image", "latest")
        skopeo.copy(f"oci:{DEMO / 'image'}:latest", f"docker://{name}")

        step("It is fetched into a content store: every descriptor is a Prefect task. No Prefect server is needed for that.")
        shown = run("dist", "--store", STORE, "fetch", name)
        step("Once more, for a program to read: now all of it is there.")
        run("dist", "--store", STORE, "--output", "json", "fetch", name)
    step("The registry is gone. The store has the image, and other tools read it.")
    run("dist", "--store", STORE, "names")
    run("dist", "--store", STORE, "ls")
    run("skopeo", "inspect", "--override-os=linux", "--override-arch=amd64", f"oci:{STORE}:{name}")

    step("The first run, as a Prefect server that was started only now knows it:")
    with prefect_server(DEMO / "prefect") as server:
        show_tasks(server, shown.strip().rpartition("/")[2])
    step(f"To look at it in Prefect's UI:  PREFECT_HOME={DEMO / 'prefect'} prefect server start")


def step(text: str) -> None:
    """Say what comes next."""
    print(f"\n\033[1m# {text}\033[0m", flush=True)


def run(*argv: str | Path) -> str:
    """Run a command as it is shown; its standard output."""
    print("$", shlex.join(map(str, argv)), flush=True)
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True)
    print(done.stdout, end="", flush=True)
    return done.stdout


def show_tasks(server: PrefectServer, flow_run_id: str) -> None:
    """The task runs as a tree: each below the one whose end it waited for."""
    tasks = server.task_runs(flow_run_id)
    children: dict[str | None, list[dict[str, Any]]] = {}
    for task in sorted(tasks, key=lambda task: str(task["start_time"])):
        parents = task["task_inputs"].get("wait_for") or [{"id": None}]
        children.setdefault(parents[0]["id"], []).append(task)

    def show(parent: str | None, depth: int) -> None:
        for task in children.get(parent, ()):
            print(f"{'  ' * depth}{task['name']}  {task['state_type'].lower()}")
            show(task["id"], depth + 1)

    show(None, 1)


if __name__ == "__main__":
    main()
