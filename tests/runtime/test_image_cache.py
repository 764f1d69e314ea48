import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from amlr.errors import AmlrError, InputError
from amlr.runtime.image_cache import ImageCache


def size_of(value: Any) -> int:
    return int(value.nbytes)


def features(key: int) -> np.ndarray:
    return np.full(10, key, np.float32)  # 40 bytes


def lookup(cache: ImageCache, keys: Sequence[int], computed: list[int]) -> list[Any]:
    def compute(positions: list[int]) -> list[Any]:
        computed.extend(keys[p] for p in positions)
        return [features(keys[p]) for p in positions]

    return cache.get_many(keys, compute, size_of)


def test_equal_keys_are_computed_once_and_kept() -> None:
    cache = ImageCache(1000)
    computed: list[int] = []
    first = lookup(cache, [1, 2, 1], computed)
    assert computed == [1, 2]
    assert first[0] is first[2]
    assert lookup(cache, [2, 1], computed)[1] is first[0]
    assert computed == [1, 2]
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.entries, stats.bytes) == (3, 2, 2, 80)


def test_least_recently_used_goes_first() -> None:
    cache = ImageCache(80)
    computed: list[int] = []
    lookup(cache, [1, 2], computed)
    lookup(cache, [1], computed)
    lookup(cache, [3], computed)  # 2 is the oldest now
    assert cache.stats().evictions == 1
    lookup(cache, [1, 3], computed)
    assert computed == [1, 2, 3]
    lookup(cache, [2], computed)
    assert computed == [1, 2, 3, 2]
    assert cache.stats().bytes == 80


def test_without_budget_nothing_is_kept_but_a_call_still_shares() -> None:
    cache = ImageCache(0)
    computed: list[int] = []
    a, b = lookup(cache, [1, 1], computed)
    assert a is b
    assert computed == [1]
    lookup(cache, [1], computed)
    assert computed == [1, 1]
    assert cache.stats().entries == 0


def test_errors_are_given_to_all_and_not_kept() -> None:
    cache = ImageCache(1000)
    error = InputError("broken", "image_unreadable")
    assert cache.get_many([1, 1], lambda positions: [error], size_of) == [error, error]
    assert isinstance(lookup(cache, [1], [])[0], np.ndarray)


def test_an_unexpected_exception_frees_those_who_wait() -> None:
    cache = ImageCache(1000)
    started, go = threading.Event(), threading.Event()
    waited: list[Any] = []

    def explode(positions: list[int]) -> list[Any]:
        started.set()
        go.wait(10)
        raise RuntimeError("library bug")

    def first() -> None:
        with pytest.raises(RuntimeError, match="library bug"):
            cache.get_many([1], explode, size_of)

    threads = [threading.Thread(target=first)]
    threads[0].start()
    assert started.wait(10)
    threads.append(threading.Thread(target=lambda: waited.extend(lookup(cache, [1], []))))
    threads[1].start()
    while cache.stats().hits == 0:  # the second caller has joined the first one's work
        pass
    go.set()
    for thread in threads:
        thread.join(10)
    assert isinstance(waited[0], AmlrError)
    assert isinstance(lookup(cache, [1], [])[0], np.ndarray)


def test_many_threads_compute_each_picture_once() -> None:
    cache = ImageCache(10_000)
    computed: list[int] = []
    rng = np.random.default_rng(0)
    results: list[tuple[int, Any]] = []

    def work(keys: list[int]) -> None:
        results.extend(zip(keys, lookup(cache, keys, computed), strict=True))

    threads = [
        threading.Thread(target=work, args=(rng.permutation(20).tolist(),)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(computed) == list(range(20))
    assert len(results) == 160
    assert all((value == key).all() for key, value in results)
