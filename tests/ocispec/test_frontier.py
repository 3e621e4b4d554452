"""The worklist: each item once, never more than the window under way, in the order of ending."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dist.ocispec.frontier import Frontier, Lane

Outcome = Future[list[int]]


def ended(item: int) -> Outcome:
    """A future that has ended before anyone listens."""
    future: Outcome = Future()
    future.set_result([item])
    return future


class Work:
    """Work that ends when the test says so; `listen` is told who listens."""

    def __init__(self, listen: Callable[[Callable[[], None]], None]) -> None:
        self._listen = listen

    def add_done_callback(self, fn: Callable[["Work"], None], /) -> None:
        self._listen(lambda: fn(self))


class Started:
    """Starts work, and calls `then` each time that one more is under way."""

    def __init__(self, then: Callable[["Started"], None]) -> None:
        self.items: list[int] = []
        self.open: dict[int, Callable[[], None]] = {}
        self.most = 0
        self._then = then

    def __call__(self, item: int) -> Work:
        self.items.append(item)
        return Work(lambda end: self._listened(item, end))

    def finish(self, item: int) -> None:
        self.open.pop(item)()

    def _listened(self, item: int, end: Callable[[], None]) -> None:
        self.open[item] = end
        self.most = max(self.most, len(self.open))
        self._then(self)


def test_nothing_to_do() -> None:
    assert list(Frontier(ended, window=1)) == []


def test_items_come_with_their_futures() -> None:
    frontier = Frontier(ended, window=2)
    frontier.add([3, 1, 2])
    assert [(item, future.result()) for item, future in frontier] == [(3, [3]), (1, [1]), (2, [2])]


def test_items_come_in_the_order_of_ending() -> None:
    def all_backwards(started: Started) -> None:
        if len(started.items) == 3:
            for item in (2, 0, 1):
                started.finish(item)

    frontier = Frontier(Started(all_backwards), window=3)
    frontier.add(range(3))
    assert [item for item, _ in frontier] == [2, 0, 1]


def test_the_window_is_filled_and_never_passed() -> None:
    def newest_when_full(started: Started) -> None:
        if len(started.open) == 3 or len(started.items) == 10:
            started.finish(max(started.open))
        if len(started.items) == 10:
            for item in sorted(started.open):
                started.finish(item)

    started = Started(newest_when_full)
    frontier = Frontier(started, window=3)
    frontier.add(range(10))
    assert [item for item, _ in frontier] == [2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert started.items == list(range(10))
    assert started.most == 3


def test_nothing_starts_before_it_is_iterated() -> None:
    started = Started(lambda started: started.finish(started.items[-1]))
    frontier = Frontier(started, window=3)
    frontier.add([1])
    assert started.items == []
    assert [item for item, _ in frontier] == [1]


def test_what_is_found_on_the_way_is_worked_on_once() -> None:
    frontier = Frontier(ended, window=2)
    frontier.add([1, 1])
    seen = []
    for item, _ in frontier:
        seen.append(item)
        frontier.add([1, item * 2, item * 2 + 1] if item < 4 else [item // 2])
    assert sorted(seen) == [1, 2, 3, 4, 5, 6, 7]


def test_what_is_to_come_first_does_in_its_order() -> None:
    frontier = Frontier(ended, window=1)
    frontier.add([1, 2])
    seen = []
    for item, _ in frontier:
        seen.append(item)
        frontier.add_first([5, 4, 2, 5] if item == 1 else [])
        frontier.add([3])
    assert seen == [1, 5, 4, 2, 3]


def test_an_item_is_worked_on_again_if_asked() -> None:
    frontier = Frontier(ended, window=2)
    frontier.add([1, 2])
    seen = []
    for item, _ in frontier:
        seen.append(item)
        if seen.count(1) < 3 and item == 1:
            frontier.again(item)
    assert sorted(seen) == [1, 1, 1, 2]


def test_who_leaves_the_loop_starts_nothing_more() -> None:
    started = Started(lambda started: started.finish(started.items[-1]))
    frontier = Frontier(started, window=2)
    frontier.add(range(9))
    assert next(iter(frontier))[0] == 0
    assert started.items == [0, 1]


def test_an_error_of_starting_is_the_callers() -> None:
    def refuse(item: int) -> Outcome:
        raise LookupError(item)

    frontier = Frontier(refuse, window=1)
    frontier.add([7])
    with pytest.raises(LookupError, match="7"):
        list(frontier)


def test_failed_work_is_an_outcome_like_any_other() -> None:
    with ThreadPoolExecutor(2) as executor:
        frontier: Frontier[int, Future[tuple[int, int]]] = Frontier(lambda item: executor.submit(divmod, 1, item), window=2)
        frontier.add([0, 1])
        outcomes = {item: type(future.exception()) for item, future in frontier}
    assert outcomes == {0: ZeroDivisionError, 1: type(None)}


@given(st.lists(st.lists(st.integers(0, 9)), min_size=10, max_size=10), st.integers(1, 4))
def test_everything_reachable_is_worked_on_exactly_once(graph: list[list[int]], window: int) -> None:
    with ThreadPoolExecutor(window) as executor:
        frontier: Frontier[int, Outcome] = Frontier(lambda item: executor.submit(graph.__getitem__, item), window=window)
        frontier.add([0])
        seen = []
        for item, future in frontier:
            seen.append(item)
            frontier.add(future.result())
    reachable, waiting = {0}, [0]
    while waiting:
        new = set(graph[waiting.pop()]) - reachable
        reachable |= new
        waiting.extend(new)
    assert sorted(seen) == sorted(reachable)


def test_an_item_of_a_lane_waits_only_for_that_lane() -> None:
    def finish_pairs(now: Started) -> None:
        if len(now.open) == 2:
            for item in list(now.open):
                now.finish(item)

    started = Started(finish_pairs)
    frontier = Frontier(started, window=1, lane=lambda item: Lane("tens", is_single=True) if item >= 10 else Lane(None))
    frontier.add([10, 11, 1, 2])
    assert {item for item, _ in frontier} == {10, 11, 1, 2}
    assert [set(started.items[:2]), set(started.items[2:])] == [{1, 10}, {2, 11}]


def test_items_of_one_lane_use_the_whole_window_and_leave_free_slots_to_a_lane_with_fewer() -> None:
    def finish_when_full(now: Started) -> None:
        if len(now.open) == 4:
            for item in list(now.open)[: 4 if len(now.items) == 8 else 1]:
                now.finish(item)

    started = Started(finish_when_full)
    frontier = Frontier(started, window=4, lane=lambda item: Lane(item // 10))
    frontier.add([10, 11, 12, 13, 14, 15])
    iterated = iter(frontier)
    assert next(iterated)[0] == 10
    assert started.items == [10, 11, 12, 13]
    frontier.add([20, 21])
    assert len(list(iterated)) == 7
    assert started.items == [10, 11, 12, 13, 20, 21, 14, 15]


def test_idle_items_do_not_count_and_no_lane_has_more_than_the_window_in_flight() -> None:
    idle: list[int] = []

    def go_idle() -> None:
        idle.extend((10, 11))
        frontier.add([20, 21, 22])

    def finish_all_when_full(now: Started) -> None:
        if len(now.items) >= 4:
            idle.clear()
            for item in list(now.open):
                now.finish(item)

    started = Started(finish_all_when_full)
    frontier = Frontier(started, window=2, lane=lambda item: Lane(item // 10), idle=lambda: len(idle))
    frontier.add([10, 11, 12])
    frontier.call(go_idle)
    assert len([item for item, _ in frontier]) == 6
    assert started.items[:4] == [10, 11, 20, 21]
    assert started.most == 4


def test_a_function_is_called_between_items() -> None:
    frontier = Frontier(ended, window=1)
    frontier.add([1])
    frontier.call(lambda: frontier.add([2]))
    assert [item for item, _ in frontier] == [1, 2]
