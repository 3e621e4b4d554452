"""The request rate and concurrency to one server, for all threads of a run.

A server that refuses (429, or 503 with a Retry-After) is left alone for as long as it says, then asked by half as many at once
and at seven tenths of the rate that it took. Both grow back slowly while it accepts: additive increase, multiplicative
decrease. So a limit that it has and tells nobody is found and kept near, and of many requests few are refused.
"""

import threading
import time
from collections import deque
from collections.abc import Callable

# More than any run has threads.
_UNLIMITED = 1024
_RATE_AFTER_REFUSAL = 0.7
# Per second and second: from a half to the whole of 20 requests a second takes 10 s.
_RATE_GROWTH = 1.0
_MIN_PER_S = 0.5
# A pace that has grown to this is none.
_MAX_PER_S = 500.0
# Refusals of requests that were under way together are one.
_SAME_REFUSAL_S = 1.0
# The time over which accepted requests are counted.
_MEASURED_S = 2.0


class Aborted(Exception):
    """Nobody waits any more."""


class Throttle:
    """Admits requests to one server. Thread-safe.

    `in_flight` bounds those under way at once, `per_second` those begun in a second; None does not.
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
        """Wait until a request may be sent, and answer 0; its `end` has to follow.

        Or do not wait, and answer with the seconds for which the server wants to be left alone.

        Raises:
            Aborted: `abort` was called.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._aborted or self._in_flight < int(self._window))
            pause_s = self._paused_until - self._clock()
            if pause_s > 0 and not self._aborted:
                self._changed.notify()  # who waits behind us is to hear of it, too
                return pause_s
            self._in_flight += 1
            turn = self._take_turn()
            self._changed.wait_for(lambda: self._aborted, timeout=turn - self._clock())
            if self._aborted:
                self._in_flight -= 1
                raise Aborted
        return 0.0

    def release(self) -> None:
        """A request, and the reading of its answer, is over."""
        with self._changed:
            self._in_flight -= 1
            self._changed.notify()

    def note_accepted(self) -> None:
        """Note that the server accepted a request, and raise the rate a little."""
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
        """Note that the server refused a request as one too many: pause, then continue at a lower rate.

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
        """Let nobody wait, now or later."""
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
