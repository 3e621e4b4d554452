"""A user without a home directory, as in a container with a numeric user: only what requires a home is refused."""

from pathlib import Path

import pytest

from prefect_dist.cli.app import app
from prefect_dist.cli.inputs import BadInput
from prefect_dist.cli.prefect_api import prefect_api
from tests import images
from tests.fakes.registry import FakeRegistry

pytestmark = pytest.mark.usefixtures("homeless", "directory")


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("DIST_STORE", "XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> int:
    code: int = app.meta(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    return code


def test_a_command_that_uses_the_default_store_is_refused(directory: Path) -> None:
    with pytest.raises(BadInput) as error:
        run("names")
    assert error.value.lines == (
        "content store: the user has no home directory for the default store; set --store, DIST_STORE or HOME",
    )
    assert list(directory.iterdir()) == []


def test_commands_that_use_another_store_or_none_need_no_home(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeRegistry() as registry:
        images.load(registry, "app", images.image(1260, layers=1), "v1")
        assert run("tags", f"{registry.host}/app") == 0
        assert run("--store", "store", "fetch-object", f"{registry.host}/app:v1") == 0
    assert capsys.readouterr().out.startswith("v1\n{")
    assert run("--store", "store", "names") == 0


def test_a_prefect_run_is_refused() -> None:
    with (
        pytest.raises(BadInput, match=r"^Prefect requires a home directory, .*; set HOME, or use --direct$"),
        prefect_api(connect_timeout_s=1, debug=False, load=lambda: None, notify=lambda _: None),
    ):
        pass
