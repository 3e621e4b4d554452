"""Background calls of a run: they run in parallel, in the context of the run, and end before the run."""

from contextvars import ContextVar
from threading import Barrier

import pytest

from prefect_dist.flows.background import await_calls, submit

_TIMEOUT_S = 30
WORD: ContextVar[str] = ContextVar("word")


def test_background_calls_run_in_parallel_in_their_context_and_end_with_the_block() -> None:
    barrier, words = Barrier(3, timeout=_TIMEOUT_S), list[str]()

    def record() -> None:
        barrier.wait()
        words.append(WORD.get())

    with await_calls():
        for word in ("plan", "progress"):
            token = WORD.set(word)
            submit("a word", record)
            WORD.reset(token)
        assert words == []
        barrier.wait()

    assert sorted(words) == ["plan", "progress"]


def test_a_block_that_raises_waits_for_background_calls() -> None:
    started, done = Barrier(2, timeout=_TIMEOUT_S), list[bool]()

    def do() -> None:
        started.wait()
        done.append(True)

    def fail() -> None:
        with await_calls():
            submit("a call", do)
            started.wait()
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - any error of a run
        fail()
    assert done == [True]
