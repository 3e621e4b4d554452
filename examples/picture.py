"""Take a picture of a run in the UI of Prefect with a headless Chromium: build/run.png (`make ui`)."""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests import images
from tests.peers.prefect import prefect_server
from tests.peers.registry import cncf_registry

PICTURE = Path("build/run.png")
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --window-size=1600,1300 --virtual-time-budget=30000"
)


def main() -> None:
    """Fetch an image for two platforms with a Prefect server, and take a picture of the page of the run."""
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("picture: chromium is not installed; run scripts/peers.sh")
    PICTURE.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, cncf_registry(Path(scratch) / "registry") as registry:
        image = images.index([images.image(1, layers=2), images.image(3, layers=2, platform="linux/arm64")])
        images.push(registry.host, "demo/picture", image, "latest")
        with prefect_server(Path(scratch) / "prefect") as server:
            argv = ["dist", "--store", f"{scratch}/store", "fetch", f"{registry.host}/demo/picture:latest"]
            done = subprocess.run(
                argv,
                env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PREFECT_API_URL": server.url},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            match = re.search(r"run: (\S+)", done.stdout)
            assert match is not None
            server.task_runs(match[1].rpartition("/")[2], at_least=len(image.descriptors) + 1)
            flags = [*_FLAGS.split(), f"--user-data-dir={scratch}/chromium", f"--screenshot={PICTURE.absolute()}"]
            subprocess.run([chromium, *flags, match[1]], check=True, stderr=subprocess.DEVNULL, timeout=120)
    print(PICTURE)


if __name__ == "__main__":
    main()
