"""SIGTERM from a worker stops a run gracefully, wherever the signal interrupts the main thread."""

import signal
import threading

from prefect_dist.flows import _flow
from prefect_dist.transfer.cancellation import CancelToken, current_token, use_token


def test_sigterm_cancels_a_run_that_holds_a_lock_of_its_callbacks() -> None:
    lock, acquired, ended = threading.Lock(), list[bool](), threading.Event()

    def abort() -> None:
        acquired.append(lock.acquire(timeout=5))
        ended.set()

    with use_token(CancelToken()), _flow._handle_sigterm(), current_token().on_cancel(abort):
        with lock:
            signal.raise_signal(signal.SIGTERM)
            reason = current_token().reason
        assert ended.wait(30)
    assert acquired == [True]
    assert reason == "terminated by the worker, as on a cancellation"
