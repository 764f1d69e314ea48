"""Calls that wait for each other share one batch, and its error."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from amlr.runtime.joined_calls import JoinedCalls


def run_together(call: Callable[[Sequence[int]], list[int]], callers: int) -> list[Any]:
    found: list[Any] = [None] * callers

    def run(place: int) -> None:
        try:
            found[place] = call(range(place, place + 3))
        except ValueError as error:
            found[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    return found


@pytest.mark.parametrize("at_a_time", [1, 3])
def test_calls_that_wait_are_joined(at_a_time: int) -> None:
    calls: list[int] = []
    barrier = threading.Event()

    def function(items: Sequence[int]) -> list[int]:
        calls.append(len(items))
        barrier.wait(0.05)
        return [10 * item for item in items]

    found = run_together(JoinedCalls(function, at_a_time=at_a_time), 12)
    assert found == [[10 * (place + i) for i in range(3)] for place in range(12)]
    assert len(calls) < 12
    assert JoinedCalls(function, at_a_time=1)([]) == []


def test_an_error_reaches_all_who_shared_the_call() -> None:
    def function(items: Sequence[int]) -> list[int]:
        raise ValueError(f"{len(items)}")

    found = run_together(JoinedCalls(function, at_a_time=1), 5)
    assert all(isinstance(error, ValueError) for error in found)
