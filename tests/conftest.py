"""Fixtures of all tests: a registry, an S3 server and a Prefect server for the whole session, and an empty home directory."""

import fcntl
import gc
import os
import pwd
import shutil
import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from botocore.loaders import create_loader
from hypothesis import HealthCheck, settings

from tests.markers import MARKERS, mark_by_peers
from tests.peers.prefect import PrefectServer, migrate_database, prefect_server
from tests.peers.registry import CncfRegistry, cncf_registry
from tests.peers.seaweedfs import S3Server, seaweedfs

# The duration of an example depends on the machine, so it has no limit.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

_NAME_LENGTH = 100


def pytest_configure(config: pytest.Config) -> None:
    """Register the marks."""
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect the tests without the garbage collector, and exclude the modules and the tests from its later collections."""
    gc.disable()  # half of the CPU time otherwise, in each process of pytest-xdist
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the marks in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by the servers and programs that the test needs. Run slow tests first in parallel processes."""
    for item in items:
        mark_by_peers(item)
    if "PYTEST_XDIST_WORKER" in os.environ:
        # Thousands of short tests at the end keep all processes busy until the last slow test ends.
        items.sort(key=_rank)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Return a short name for a long parameter. Names of megabytes cost seconds in each process of pytest-xdist."""
    if isinstance(val, str | bytes) and len(val) > _NAME_LENGTH:
        return f"{argname} of length {len(val)}"
    return None


def _rank(item: pytest.Item) -> int:
    """Return 0 for tests with their own time limit, 1 for tests with Prefect or a browser, 2 for other programs, else 3."""
    if item.get_closest_marker("timeout"):
        return 0
    if any(map(item.get_closest_marker, ("prefect", "browser"))):
        return 1
    return 2 if any(map(item.get_closest_marker, ("process", "registry", "s3"))) else 3


@pytest.fixture(scope="session", autouse=True)
def _accept_signals() -> None:
    """Restore the signals that a job in the background of a script ignores, because commands leave ignored signals alone."""
    for number, action in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, action)


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty home directory, so that no test sees the credentials, the Prefect profile or the store of a user."""
    directory = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        prefixes = ("PREFECT_", "DIST_", "DOCKER_", "REGISTRY_AUTH_FILE", "XDG_", "AWS_", "FSSPEC_")
        for name in [name for name in os.environ if name.startswith(prefixes)]:
            patch.delenv(name)
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)  # else each process of the tests compiles the project again
        patch.setenv("HOME", str(directory))
        patch.setenv("XDG_RUNTIME_DIR", str(directory / "run"))  # without this variable, the code would read /run/containers
        patch.setenv("PREFECT_HOME", str(directory / "prefect"))
        patch.setenv("DIST_SERVER_IDLE", "0")  # a local server ends with the command that started it
        patch.setenv("DO_NOT_TRACK", "1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # a client without keys fails without a request to the network
        yield directory


@pytest.fixture(scope="session", autouse=True)
def _models() -> Iterator[None]:
    """Read the models of S3 once. Each session of botocore would list 870 directories and parse megabytes of JSON again."""
    loader = create_loader()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("botocore.session.create_loader", lambda _data_path: loader)
        yield


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CncfRegistry]:
    """A real CNCF registry. Each test uses its own repositories there."""
    with cncf_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server. Each test uses its own prefixes in the bucket. The start takes 4 s."""
    with seaweedfs(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(scope="session")
def mypy_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of mypy for code of users. Without the cache, each run checks Prefect again: 10 s of CPU time."""
    return tmp_path_factory.mktemp("mypy")


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database of Prefect. One process of pytest-xdist runs the migrations for all: they take seconds of CPU time."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with (shared / "migrated.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "migrated.db").exists():
            migrate_database(base / "migrations").rename(shared / "migrated.db")
    return shared / "migrated.db"


@pytest.fixture(scope="session")
def prefect(home: Path, migrated: Path) -> Iterator[PrefectServer]:
    """A real Prefect server, for flows in this process and commands in other processes."""
    (home / "prefect-server").mkdir()
    shutil.copy(migrated, home / "prefect-server" / "prefect.db")
    with prefect_server(home / "prefect-server") as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_API_URL", server.url)
        yield server
        _drain_events()


def _drain_events() -> None:
    """Wait until the server has received all events of this process."""
    if "prefect.events.worker" in sys.modules:
        sys.modules["prefect.events.worker"].EventsWorker.drain_all(timeout=30)


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """No home directory: HOME is unset, and the user has no entry in the database of users."""

    def refuse(key: object) -> None:
        raise KeyError(key)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", refuse)
    monkeypatch.setattr(pwd, "getpwnam", refuse)
