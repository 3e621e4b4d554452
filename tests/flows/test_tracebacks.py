"""Tracebacks in the log of Prefect: runs of this package log no traceback of expected failures. Flows of users keep theirs."""

from pathlib import Path

from prefect_dist.ocispec.errors import InvalidInput
from tests import images
from tests.fakes.registry import FakeRegistry
from tests.peers.prefect import PrefectServer
from tests.peers.processes import poll_until


def test_a_flow_of_a_user_in_the_same_process_keeps_its_traceback(
    prefect: PrefectServer, source: FakeRegistry, tmp_path: Path
) -> None:
    from prefect import flow
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from prefect_dist.flows.fetch import fetch

    @flow
    def fail() -> None:
        raise InvalidInput("raised by the flow of a user")

    images.load(source, "app", images.image(6500, layers=1), "v1")
    with temporary_settings({PREFECT_API_URL: prefect.url}):
        fetched = fetch([f"{source.host}/app:v1"], str(tmp_path / "store"), return_state=True)
        assert fetched.is_completed()

        failed = fail(return_state=True)
    run = str(failed.state_details.flow_run_id)

    def has_traceback() -> bool:
        return any("Traceback" in line and "raised by the flow of a user" in line for line in prefect.logs(run))

    assert poll_until(has_traceback), prefect.logs(run)
