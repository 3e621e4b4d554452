"""Secrets of credential helpers that expire during a run: the helper is run again after a 401, once for each secret."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from prefect_dist.ocispec import Reference
from prefect_dist.ocispec.errors import Denied, InvalidInput
from prefect_dist.remotes import DockerConfig, Registries
from prefect_dist.remotes.credentials import Credentials
from prefect_dist.remotes.errors import RegistryDenied, RegistryRefused
from tests.fakes.access import Basic, Bearer
from tests.fakes.faults import Answer, Call, Fault, Redirect
from tests.fakes.registry import FakeRegistry
from tests.remotes.asking import BLOB, REPOSITORY, SETTINGS, check_message, descriptor, fetcher, read, read_until_error
from tests.remotes.pushing import Reader, pusher
from tests.remotes.test_helpers import Programs

WANTED = descriptor(BLOB)
THREADS = 8
Auth = Callable[[str], Basic | Bearer]


class Helper:
    """A credential helper that prints the present content of a file."""

    def __init__(self, directory: Path, programs: Programs) -> None:
        self._secret, self._programs = directory / "secret", programs
        self.config = directory / "config.json"

    def give(self, secret: str) -> None:
        self._secret.write_text(f'{{"Username": "me", "Secret": "{secret}"}}')
        self._programs.install("cloud", f"cat {self._secret}")

    def give_a_new_one_each_time(self) -> None:
        self._programs.install("cloud", """printf '{"Username": "me", "Secret": "secret-%s"}' "$$" """)

    @property
    def calls(self) -> int:
        return len(self._programs.calls)


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Helper:
    programs = Programs(tmp_path / "bin")
    programs.directory.mkdir()
    monkeypatch.setenv("PATH", str(programs.directory), prepend=":")
    return Helper(tmp_path, programs)


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        registry.put_blob(REPOSITORY, BLOB)
        registry.put_blob("team/other", BLOB)
        yield registry


@pytest.fixture(params=[("basic", 401), ("basic", 403), ("basic", 400), ("bearer", 401), ("bearer", 400), ("bearer", 403)])
def auth(request: pytest.FixtureRequest) -> Auth:
    """The authentication of the registry, by password or token server, and its status for another password."""
    kind, status = request.param
    if kind == "basic":
        return lambda password: Basic("me", password, wrong_status=status)
    return lambda password: Bearer(user="me", password=password, refuse_anonymous=True, wrong_status=status)


@pytest.fixture
def registries(helper: Helper, registry: FakeRegistry) -> Iterator[Registries]:
    helper.config.write_text(f'{{"credHelpers": {{"{registry.host}": "cloud"}}}}')
    config = DockerConfig.load({"REGISTRY_AUTH_FILE": str(helper.config)})
    with Registries(SETTINGS, credentials=config.get) as registries:
        yield registries


def test_a_secret_that_expired_is_replaced(registries: Registries, registry: FakeRegistry, helper: Helper, auth: Auth) -> None:
    for number, secret in enumerate(("first", "second", "third"), start=1):
        helper.give(secret)
        registry.change_auth(auth(secret))
        for _ in range(2):
            assert read(fetcher(registries, registry), WANTED) == BLOB
        assert helper.calls == number


def test_threads_whose_secret_expired_share_one_call(
    registries: Registries, registry: FakeRegistry, helper: Helper, auth: Auth
) -> None:
    helper.give("first")
    registry.change_auth(auth("first"))
    source = fetcher(registries, registry)
    assert read(source, WANTED) == BLOB
    helper.give("second")
    registry.change_auth(auth("second"))
    with ThreadPoolExecutor(THREADS) as threads:
        assert list(threads.map(lambda _: read(source, WANTED) == BLOB, range(THREADS))) == [True] * THREADS
    assert helper.calls == 2


def test_a_helper_without_another_secret_is_run_once_more(
    registries: Registries, registry: FakeRegistry, helper: Helper, auth: Auth
) -> None:
    helper.give("wrong-secret")
    registry.change_auth(auth("right"))
    for repository in (REPOSITORY, REPOSITORY, "team/other"):
        source = registries.open_source(Reference.parse(f"{registry.host}/{repository}"))
        _, error = read_until_error(source, WANTED)
        assert isinstance(error, RegistryDenied | RegistryRefused)
        if error.exchange.status == 401:
            check_message(error, "docker-credential-cloud", "was rejected; log in again", hides=["wrong-secret"])
    assert helper.calls == 2


def test_a_helper_with_a_new_secret_for_each_call_is_run_twice(
    registries: Registries, registry: FakeRegistry, helper: Helper, auth: Auth
) -> None:
    helper.give_a_new_one_each_time()
    registry.change_auth(auth("right"))
    for _ in range(5):
        _, error = read_until_error(fetcher(registries, registry), WANTED)
        assert isinstance(error, Denied | InvalidInput)
    assert helper.calls == 2
    tried = {one.headers["authorization"] for one in registry.requests if "authorization" in one.headers}
    assert len(tried) == 2


def test_a_secret_that_replaced_another_is_used_for_other_repositories(
    registries: Registries, registry: FakeRegistry, helper: Helper, auth: Auth
) -> None:
    helper.give("first")
    registry.change_auth(auth("second"))
    registries.open_source(Reference.parse(f"{registry.host}/{REPOSITORY}"))  # looks the first one up
    helper.give("second")
    for repository in (REPOSITORY, "team/other"):
        assert read(registries.open_source(Reference.parse(f"{registry.host}/{repository}")), WANTED) == BLOB
    assert helper.calls == 2


def test_a_repository_without_access_runs_the_helper_once_for_a_secret(
    registries: Registries, registry: FakeRegistry, helper: Helper
) -> None:
    helper.give("first")
    registry.change_auth(Basic("me", "first", wrong_status=403))
    registry.inject(Fault(path="/v2/team/other/.*", nth=None, action=Answer(403)))
    allowed, denied = (
        registries.open_source(Reference.parse(f"{registry.host}/{name}")) for name in (REPOSITORY, "team/other")
    )
    for _ in range(3):
        _, error = read_until_error(denied, WANTED)
        assert isinstance(error, Denied)
        assert read(allowed, WANTED) == BLOB
    assert helper.calls == 2
    assert len(registry.find_requests("GET", "/v2/team/other/.*")) == 4  # the first one without credentials


def test_a_403_behind_a_redirect_runs_no_helper(
    registries: Registries, registry: FakeRegistry, other: FakeRegistry, helper: Helper
) -> None:
    helper.give("first")
    registry.change_auth(Basic("me", "first", wrong_status=403))
    registry.inject(Fault(path=".*/blobs/.*", nth=None, action=Redirect(f"http://{other.host}{{path}}")))
    other.inject(Fault(nth=None, action=Answer(403)))
    _, error = read_until_error(fetcher(registries, registry), WANTED)
    assert isinstance(error, Denied)
    assert helper.calls == 1


def test_an_upload_continues_with_another_secret_after_a_403(
    registries: Registries, registry: FakeRegistry, helper: Helper
) -> None:
    content = BLOB[::-1]
    helper.give("first")
    registry.change_auth(Basic("me", "first", wrong_status=403))
    assert read(fetcher(registries, registry), WANTED) == BLOB

    def expire() -> None:
        helper.give("second")
        registry.change_auth(Basic("me", "second", wrong_status=403))

    registry.inject(Fault(method="POST", path=".*/uploads/", action=Call(expire)))
    pusher(registries, registry).upload(descriptor(content), Reader(content))
    assert registry.blob(REPOSITORY, str(descriptor(content).digest)) == content
    assert helper.calls == 2


def test_renew_does_not_count_for_equality() -> None:
    renewed = Credentials("me", "secret", renew=lambda: None)
    assert renewed == Credentials("me", "secret")
    assert hash(renewed) == hash(Credentials("me", "secret"))
    assert "renew" not in repr(renewed)
