"""The plug-in in docs/how-to/write-a-remote.md works, and the tests on that page pass."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.plugins import write_plugin

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "write-a-remote.md"


def test_the_remote_of_the_page_passes_the_conformance_suite_of_the_page(tmp_path: Path) -> None:
    text = PAGE.read_text()
    module, suite = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    [points] = re.findall(r"^```toml\n.*?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    write_plugin(tmp_path / "site", module, points=points.replace('"', ""), package="dist-folder")
    assert (tmp_path / "site" / "dist_folder.py").exists()
    (tmp_path / "test_folder.py").write_text(suite)
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}

    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_folder.py"]
    done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert re.search(r"\d\d passed, 2 skipped", done.stdout), done.stdout
