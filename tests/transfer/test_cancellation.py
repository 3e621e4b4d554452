import threading

import pytest

from prefect_dist.transfer.cancellation import Stopped, Stopping, current, stopped_by


def test_a_request_that_nobody_hears_changes_nothing() -> None:
    stopping = Stopping()
    assert not stopping.request("interrupted")
    stopping.check()
    assert stopping.reason is None


def test_a_request_is_heard_by_whatever_is_under_way() -> None:
    stopping, heard = Stopping(), list[str]()
    with stopping.heard(lambda: heard.append("one")), stopping.heard(lambda: heard.append("two")):
        assert stopping.request("interrupted")
    assert heard == ["one", "two"]
    with pytest.raises(Stopped, match=r"^interrupted; what is whole is kept"):
        stopping.check()


def test_the_first_reason_stands() -> None:
    stopping = Stopping()
    with stopping.heard(lambda: None):
        stopping.request("interrupted")
        stopping.request("terminated")
    assert stopping.reason == "interrupted"


def test_a_request_ends_a_pause() -> None:
    stopping = Stopping()
    with stopping.heard(lambda: None):
        threading.Timer(0, stopping.request, ("interrupted",)).start()
        with pytest.raises(Stopped):
            stopping.pause(300)


def test_runs_listen_to_whoever_started_them() -> None:
    stopping = Stopping()
    with stopped_by(stopping):
        assert current() is stopping
    assert current() is not stopping
