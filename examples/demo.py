"""Fetch a real image from a real registry on loopback, and show the result (`make demo`).

All files are below `.demo/`, which each run creates again. The demonstration ends each process that it starts.
"""

import json
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
    """Show one fetch from start to finish."""
    shutil.rmtree(DEMO, ignore_errors=True)
    DEMO.mkdir()
    os.environ.pop("PREFECT_API_URL", None)
    os.environ["PREFECT_HOME"] = str(DEMO.absolute() / "prefect")
    try:
        flow_run = fetch_image()
    finally:  # the local server would stay for ten minutes
        print_step("The local Prefect server ends. Otherwise it would end after ten minutes without use.")
        run("dist", "server", "stop")
    print_step("A permanent Prefect server starts on the same database, and shows the tasks of the first run:")
    with prefect_server(DEMO / "prefect") as server:
        show_tasks(server, flow_run)
    print_step(f"To see the run in the UI of Prefect:  PREFECT_HOME={DEMO / 'prefect'} prefect server start")


def fetch_image() -> str:
    """Fetch an image twice, and show the content store. Return the ID of the first flow run."""
    with cncf_registry(DEMO / "registry") as registry:
        name = f"{registry.host}/demo/busybox:latest"
        print_step("umoci builds a real image for two platforms, and skopeo pushes the image to the CNCF registry.")
        build(DEMO / "image", "latest")
        skopeo.copy(f"oci:{DEMO / 'image'}:latest", f"docker://{name}")

        print_step(
            "dist starts a local Prefect server, and fetches the image into a content store. Each descriptor is a Prefect task."
        )
        output = run("dist", "--store", STORE, "--output", "json", "fetch", name)
        print_step("dist fetches the image again. All content exists already.")
        run("dist", "--store", STORE, "fetch", name)
    print_step("The registry has stopped. The store has the image, and other tools can read it.")
    run("dist", "--store", STORE, "names")
    run("dist", "--store", STORE, "ls")
    run("skopeo", "inspect", "--override-os=linux", "--override-arch=amd64", f"oci:{STORE}:{name}")
    return str(json.loads(output)["flow_run_id"])


def print_step(text: str) -> None:
    """Announce the next step."""
    print(f"\n\033[1m# {text}\033[0m", flush=True)


def run(*argv: str | Path) -> str:
    """Print a command, run the command, and return its output."""
    print("$", shlex.join(map(str, argv)), flush=True)
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True)
    print(done.stdout, end="", flush=True)
    return done.stdout


def show_tasks(server: PrefectServer, flow_run_id: str) -> None:
    """Print the task runs as a tree. The parent of a task run is the task run for which it waited."""
    tasks = server.task_runs(flow_run_id)
    children: dict[str | None, list[dict[str, Any]]] = {}
    for task in sorted(tasks, key=lambda task: str(task["start_time"])):
        parents = task["task_inputs"].get("wait_for") or [{"id": None}]
        children.setdefault(parents[0]["id"], []).append(task)

    def show_children(parent: str | None, depth: int) -> None:
        for task in children.get(parent, ()):
            print(f"{'  ' * depth}{task['name']}  {task['state_type'].lower()}")
            show_children(task["id"], depth + 1)

    show_children(None, 1)


if __name__ == "__main__":
    main()
