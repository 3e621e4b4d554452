"""docs/tutorials/scheduled-mirror.md: each of its commands works, in order, and its pictures can be taken."""

from pathlib import Path

import pytest

from examples.tutorial import IMAGES, take
from tests import tutorial
from tests.peers.chromium import chromium
from tests.peers.processes import require


@pytest.mark.timeout(400)
def test_the_tutorial(tmp_path: Path) -> None:
    for program, package in (("docker-registry", "docker-registry"), ("skopeo", "skopeo"), ("umoci", "umoci")):
        require(program, package)
    taken = []
    with chromium(tmp_path / "chromium") as browser:
        page = browser.page()

        def picture(ui: str, name: str) -> None:
            take(page, ui, name, tmp_path / f"{name}.png")
            taken.append(name)

        tutorial.run(tmp_path, picture)

    assert taken == ["run", "form", "deployment"]
    assert {path.stem for path in IMAGES.glob("*.png")} == set(taken)
    assert not (tmp_path / "dist-tutorial").exists()
    assert not (tmp_path / ".prefect").exists()
