"""Hit rates against a real least-recently-used cache fed with random requests."""

from collections import OrderedDict

import numpy as np
import pytest

from amlr.benchmarks.capacity.fleet import hit_rate
from amlr.benchmarks.capacity.traffic import Pictures


def simulated(pictures: Pictures, entries: int, requests: int) -> float:
    weight = np.arange(1, pictures.distinct + 1) ** -pictures.zipf
    asked = np.random.default_rng(3).choice(
        pictures.distinct, size=requests, p=weight / weight.sum()
    )
    held: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for picture in asked.tolist():
        if picture in held:
            hits += 1
            held.move_to_end(picture)
            continue
        held[picture] = None
        if len(held) > entries:
            held.popitem(last=False)
    return hits / requests


@pytest.mark.parametrize(
    ("distinct", "zipf", "entries"),
    [(1000, 0.0, 100), (1000, 0.8, 100), (5000, 1.1, 300), (9000, 0.9, 1000)],
)
def test_agrees_with_a_real_cache(distinct: int, zipf: float, entries: int) -> None:
    pictures = Pictures(share=1, distinct=distinct, zipf=zipf)
    requests = 60_000
    expected = simulated(pictures, entries, requests)
    assert hit_rate(pictures, entries, 1, requests) == pytest.approx(expected, abs=0.03)


def test_a_cache_for_everything_misses_each_picture_once() -> None:
    pictures = Pictures(share=1, distinct=100, zipf=0.0)
    assert hit_rate(pictures, 1000, 1, 10_000) == pytest.approx(0.99, abs=1e-6)


def test_nothing_fits_or_nothing_is_asked() -> None:
    pictures = Pictures(share=1, distinct=100, zipf=1.0)
    assert hit_rate(pictures, 0.5, 1, 1000) == 0.0
    assert hit_rate(pictures, 10, 1, 0) == 0.0


def test_grows_with_the_cache() -> None:
    pictures = Pictures(share=1, distinct=1_000_000, zipf=0.9)
    rates = [hit_rate(pictures, size, 1, 1e7) for size in (100, 1000, 10_000, 100_000)]
    assert rates == sorted(rates)
    assert rates[0] < rates[-1] < 1
