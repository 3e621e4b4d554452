import threading

import pytest

from prefect_dist.transfer.cancellation import CancelToken, Stopped, current_token, use_token


def test_a_request_that_nobody_hears_changes_nothing() -> None:
    cancel = CancelToken()
    assert not cancel.request("interrupted")
    cancel.check()
    assert cancel.reason is None


def test_a_request_is_heard_by_whatever_is_under_way() -> None:
    cancel, heard = CancelToken(), list[str]()
    with cancel.on_cancel(lambda: heard.append("one")), cancel.on_cancel(lambda: heard.append("two")):
        assert cancel.request("interrupted")
    assert heard == ["one", "two"]
    with pytest.raises(Stopped, match=r"^interrupted; complete content is kept"):
        cancel.check()


def test_the_first_reason_stands() -> None:
    cancel = CancelToken()
    with cancel.on_cancel(lambda: None):
        cancel.request("interrupted")
        cancel.request("terminated")
    assert cancel.reason == "interrupted"


def test_a_request_ends_a_pause() -> None:
    cancel = CancelToken()
    with cancel.on_cancel(lambda: None):
        threading.Timer(0, cancel.request, ("interrupted",)).start()
        with pytest.raises(Stopped):
            cancel.pause(300)


def test_runs_listen_to_whoever_started_them() -> None:
    cancel = CancelToken()
    with use_token(cancel):
        assert current_token() is cancel
    assert current_token() is not cancel
