"""Hit rate of a least-recently-used cache under independent requests, by Che's approximation.

H. Che, Y. Tung, Z. Wang, "Hierarchical web caching systems", IEEE JSAC 20 (2002): a picture with
request probability p is in a cache of C pictures with probability 1 - exp(-p T), where T solves
sum(1 - exp(-p T)) = C.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from amlr.benchmarks.capacity.traffic import Pictures

_Array = npt.NDArray[np.float64]
# More groups than this change no digit that is printed.
_GROUPS = 4000


def hit_rate(
    pictures: Pictures, cache_bytes: float, picture_bytes: float, requests: float
) -> float:
    """Share of the day's picture requests that find their picture cached.

    Args:
        pictures: How often pictures repeat.
        cache_bytes: Size of one cache.
        picture_bytes: What one picture takes in it.
        requests: Requests with a picture that this cache sees in a day; the first of each picture
            always misses.
    """
    entries = cache_bytes / picture_bytes
    if entries < 1 or requests <= 0:
        return 0.0
    probability, members = _popularity(pictures.distinct, pictures.zipf)
    # Expected number of different pictures among the requests: each of them misses once.
    never_asked = np.exp(requests * np.log1p(-np.minimum(probability, 1 - 1e-12)))
    first = float((members * (1.0 - never_asked)).sum())
    best = max(0.0, 1.0 - first / requests)
    if entries >= pictures.distinct:
        return best
    low, high = 0.0, 1.0
    while _filled(high, probability, members) < entries:
        high *= 2.0
    for _ in range(80):
        middle = (low + high) / 2
        if _filled(middle, probability, members) < entries:
            low = middle
        else:
            high = middle
    steady = float((members * probability * -np.expm1(-probability * high)).sum())
    return min(best, steady)


def _filled(time: float, probability: _Array, members: _Array) -> float:
    return float((members * -np.expm1(-probability * time)).sum())


@lru_cache(maxsize=8)
def _popularity(distinct: int, zipf: float) -> tuple[_Array, _Array]:
    """Request probability of pictures, in groups of similar rank, and members of each group."""
    if distinct <= _GROUPS:
        weight, members = np.arange(1, distinct + 1) ** -float(zipf), np.ones(distinct)
    else:
        edges = np.unique(np.geomspace(1, distinct + 1, _GROUPS).astype(np.int64))
        members = np.diff(edges).astype(float)
        # The mean weight inside a group, by the midpoint of its ranks.
        weight = ((edges[:-1] + edges[1:] - 1) / 2.0) ** -float(zipf)
    return weight / (members * weight).sum(), members
