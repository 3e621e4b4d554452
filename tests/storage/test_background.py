"""Short actions that a thread repeats."""

import logging
import threading

import pytest

from prefect_dist.storage.background import repeat_in_thread


def test_an_action_is_repeated_after_unexpected_errors_which_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    calls, done = list[int](), threading.Event()

    def step() -> bool:
        calls.append(1)
        if len(calls) <= 3:
            raise ValueError("expected JSON, got the key of a shard")
        done.set()
        return True

    with repeat_in_thread(step, pause_s=0.001, name="parent run"):
        assert done.wait(10)

    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.getMessage() for record in warnings] == ["parent run: unexpected ValueError, trying again every 0.001 s"]
    assert [record.exc_info for record in warnings] == [None]
    assert len(calls) == 4
