"""The request rate and concurrency to one server, for all threads of a run.

If a server refuses a request (429, or 503 with Retry-After), all requests pause for the time in Retry-After. Then half the
concurrency and 70 % of the accepted rate apply. Both grow back slowly while the server accepts requests: additive increase,
multiplicative decrease. The rate therefore stays close to a limit that the server does not announce, and few requests are
refused.
"""

import threading
import time
from collections import deque
from collections.abc import Callable

# More than the threads of any run.
_UNLIMITED = 1024
_RATE_AFTER_REFUSAL = 0.7
# Growth of the rate per second: from 10 to 20 requests per second takes 10 s.
_RATE_GROWTH = 1.0
_MIN_PER_S = 0.5
# A learned limit of the rate that has grown to this value is removed.
_MAX_PER_S = 500.0
# Refusals within this time count as one: the requests were in flight together.
_SAME_REFUSAL_S = 1.0
# The time over which accepted requests are counted.
_MEASURED_S = 2.0


class Aborted(Exception):
    """The throttle was aborted: no request waits or starts any more."""


class Throttle:
    """Admits requests to one server. Thread-safe.

    `in_flight` limits concurrent requests, `per_second` the requests started per second; None means no limit.
    """

    def __init__(
        self, *, in_flight: int | None = None, per_second: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_in_flight = in_flight or _UNLIMITED
        self._max_pace = per_second
        self._clock = clock
        self._changed = threading.Condition()
        self._window = float(self._max_in_flight)
        self._pace = per_second
        self._paced_at = clock()
        self._next_turn = 0.0
        self._in_flight = 0
        self._paused_until = float("-inf")
        self._refused_at = float("-inf")
        self._accepted: deque[float] = deque()
        self._aborted = False

    def acquire(self) -> float:
        """Wait until a request may be sent, and return 0. The caller must then call `release`.

        If the server has asked for a pause, return the remaining seconds of the pause instead. The caller must then not call
        `release`.

        Raises:
            Aborted: `abort` was called.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._aborted or self._in_flight < int(self._window))
            pause_s = self._paused_until - self._clock()
            if pause_s > 0 and not self._aborted:
                self._changed.notify()  # the next waiting thread has to see the pause, too
                return pause_s
            self._in_flight += 1
            turn = self._take_turn()
            self._changed.wait_for(lambda: self._aborted, timeout=turn - self._clock())
            if self._aborted:
                self._in_flight -= 1
                raise Aborted
        return 0.0

    def release(self) -> None:
        """Note that a request and the reading of its response have ended."""
        with self._changed:
            self._in_flight -= 1
            self._changed.notify()

    def note_accepted(self) -> None:
        """Note that the server accepted a request, and raise the allowed concurrency and rate a little."""
        with self._changed:
            now = self._clock()
            self._accepted.append(now)
            self._drop_old(now)
            if self._window < self._max_in_flight:
                self._window = min(self._window + 1 / self._window, self._max_in_flight)
                self._changed.notify()
            if self._pace is not None:
                faster = self._pace + _RATE_GROWTH * (now - self._paced_at)
                self._pace = min(faster, self._max_pace) if self._max_pace else faster if faster < _MAX_PER_S else None
                self._paced_at = now

    def note_refused(self, retry_after_s: float | None) -> bool:
        """Note that the server refused a request because there were too many: pause, then continue at a lower rate.

        Return True if the server asks for a longer pause than before.
        """
        with self._changed:
            now = self._clock()
            until = now + (retry_after_s or 0)
            is_news = until > now and until - self._paused_until >= _SAME_REFUSAL_S
            self._paused_until = max(self._paused_until, until)
            if now - self._refused_at < _SAME_REFUSAL_S:
                return is_news
            self._refused_at = now
            self._window = max(self._in_flight // 2, 1)
            self._drop_old(now)
            taken = len(self._accepted) / _MEASURED_S
            self._pace = max(min(taken, self._pace or taken) * _RATE_AFTER_REFUSAL, _MIN_PER_S)
            self._paced_at = now + (retry_after_s or 0)
            return is_news

    def abort(self) -> None:
        """Wake all waiting threads, and let no thread wait again."""
        with self._changed:
            self._aborted = True
            self._changed.notify_all()

    def _take_turn(self) -> float:
        """Return the time of the next request at the present rate."""
        now = self._clock()
        if self._pace is None:
            return now
        turn = max(now, self._next_turn)
        self._next_turn = turn + 1 / self._pace
        return turn

    def _drop_old(self, now: float) -> None:
        while self._accepted and self._accepted[0] < now - _MEASURED_S:
            self._accepted.popleft()
