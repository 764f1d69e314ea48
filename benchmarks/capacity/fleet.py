"""From one simulated server to a day of many: utilisation, autoscaling, machines, price.

Requests are spread at random, so every replica sees Poisson arrivals of its own share; a balancer
that knows the queues does better.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from amlr.benchmarks.capacity.costs import CostGrid
from amlr.benchmarks.capacity.replica import Arrivals, simulate
from amlr.benchmarks.capacity.traffic import Pictures, Traffic
from amlr.benchmarks.harness.stats import percentile
from amlr.cli_support import progress

LOADS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
_POSTS = 6000
# A refused request in a thousand still counts as keeping the promise.
_MOST_REFUSED = 0.001
_STEP_S = 10.0
_DAY_S = 86_400.0
CACHE_MB = (16, 64, 256, 1024, 4096)
# More groups of pictures than this change no digit that is printed.
_GROUPS = 4000
_Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One server at one share of its capacity.

    Attributes:
        utilisation: Rate over capacity.
        rate_per_s: Posts a second.
        p50_s: Median latency.
        p95_s: 95th percentile.
        p99_s: 99th percentile.
        refused: Share of requests answered with 429.
    """

    utilisation: float
    rate_per_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    refused: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Hour:
    """One hour of the day.

    Attributes:
        rate_per_s: Mean rate.
        replicas: Most replicas at a time.
        machines: Most machines at a time.
        utilisation: Mean share of the replicas' capacity.
        p99_s: Worst 99th percentile of its ten-second steps.
        refused: Share of its posts that were refused.
    """

    rate_per_s: float
    replicas: int
    machines: int
    utilisation: float
    p99_s: float
    refused: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Day:
    """A simulated day.

    Attributes:
        hours: 24 of them.
        posts: Posts answered.
        machine_hours: Machine time, idle replicas included.
        price: Of that time.
        price_per_million: Of a million answered posts.
        refused: Share of the day's posts that were refused.
        p99_s: Worst hour.
    """

    hours: tuple[Hour, ...]
    posts: float
    machine_hours: float
    price: float
    price_per_million: float
    refused: float
    p99_s: float


def draw_arrivals(
    traffic: Traffic, hits: float, rate_per_s: float, count: int, generator: np.random.Generator
) -> Arrivals:
    """Posts that arrive at random, with a share `hits` of known pictures."""
    lengths, shares = zip(*traffic.shares.items(), strict=True)
    tokens = generator.choice(lengths, size=count, p=shares).astype(np.int64)
    state = generator.choice(3, size=count, p=traffic.pictures.chances(hits)).astype(np.int64)
    at_s = np.cumsum(generator.exponential(1 / rate_per_s, count))
    return Arrivals(at_s=at_s, tokens=tokens, state=state)


def capacity_per_s(traffic: Traffic, costs: CostGrid, hits: float) -> float:
    """Posts a second of one server that never waits: full batches on all its workers."""
    replica, chances = traffic.replica, traffic.pictures.chances(hits)
    mean_tokens = sum(tokens * share for tokens, share in traffic.shares.items())
    full = min(replica.batch_posts, max(1, int(replica.batch_tokens / mean_tokens)))
    mean_s = sum(
        share * chance * costs.post_s(tokens, state, full)
        for tokens, share in traffic.shares.items()
        for state, chance in enumerate(chances)
    )
    return replica.workers / mean_s


def load_curve(traffic: Traffic, costs: CostGrid, hits: float) -> list[Load]:
    """Latency of one server over its load."""
    capacity = capacity_per_s(traffic, costs, hits)
    curve = []
    for utilisation in progress(LOADS, "simulated loads"):
        rate = utilisation * capacity
        arrivals = draw_arrivals(traffic, hits, rate, _POSTS, np.random.default_rng(0))
        deadline_s = traffic.p99_ms / 1000
        latency_s = simulate(arrivals, costs, traffic.replica, deadline_s=deadline_s)
        answered = latency_s[~np.isnan(latency_s)]
        curve.append(
            Load(
                utilisation=utilisation,
                rate_per_s=rate,
                p50_s=_percentile_s(answered, 50),
                p95_s=_percentile_s(answered, 95),
                p99_s=_percentile_s(answered, 99),
                refused=1 - len(answered) / _POSTS,
            )
        )
    return curve


def _percentile_s(latency_s: _Array, percent: int) -> float:
    """Infinite where too few were answered: that breaks every promise."""
    value = percentile(latency_s, percent)
    return math.inf if value is None else value


def best_utilisation(curve: Sequence[Load], p99_s: float) -> float:
    """Highest load that keeps the latency and refuses next to nothing, as all below do; or 0."""
    best = 0.0
    for load in curve:
        if load.p99_s > p99_s or load.refused > _MOST_REFUSED:
            break
        best = load.utilisation
    return best


def simulate_day(
    traffic: Traffic, curve: Sequence[Load], utilisation: float, *, fixed: bool
) -> Day:
    """Follow the rate through a day in steps of ten seconds; `fixed` keeps the peak's replicas."""
    steps = len(_times())
    rate = traffic.rate_at(_times())
    capacity = curve[-1].rate_per_s / curve[-1].utilisation
    scaling = traffic.autoscaling
    wanted = np.clip(
        np.ceil(rate / (utilisation * capacity)), scaling.minimum, scaling.maximum
    ).astype(int)
    replicas = (
        np.full(steps, wanted.max()) if fixed else _follow(wanted, scaling.start_s, scaling.idle_s)
    )
    load = rate / (replicas * capacity)
    at = [point.utilisation for point in curve]
    p99 = np.interp(load, at, [point.p99_s for point in curve])
    refused = np.interp(load, at, [point.refused for point in curve])
    # Past the curve's end the surplus is refused, and what is answered keeps its deadline.
    refused = np.where(
        load > at[-1], np.maximum(refused, 1 - at[-1] / np.maximum(load, 1e-9)), refused
    )
    per_machine = max(1, traffic.machine.cores // traffic.replica.workers)
    machines = np.ceil(replicas / per_machine)
    answered = float((rate * (1 - refused)).sum() * _STEP_S)
    machine_hours = float(machines.sum() * _STEP_S / 3600)
    price = machine_hours * traffic.machine.price_per_hour
    hours = []
    for part in np.split(np.arange(steps), 24):
        offered = rate[part].sum()
        hours.append(
            Hour(
                rate_per_s=float(rate[part].mean()),
                replicas=int(replicas[part].max()),
                machines=int(machines[part].max()),
                utilisation=float(load[part].mean()),
                p99_s=float(p99[part].max()),
                refused=float((rate[part] * refused[part]).sum() / offered) if offered else 0.0,
            )
        )
    return Day(
        hours=tuple(hours),
        posts=answered,
        machine_hours=machine_hours,
        price=price,
        price_per_million=price / answered * 1e6 if answered else math.inf,
        refused=1 - answered / float(rate.sum() * _STEP_S),
        p99_s=float(p99.max()),
    )


def _times() -> npt.NDArray[np.float64]:
    """Middles of the day's steps, in seconds."""
    return np.arange(_STEP_S / 2, _DAY_S, _STEP_S, dtype=np.float64)


def _follow(wanted: npt.NDArray[np.int64], start_s: float, idle_s: float) -> npt.NDArray[np.int64]:
    """Replicas that are ready: more come `start_s` later, fewer once they were idle `idle_s`.

    The day repeats, so it begins as the evening before ended.
    """
    start, idle = math.ceil(start_s / _STEP_S), max(1, math.ceil(idle_s / _STEP_S))
    twice = np.concatenate([wanted, wanted])
    ready, count = np.empty_like(twice), int(wanted[-1])
    ordered: list[tuple[int, int]] = []
    for step, want in enumerate(twice.tolist()):
        coming = ordered[-1][1] if ordered else count
        if want > coming:
            ordered.append((step + start, want))
        while ordered and ordered[0][0] <= step:
            count = max(count, ordered.pop(0)[1])
        # Fewer only when the most that was wanted for a whole idle time is fewer.
        recent = int(twice[max(0, step - idle) : step + 1].max())
        if not ordered and recent < count:
            count = recent
        ready[step] = count
    return ready[len(wanted) :]


def day_hits(traffic: Traffic, picture_bytes: float, cache_mb: float, replicas: float) -> float:
    """Hit rate of the caches of `replicas` servers that share the day's posts at random."""
    day = float(traffic.rate_at(_times()).sum() * _STEP_S)
    requests = day * traffic.pictures.share / max(1.0, replicas)
    return hit_rate(traffic.pictures, cache_mb * 1e6, picture_bytes, requests)


def hit_rate(
    pictures: Pictures, cache_bytes: float, picture_bytes: float, requests: float
) -> float:
    """Share of the day's picture requests that find their picture cached, by Che's approximation.

    H. Che, Y. Tung, Z. Wang, "Hierarchical web caching systems", IEEE JSAC 20 (2002): under
    independent requests, a picture with request probability p is in a least-recently-used cache of
    C pictures with probability 1 - exp(-p T), where T solves sum(1 - exp(-p T)) = C.

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
    probability, members = _popularity(int(pictures.distinct), pictures.zipf)
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
