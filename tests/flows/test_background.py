"""What a run has done meanwhile: all at once, in its context, and before it ends."""

from contextvars import ContextVar
from threading import Barrier

import pytest

from prefect_dist.flows.background import await_calls, submit

_TIMEOUT_S = 30
WORD: ContextVar[str] = ContextVar("word")


def test_what_is_begun_goes_on_at_once_in_its_context_and_is_done_in_the_end() -> None:
    all_here, heard = Barrier(3, timeout=_TIMEOUT_S), list[str]()

    def hear() -> None:
        all_here.wait()
        heard.append(WORD.get())

    with await_calls():
        for word in ("plan", "progress"):
            token = WORD.set(word)
            submit("a word", hear)
            WORD.reset(token)
        assert heard == []
        all_here.wait()

    assert sorted(heard) == ["plan", "progress"]


def test_a_run_that_fails_waits_too() -> None:
    here, done = Barrier(2, timeout=_TIMEOUT_S), list[bool]()

    def do() -> None:
        here.wait()
        done.append(True)

    def fail() -> None:
        with await_calls():
            submit("that it is done", do)
            here.wait()
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - any error of a run
        fail()
    assert done == [True]
