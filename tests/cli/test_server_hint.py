"""A hint for Prefect servers whose settings make them slow with many task runs."""

import shutil
from pathlib import Path

from tests import images
from tests.cli.dist import dist
from tests.fakes.registry import FakeRegistry
from tests.peers.prefect import PrefectServer, prefect_server

HINT = "hint: this Prefect server records task runs one by one"
MANY, FEW = images.image(6800, layers=100, layer_bytes=100), images.image(6801, layers=1)


def hinted(server: PrefectServer, directory: Path, *, many: bool) -> bool:
    """Return True if a fetch prints the hint."""
    with FakeRegistry() as registry:
        images.load(registry, "app", MANY if many else FEW, "v1")
        result = dist("--store", directory / "store", "fetch", f"{registry.host}/app:v1", PREFECT_API_URL=server.url)
    assert result.code == 0, result.err
    return any(line.startswith(HINT) for line in result.err.splitlines())


def test_a_large_run_on_a_server_without_batches_prints_a_hint(migrated: Path, tmp_path: Path) -> None:
    home = tmp_path / "prefect"
    home.mkdir()
    shutil.copy(migrated, home / "prefect.db")
    with prefect_server(home, PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE="1") as server:
        assert hinted(server, tmp_path / "many", many=True)
        assert not hinted(server, tmp_path / "few", many=False)


def test_a_server_with_batches_gets_no_hint(prefect: PrefectServer, tmp_path: Path) -> None:
    assert not hinted(prefect, tmp_path, many=True)
