import threading

import pytest

from prefect_dist.ocispec.errors import Denied
from prefect_dist.transfer.cancellation import CancelToken, Stopped, current_token, use_token


def test_a_request_without_listeners_does_not_cancel() -> None:
    cancel = CancelToken()
    assert not cancel.request("interrupted")
    cancel.check()
    assert cancel.reason is None


def test_a_request_calls_all_listeners_and_cancels() -> None:
    cancel, calls = CancelToken(), list[str]()
    with cancel.on_cancel(lambda: calls.append("one")), cancel.on_cancel(lambda: calls.append("two")):
        assert cancel.request("interrupted")
    assert calls == ["one", "two"]
    with pytest.raises(Stopped, match=r"^interrupted; complete content is kept"):
        cancel.check()


def test_the_first_reason_of_a_cancellation_is_kept() -> None:
    cancel = CancelToken()
    with cancel.on_cancel(lambda: None):
        cancel.request("interrupted")
        cancel.request("terminated")
    assert cancel.reason == "interrupted"


def test_an_error_that_ends_a_run_is_the_cause_of_its_unfinished_work() -> None:
    cancel, error = CancelToken(), Denied("permission denied", subject="lock.json")
    cancel.fail(error)
    cancel.set("terminated")
    with pytest.raises(Stopped, match=r"^not finished: lock\.json: permission denied$") as raised:
        cancel.check()
    assert raised.value.__cause__ is cancel.failure is error


def test_an_error_after_a_signal_does_not_change_the_reason() -> None:
    cancel = CancelToken()
    cancel.set("terminated")
    cancel.fail(Denied("permission denied"))
    assert (cancel.reason, cancel.failure) == ("terminated", None)


def test_a_request_ends_a_pause() -> None:
    cancel = CancelToken()
    with cancel.on_cancel(lambda: None):
        threading.Timer(0, cancel.request, ("interrupted",)).start()
        with pytest.raises(Stopped):
            cancel.pause(300)


def test_the_current_token_is_the_token_of_the_block() -> None:
    cancel = CancelToken()
    with use_token(cancel):
        assert current_token() is cancel
    assert current_token() is not cancel
