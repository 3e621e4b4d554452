"""The worklist starts each item once, keeps at most the window in flight, and yields outcomes in the order of their ends."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dist.ocispec.errors import NotFound
from prefect_dist.transfer.cancellation import CancelToken, Stopped
from prefect_dist.transfer.pool import Failed, Lane, Ok, Raised, Unit, Worklist
from tests.transfer.pools import HeldPool, end_immediately


def unit_of(item: int) -> Unit[Any]:
    return Unit(work=divmod, arguments=(item,))


def worklist(
    run: Callable[[HeldPool, Any], None], *items: int, window: int = 2, lane: Callable[[int], Lane] = lambda _: Lane(None)
) -> tuple[Worklist[int, Any], HeldPool]:
    pool = HeldPool(run, window=window)
    made = Worklist(pool, unit_of, lane=lane)
    made.add(items)
    return made, pool


def end_last(pool: HeldPool, item: int) -> None:
    pool.finish(item)


def test_an_empty_worklist_yields_nothing() -> None:
    made, _ = worklist(end_immediately)
    assert list(made) == []


def test_each_item_is_yielded_with_its_outcome_and_counted() -> None:
    made, pool = worklist(end_immediately, 3, 1, 2)
    assert list(made) == [(3, Ok(3)), (1, Ok(1)), (2, Ok(2))]
    assert pool.runs == 3


def test_items_are_yielded_in_the_order_in_which_they_end() -> None:
    def all_backwards(pool: HeldPool, _: int) -> None:
        if len(pool.started) == 3:
            for item in (2, 0, 1):
                pool.finish(item)

    made, _ = worklist(all_backwards, 0, 1, 2, window=3)
    assert [item for item, _ in made] == [2, 0, 1]


def test_the_worklist_fills_the_window_and_never_exceeds_it() -> None:
    def newest_when_full(pool: HeldPool, _: int) -> None:
        if len(pool.open) == 3 or len(pool.started) == 10:
            pool.finish(max(pool.open))
        if len(pool.started) == 10:
            for item in sorted(pool.open):
                pool.finish(item)

    made, pool = worklist(newest_when_full, *range(10), window=3)
    assert [item for item, _ in made] == [2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert pool.started == list(range(10))
    assert pool.most == 3


def test_no_item_starts_before_the_iteration() -> None:
    made, pool = worklist(end_last, 1, window=3)
    assert pool.started == []
    assert [item for item, _ in made] == [1]


def test_an_item_that_is_added_twice_runs_once() -> None:
    made, _ = worklist(end_immediately, 1, 1)
    seen = []
    for item, _outcome in made:
        seen.append(item)
        made.add([1, item * 2, item * 2 + 1] if item < 4 else [item // 2])
    assert sorted(seen) == [1, 2, 3, 4, 5, 6, 7]


def test_items_added_first_run_before_others_in_their_order() -> None:
    made, _ = worklist(end_immediately, 1, 2, window=1)
    seen = []
    for item, _outcome in made:
        seen.append(item)
        made.add_first([5, 4, 2, 5] if item == 1 else [])
        made.add([3])
    assert seen == [1, 5, 4, 2, 3]


def test_an_item_runs_again_on_request() -> None:
    made, _ = worklist(end_immediately, 1, 2)
    seen = []
    for item, _outcome in made:
        seen.append(item)
        if seen.count(1) < 3 and item == 1:
            made.again(item)
    assert sorted(seen) == [1, 1, 1, 2]


def test_no_item_starts_after_the_iteration_ends() -> None:
    made, pool = worklist(end_last, *range(9))
    assert next(iter(made))[0] == 0
    assert pool.started == [0, 1]


def test_an_error_at_the_start_of_an_item_is_raised() -> None:
    def refuse(_: HeldPool, item: int) -> None:
        raise LookupError(item)

    made, _ = worklist(refuse, 7)
    with pytest.raises(LookupError, match="7"):
        list(made)


def test_a_failed_item_is_yielded_with_its_failure() -> None:
    error = NotFound("no such blob")

    def fail_first(pool: HeldPool, item: int) -> None:
        pool.finish(item, Failed(error) if item == 0 else Ok(item))

    made, _ = worklist(fail_first, 0, 1)
    assert dict(made) == {0: Failed(error), 1: Ok(1)}


def test_an_exception_that_ends_the_run_is_raised_by_the_iteration() -> None:
    made, _ = worklist(lambda pool, item: pool.finish(item, Raised(KeyboardInterrupt())), 1)
    with pytest.raises(KeyboardInterrupt):
        list(made)


def test_items_that_did_not_start_before_a_cancellation_end_as_stopped() -> None:
    cancel = CancelToken()

    def cancel_run(pool: HeldPool, item: int) -> None:
        cancel.set("terminated")
        pool.finish(item, Ok(item))

    pool = HeldPool(cancel_run, window=1, cancel=cancel)
    made = Worklist(pool, unit_of)
    made.add(range(3))
    (_, first), *others = made
    assert first == Ok(0)
    assert [item for item, _ in others] == [1, 2]
    assert all(isinstance(outcome, Failed) and isinstance(outcome.error, Stopped) for _, outcome in others)
    assert (pool.started, pool.runs) == ([0], 1)


def test_a_pool_runs_a_single_unit() -> None:
    pool = HeldPool(end_immediately)
    assert pool.call(unit_of(4)) == Ok(4)
    assert pool.runs == 1


@given(st.lists(st.lists(st.integers(0, 9)), min_size=10, max_size=10), st.integers(1, 4))
def test_every_reachable_item_runs_exactly_once(graph: list[list[int]], window: int) -> None:
    with ThreadPoolExecutor(window) as executor:

        def end_in_thread(pool: HeldPool, item: int) -> None:
            executor.submit(pool.finish, item, Ok(graph[item]))

        made, pool = worklist(end_in_thread, 0, window=window)
        seen = []
        for item, outcome in made:
            seen.append(item)
            assert isinstance(outcome, Ok)
            made.add(outcome.value)
    reachable, waiting = {0}, [0]
    while waiting:
        new = set(graph[waiting.pop()]) - reachable
        reachable |= new
        waiting.extend(new)
    assert sorted(seen) == sorted(reachable)
    assert pool.most <= window


def test_an_item_of_a_single_lane_waits_only_for_that_lane() -> None:
    def finish_pairs(pool: HeldPool, _: int) -> None:
        if len(pool.open) == 2:
            for item in list(pool.open):
                pool.finish(item)

    single = lambda item: Lane("tens", is_single=True) if item >= 10 else Lane(None)  # noqa: E731
    made, pool = worklist(finish_pairs, 10, 11, 1, 2, window=1, lane=single)
    assert {item for item, _ in made} == {10, 11, 1, 2}
    assert [set(pool.started[:2]), set(pool.started[2:])] == [{1, 10}, {2, 11}]


def test_one_lane_uses_the_whole_window_and_yields_free_slots_to_a_lane_with_fewer_items() -> None:
    def finish_when_full(pool: HeldPool, _: int) -> None:
        if len(pool.open) == 4:
            for item in list(pool.open)[: 4 if len(pool.started) == 8 else 1]:
                pool.finish(item)

    made, pool = worklist(finish_when_full, *range(10, 16), window=4, lane=lambda item: Lane(item // 10))
    iterated = iter(made)
    assert next(iterated)[0] == 10
    assert pool.started == [10, 11, 12, 13]
    made.add([20, 21])
    assert len(list(iterated)) == 7
    assert pool.started == [10, 11, 12, 13, 20, 21, 14, 15]


def test_waiting_items_do_not_fill_the_window_and_each_lane_respects_the_window() -> None:
    def finish_all_when_full(pool: HeldPool, _: int) -> None:
        if len(pool.started) == 2:
            made.add([20, 21, 22])
            pool.set_idle(10, 11)
        if len(pool.started) >= 4:
            pool.idle.clear()
            for item in list(pool.open):
                pool.finish(item)

    made, pool = worklist(finish_all_when_full, 10, 11, 12, window=2, lane=lambda item: Lane(item // 10))
    assert len([item for item, _ in made]) == 6
    assert pool.started[:4] == [10, 11, 20, 21]
    assert pool.most == 4
