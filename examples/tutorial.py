"""Follow docs/tutorials/scheduled-mirror.md, and take its pictures of the UI again: docs/images (`make pictures`)."""

import json
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from tests import tutorial
from tests.peers.chromium import Page, chromium

IMAGES = Path(__file__).parents[1] / "docs" / "images"


def main() -> None:
    """Follow the tutorial and take each picture."""
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, chromium(Path(scratch) / "chromium") as browser:
        page = browser.page()
        tutorial.follow(Path(scratch), lambda ui, name: take_picture(page, ui, name, IMAGES / f"{name}.png"))


def take_picture(page: Page, ui: str, name: str, path: Path) -> None:
    """Take the picture `name` of the tutorial and write the picture to `path`."""
    found = _read(ui, "/deployments/name/mirror/mirror")
    deployment = f"{ui}/deployments/deployment/{found['id']}"
    if name == "run":
        newest = _read(ui, "/flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})[0]["id"]
        page.open(f"{ui}/runs/flow-run/{newest}")
        page.wait_for("prefect.flow_runs")  # the logger, in each line of the log; the page does not show all lines at once
        page.wait_for_drawing("canvas")
        page.picture(path, height=1000)
    elif name == "form":
        page.open(f"{deployment}/run")
        page.wait_for(found["parameter_openapi_schema"]["properties"]["config"]["description"])
        page.picture(path, height=1000)
    else:
        page.open(deployment)
        page.wait_for("mirror mirror")
        page.wait_for("Every 15 seconds")
        page.picture(path, height=800)
    page.open("about:blank")  # the pages of Prefect poll the server, and draw the graph of a run again and again
    print(path)


def _read(ui: str, path: str, body: object = None) -> Any:
    """Return the response of the API of Prefect."""
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(f"{ui}/api{path}", data=data, headers={"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
        return json.load(answer)


if __name__ == "__main__":
    main()
