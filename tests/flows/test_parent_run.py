"""A shard asks an API for the state of its parent run. Here, the API has faults."""

import uuid
from collections.abc import Callable

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelling

from prefect_dist.flows import parent_run
from prefect_dist.flows.parent_run import _is_cancelled, require_parent, stop_with_parent
from prefect_dist.transfer.cancellation import CancelToken, use_token
from tests.peers.processes import poll_until

_PARENT = FlowRun(flow_id=uuid.uuid4(), name="parent", state=Cancelling())


def open_client(answer: Callable[[httpx.Request], httpx.Response]) -> SyncPrefectClient:
    """Return Prefect's client for a server with this function."""
    settings = {"transport": httpx.MockTransport(answer)}
    return SyncPrefectClient("http://prefect.invalid/api", httpx_settings=settings, server_type=None)


def test_a_cancelled_parent_is_noticed_after_an_answer_of_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    page, run = httpx.Response(200, html="<p>Please log in</p>"), httpx.Response(200, text=_PARENT.model_dump_json())
    answers = iter([page, httpx.Response(200, json={"detail": "maintenance"}), run])
    token = CancelToken()
    monkeypatch.setattr(parent_run, "_PAUSE_S", 0.01)
    with open_client(lambda _request: next(answers)) as api:
        monkeypatch.setattr(parent_run, "client", lambda: api)
        with use_token(token), stop_with_parent(str(_PARENT.id)):
            assert poll_until(lambda: token.reason is not None)
    assert token.reason == "the parent run was cancelled"


def test_a_shard_starts_after_an_answer_of_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer says nothing about the parent, and a Failed shard would get no other attempt."""
    answers = iter([httpx.Response(200, html="<p>Please log in</p>"), httpx.Response(200, json=[])])
    with open_client(lambda _request: next(answers)) as api:
        monkeypatch.setattr(parent_run, "client", lambda: api)
        require_parent(str(_PARENT.id))
        require_parent(str(_PARENT.id))
    assert list(answers) == []


def test_a_look_at_the_parent_retries_few_times_because_the_end_of_a_shard_waits_for_it() -> None:
    requests = list[str]()

    def refuse(request: httpx.Request) -> httpx.Response:
        requests.append(request.url.path)
        return httpx.Response(503, headers={"Retry-After": "0"})

    with open_client(refuse) as api:
        assert not _is_cancelled(api, str(_PARENT.id))
    assert requests == [f"/api/flow_runs/{_PARENT.id}"] * 3
