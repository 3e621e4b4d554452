"""A signal cancels a run, wherever the signal interrupts the main thread."""

import signal
import subprocess
import sys
import threading

import pytest

from prefect_dist.cli.signals import Interrupted, run_interruptible
from prefect_dist.transfer.cancellation import current_token
from tests.peers.processes import PATIENCE_S

_STRESS = """
import signal, threading, time
from prefect_dist.cli.signals import run_interruptible
from prefect_dist.transfer.cancellation import Stopped, current_token

def send():
    time.sleep(0.002)  # the main thread is in a pause by then
    signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)

def command():
    cancel, sender = current_token(), threading.Thread(target=send)
    with cancel.on_cancel(lambda: None):
        sender.start()
        try:
            while True:
                cancel.pause(0)
        except Stopped:
            sender.join()
            return 1

print({run_interruptible(command, timeout_s=None) for _ in range(300)})
"""


def test_a_signal_cancels_a_run_that_holds_a_lock_of_its_callbacks() -> None:
    lock, acquired, ended = threading.Lock(), list[bool](), threading.Event()

    def abort() -> None:
        acquired.append(lock.acquire(timeout=5))
        ended.set()

    def command() -> int:
        with current_token().on_cancel(abort):
            with lock:
                signal.raise_signal(signal.SIGTERM)
            assert ended.wait(30)
        return 1

    assert run_interruptible(command, timeout_s=None) == 143
    assert acquired == [True]


def test_signals_during_pauses_never_block_the_main_thread() -> None:
    done = subprocess.run([sys.executable, "-c", _STRESS], capture_output=True, check=True, timeout=PATIENCE_S, text=True)
    assert done.stdout == "{143}\n"


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_the_caller_ignores_does_not_stop_a_run(number: signal.Signals) -> None:
    """Nohup ignores SIGHUP, and a shell ignores SIGINT for a background job of a script."""
    before = signal.signal(number, signal.SIG_IGN)
    try:

        def command() -> int:
            signal.raise_signal(number)
            return 0

        assert run_interruptible(command, timeout_s=None) == 0
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_a_signal_ends_a_command_that_defines_a_class() -> None:
    """Python 3.11 raises RuntimeError from each exception in `__set_name__`, which dataclasses.Field has."""

    class Field:
        def __set_name__(self, owner: type, name: str) -> None:
            signal.raise_signal(signal.SIGTERM)

    def command() -> int:
        type("State", (), {"started": Field()})
        return 0

    with pytest.raises(Interrupted) as error:
        run_interruptible(command, timeout_s=None)
    assert error.value.code == 143
