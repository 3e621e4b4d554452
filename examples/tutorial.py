"""`make pictures`: follow docs/tutorials/scheduled-mirror.md, and take its pictures of Prefect's UI anew: docs/images."""

import json
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from tests import tutorial
from tests.peers.chromium import Page, chromium

IMAGES = Path(__file__).parents[1] / "docs" / "images"


def main() -> None:
    """Take the pictures."""
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, chromium(Path(scratch) / "chromium") as browser:
        page = browser.page()
        tutorial.run(Path(scratch), lambda ui, name: take(page, ui, name, IMAGES / f"{name}.png"))


def take(page: Page, ui: str, name: str, path: Path) -> None:
    """Write one of the tutorial's pictures."""
    described = _read(ui, "/deployments/name/mirror/mirror")
    deployment = f"{ui}/deployments/deployment/{described['id']}"
    if name == "run":
        newest = _read(ui, "/flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})[0]["id"]
        page.open(f"{ui}/runs/flow-run/{newest}")
        page.wait_for("prefect.flow_runs")  # which each line of the log shows; not all of them are on the page at once
        page.wait_for_drawing("canvas")
        page.picture(path, height=1000)
    elif name == "form":
        page.open(f"{deployment}/run")
        page.wait_for(described["parameter_openapi_schema"]["properties"]["config"]["description"])
        page.picture(path, height=1000)
    else:
        page.open(deployment)
        page.wait_for("mirror mirror")
        page.wait_for("Every 15 seconds")
        page.picture(path, height=800)
    print(path)


def _read(ui: str, path: str, body: object = None) -> Any:
    """What Prefect's API answers."""
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(f"{ui}/api{path}", data=data, headers={"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
        return json.load(answer)


if __name__ == "__main__":
    main()
