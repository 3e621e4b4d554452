"""Answers that the threads of a run share."""

from collections.abc import Callable
from concurrent.futures import Future
from threading import Lock
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class SharedAnswers(Generic[K, V]):
    """Answers by key, each computed once; threads that need the same one wait for it. Errors are not kept. Thread-safe."""

    def __init__(self) -> None:
        self._guard = Lock()
        self._answers: dict[K, Future[V]] = {}

    def get(self, key: K, compute: Callable[[], V]) -> V:
        """Return the answer for `key`, which `compute` gives if there is none yet.

        Raises:
            BaseException: the error of `compute`, also in threads that waited for it. The next call computes again.
        """
        with self._guard:
            is_known = key in self._answers
            answer = self._answers.setdefault(key, Future())
        if not is_known:
            try:
                answer.set_result(compute())
            except BaseException as exc:
                with self._guard:
                    del self._answers[key]
                answer.set_exception(exc)
                raise
        return answer.result()
