"""The import of the package is quick, needs no Prefect, and offers every public name."""

import subprocess
import sys
from pathlib import Path

import pytest

import prefect_dist
from tests.source import TOP, find_imports, read_modules

FLOWS = ("check", "copy", "fetch", "gc", "mirror", "pull", "push", "seed", "verify")


def run_python(code: str, directory: Path) -> str:
    """Run a Python program in another process and return its output."""
    done = subprocess.run([sys.executable, "-c", code], cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_import_of_the_package_loads_two_modules_and_no_prefect(tmp_path: Path) -> None:
    code = """
import sys, importlib, typing
before = set(sys.modules)
import prefect_dist
print(*sorted(set(sys.modules) - before))
"""
    assert run_python(code, tmp_path).split() == ["prefect_dist", "prefect_dist.mirror"]


def test_errors_and_reports_are_imported_without_prefect(tmp_path: Path) -> None:
    code = """
import sys
from prefect_dist import Descriptor, DistError, Reference, RunFailed, RunReport, RunSummary
print("prefect" in sys.modules)
"""
    assert run_python(code, tmp_path) == "False"


def test_every_public_name_exists_is_sorted_and_has_a_type() -> None:
    names = prefect_dist.__all__
    typed = {found.target.rpartition(".") for found in find_imports(read_modules()[TOP]) if found.root == TOP}

    assert names == sorted(names)
    assert set(names) <= set(dir(prefect_dist))
    assert {name for _, _, name in typed} | {"__version__"} == set(names)
    assert {(f"{TOP}.{module}", name) for name, module in prefect_dist._HOMES.items()} == {
        (one, name) for one, _, name in typed
    }
    for name in names:
        assert getattr(prefect_dist, name) is not None


def test_the_package_exports_the_flow_of_each_deployment() -> None:
    from prefect import Flow

    for name in FLOWS:
        flow = getattr(prefect_dist, name)
        assert isinstance(flow, Flow)
        assert flow.name == name


def test_the_name_mirror_is_the_flow_and_not_the_package_after_each_order_of_imports(tmp_path: Path) -> None:
    """Each order has a fork of a process that has imported Prefect, which takes a second of CPU time."""
    code = """
import os, sys
import prefect, prefect.flows, prefect.task_runners
assert "prefect_dist" not in sys.modules
orders = (
    "import prefect_dist",
    "import prefect_dist.mirror.config",
    "from prefect_dist import mirror",
    "from prefect_dist import cli",
)
for first in orders:
    if not os.fork():
        exec(first)
        from prefect_dist.mirror.config import Mirror
        from prefect_dist.flows.mirror import mirror as original
        import prefect_dist
        from prefect_dist import mirror
        print(first, mirror is prefect_dist.mirror is original, mirror.name, flush=True)
        os._exit(0)
    os.wait()
"""
    lines = run_python(code, tmp_path).splitlines()
    assert len(lines) == 4
    assert [line for line in lines if not line.endswith(" True mirror")] == []


def test_an_unknown_name_raises_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'prefect_dist' has no attribute 'fetsch'"):
        _ = prefect_dist.fetsch


@pytest.mark.xdist_group("mypy")
def test_mypy_knows_the_type_of_the_report_that_each_flow_returns(mypy_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text("""
from prefect_dist import RunFailed, check, copy, fetch, gc, mirror, pull, push, seed, verify
from prefect_dist import RunReport, RunSummary, __version__

fetched: RunReport = fetch(["app:v1"], "store")
pulled: RunReport = pull("app:v1", "directory", "store")
pushed: RunReport = push("app:v1", "registry.example/app:v1", "store")
copied: RunReport = copy("app:v1", "registry.example/app:v1", "store")
mirrored: RunReport = mirror("mirror.yaml")
seeded: RunReport = seed(images=["app:v1"], to=["registry.example"], store="store")
checked: RunReport = check("mirror.yaml")
verified: RunReport = verify("store")
swept: RunReport = gc("store")
version: str = __version__
try:
    fetch(["app:v1"])
except RunFailed as failed:
    report: RunReport | RunSummary = failed.report
""")
    argv = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(mypy_cache), "user.py"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    errors = [line for line in done.stdout.splitlines() if "error:" in line]
    assert errors == [
        'user.py:16: error: No overload variant of "__call__" of "Flow" matches argument type "list[str]"  [call-overload]'
    ]
