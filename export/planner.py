"""The bucket planner: which fixed shapes to capture as CUDA graphs, and profiles that fit them.

An engine runs any shape inside its profile; what pads is a captured graph (one fixed shape each)
and batching. Given how long the posts are, the planner chooses G lengths so that the expected
padded work is least. In length the answer is exact (dynamic programming over all candidates). The
rest is a heuristic, stated: a bucket's unit count is the largest of its own posts, rounded up to
`unit_step`; its batch size is chosen by `amlr.export.batch_sizes`, or given; where the memory cap
is exceeded, batches are halved, and then G is lowered until the plan fits.

Work of T padded steps: T * (1 + T / (6 D)), the ratio of a transformer layer's linear and attention
products, up to a constant.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.errors import InputError
from amlr.export.batch_sizes import AT_ONCE, FILL_STEPS, choose_batches
from amlr.export.tensorrt.profiles import Extent, Profile
from amlr.runtime.bundle import Bundle
from amlr.runtime.results import Post
from amlr.runtime.text import Spans
from amlr.runtime.windows import window_units

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
# Half activations alive at once in a layer, in widths per step: inner layer, its input and output.
_WIDTHS_ALIVE = 8
CHUNK_POSTS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """How long the windows of some posts are.

    Attributes:
        tokens_n: Subword steps of each window.
        units_n: Word-aligned units of each window.
    """

    tokens_n: Ints
    units_n: Ints

    def __post_init__(self) -> None:
        if not len(self.tokens_n) or len(self.tokens_n) != len(self.units_n):
            raise InputError(
                f"the planner needs as many token as unit counts and at least one, got "
                f"{len(self.tokens_n)} and {len(self.units_n)}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """One captured shape.

    Attributes:
        tokens: T, padded steps.
        units: S, padded units.
        windows: How many windows of the traffic fall into it.
        batch: Chosen batch size; 1 where batch sizes are given.
    """

    tokens: int
    units: int
    windows: int
    batch: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketPlan:
    """Chosen buckets and what they cost.

    Attributes:
        asked: Graphs that were allowed.
        buckets: Ascending.
        batches: Batch sizes, each captured for every bucket; none: each bucket has its own.
        work: Expected padded work per window.
        least_work: The same without any padding.
        single_work: The same when everything is padded to the longest.
        memory_bytes: Estimated memory of all captured graphs.
    """

    asked: int
    buckets: tuple[Bucket, ...]
    batches: tuple[int, ...]
    work: float
    least_work: float
    single_work: float
    memory_bytes: int

    @property
    def graphs(self) -> int:
        """Captured graphs: buckets times batch sizes."""
        return len(self.buckets) * max(1, len(self.batches))

    @property
    def padding(self) -> float:
        """Padded work beyond the least possible, as a share of the least."""
        return self.work / self.least_work - 1

    @property
    def saved(self) -> float:
        """Share of the work saved against padding everything to the longest."""
        return 1 - self.work / self.single_work

    def to_dict(self) -> dict[str, Any]:
        """Plain dict, ready for JSON."""
        return {
            "asked": self.asked,
            "graphs": self.graphs,
            "buckets": [
                {"tokens": b.tokens, "units": b.units, "windows": b.windows, "batch": b.batch}
                for b in self.buckets
            ],
            "batches": list(self.batches),
            "padding": self.padding,
            "saved": self.saved,
            "memory_mb": self.memory_bytes / 1e6,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanLimits:
    """What bounds a plan.

    Attributes:
        width: D of the model.
        least_tokens: K, the shortest text the graphs take.
        batches: Batch sizes to capture for every bucket; none: one is chosen for each.
        most: Largest batch that may be chosen.
        at_once: Windows that come together, for the choice.
        memory_mb: Most memory for captured graphs.
        token_step: Bucket lengths are multiples of it.
        unit_step: The same for units.
    """

    width: int = 768
    least_tokens: int = 6
    batches: tuple[int, ...] = ()
    most: int = 32
    at_once: int = AT_ONCE
    memory_mb: float = 2048.0
    token_step: int = 4
    unit_step: int = 8


def measure_traffic(bundle: Bundle, posts: Iterable[Post]) -> Traffic:
    """Window lengths and unit counts of posts under a bundle's own text rules."""
    tokens: list[int] = []
    units: list[int] = []
    chunk: list[tuple[str, Spans | None]] = []

    def flush() -> None:
        for encoded in bundle.encoder.encode(chunk):
            for window in encoded.windows:
                tokens.append(len(window.input_ids_t))
                units.append(len(window_units(window, bundle.manifest.scales, every=False)))
        chunk.clear()

    for post in posts:
        chunk.append((post.text, post.words))
        if len(chunk) == CHUNK_POSTS:
            flush()
    flush()
    return Traffic(tokens_n=np.array(tokens, np.int64), units_n=np.array(units, np.int64))


def work_of(tokens: npt.ArrayLike, width: int) -> Floats:
    """Work of padded lengths, up to a constant."""
    t = np.asarray(tokens, np.float64)
    return np.asarray(t * (1 + t / (6 * width)))


def best_edges(lengths_n: Ints, candidates_k: Ints, cost_k: Floats, graphs: int) -> list[int]:
    """Choose bucket lengths that minimise the summed cost of every window's bucket; exact.

    Args:
        lengths_n: Length of each window.
        candidates_k: Possible bucket lengths, ascending; the last holds the longest window.
        cost_k: Cost of one window in each.
        graphs: Most buckets.

    Returns:
        Indices into the candidates, ascending; the last is always the last candidate in use.

    Example:
        >>> best_edges(np.array([1, 1, 9]), np.array([1, 5, 9]), np.array([1.0, 5.0, 9.0]), 2)
        [0, 2]
    """
    place_n = np.searchsorted(candidates_k, lengths_n)
    last = int(place_n.max())
    count_k = np.bincount(place_n, minlength=last + 1)
    below = np.concatenate([[0], np.cumsum(count_k)]).astype(np.float64)  # windows before k
    # best[k]: least cost of all windows up to candidate k when k is a bucket.
    best = below[1 : last + 2] * cost_k[: last + 1]
    choice: list[Ints] = [np.full(last + 1, -1)]
    for _ in range(1, min(graphs, last + 1)):
        # Rows: this bucket k; columns: the bucket before it, j < k.
        step = (
            best[None, :]
            + (below[1 : last + 2, None] - below[None, 1 : last + 2]) * (cost_k[: last + 1, None])
        )
        step[np.triu_indices(last + 1)] = np.inf
        before = np.argmin(step, axis=1)
        value = step[np.arange(last + 1), before]
        better = value < best
        choice.append(np.where(better, before, -1))
        best_now = np.where(better, value, best)
        # A row that was not improved keeps the choice of the level below.
        if not better[last]:
            choice.pop()
            break
        best = best_now
    return _trace(choice, last)


def _trace(choice: Sequence[Ints], last: int) -> list[int]:
    edges, level, k = [last], len(choice) - 1, last
    while level > 0:
        before = int(choice[level][k])
        level -= 1
        if before >= 0:
            edges.append(before)
            k = before
    return edges[::-1]


def plan_buckets(traffic: Traffic, graphs: int, limits: PlanLimits | None = None) -> BucketPlan:
    """Choose at most `graphs` captured shapes.

    Raises:
        InputError: Fewer graphs than batch sizes, or not even one bucket fits the memory cap.
    """
    limits = limits or PlanLimits()
    per_batch = graphs // max(1, len(limits.batches))
    if per_batch < 1:
        raise InputError(
            f"{graphs} graphs cannot hold {len(limits.batches)} batch sizes; allow at least as many"
        )
    tokens_n = np.maximum(traffic.tokens_n, limits.least_tokens)
    top = _up(int(tokens_n.max()), limits.token_step)
    candidates = np.arange(limits.token_step, top + 1, limits.token_step)
    candidates = np.unique(np.maximum(candidates, limits.least_tokens))
    cost_k = work_of(candidates, limits.width)
    for count in range(per_batch, 0, -1):
        edges = candidates[best_edges(tokens_n, candidates, cost_k, count)]
        buckets = _with_batches(
            _buckets(tokens_n, traffic.units_n, edges, limits.unit_step), len(tokens_n), limits
        )
        memory = sum(
            _memory(b, batch, limits.width)
            for b in buckets
            for batch in limits.batches or (b.batch,)
        )
        if memory <= limits.memory_mb * 1e6:
            break
    else:
        raise InputError(
            f"one graph of {top} steps needs {memory / 1e6:.0f} MB, the cap is "
            f"{limits.memory_mb:g} MB; raise it or lower the batch sizes"
        )
    shares = np.array([bucket.windows for bucket in buckets], np.float64) / len(tokens_n)
    return BucketPlan(
        asked=graphs,
        buckets=buckets,
        batches=limits.batches,
        work=float(shares @ work_of([b.tokens for b in buckets], limits.width)),
        least_work=float(work_of(tokens_n, limits.width).mean()),
        single_work=float(work_of(top, limits.width)),
        memory_bytes=memory,
    )


def _buckets(tokens_n: Ints, units_n: Ints, edges: Ints, unit_step: int) -> tuple[Bucket, ...]:
    place_n = np.searchsorted(edges, tokens_n)
    found = []
    for index, edge in enumerate(edges.tolist()):
        own = units_n[place_n == index]
        most = _up(max(1, int(own.max(initial=1))), unit_step)
        found.append(Bucket(tokens=edge, units=most, windows=len(own)))
    return tuple(bucket for bucket in found if bucket.windows)


def _with_batches(
    buckets: tuple[Bucket, ...], windows: int, limits: PlanLimits
) -> tuple[Bucket, ...]:
    """The buckets with the batch sizes that cost least; unchanged where nothing fits the cap."""
    if limits.batches:
        return buckets
    chosen = choose_batches(
        work_of([b.tokens for b in buckets], limits.width).tolist(),
        [b.windows / windows for b in buckets],
        [_memory(b, 1, limits.width) for b in buckets],
        fill_work=float(work_of(FILL_STEPS, limits.width)),
        most=limits.most,
        at_once=limits.at_once,
        cap_bytes=limits.memory_mb * 1e6,
    )
    if chosen is None:
        return buckets
    return tuple(replace(b, batch=size) for b, size in zip(buckets, chosen, strict=True))


def _memory(bucket: Bucket, batch: int, width: int) -> int:
    """Estimated bytes of one captured graph: half activations of one layer and of the fusion."""
    return 2 * batch * width * _WIDTHS_ALIVE * (bucket.tokens + bucket.units)


def _up(value: int, step: int) -> int:
    return -(-value // step) * step


def fit_profile(
    plan: BucketPlan,
    *,
    max_tokens: int,
    max_units: int,
    max_posts: int = 32,
    pool: int = 256,
    pictures: int = 16,
) -> Profile:
    """A profile whose optimum is the plan's most frequent bucket and whose range takes any post.

    Args:
        plan: From `plan_buckets`.
        max_tokens: Longest window of the bundle.
        max_units: Most units one window can have.
        max_posts: Largest batch.
        pool: Pictures held on the device.
        pictures: Most pictures encoded at once.
    """
    modal = max(plan.buckets, key=lambda bucket: bucket.windows)
    usual = max(plan.batches, default=modal.batch)
    return Profile(
        posts=Extent(1, min(usual, max_posts), max_posts),
        tokens=Extent(1, min(modal.tokens, max_tokens), max_tokens),
        units=Extent(1, min(modal.units, max_units), max_units),
        pool=Extent(1, min(64, pool), pool),
        pictures=Extent(1, 1, pictures),
    )


def profile_for(bundle: Bundle, plan: BucketPlan) -> Profile:
    """`fit_profile` with a bundle's own limits."""
    longest = bundle.manifest.text.max_tokens
    # Every word one subword and every unit within K steps: the most units a window can have.
    return fit_profile(plan, max_tokens=longest, max_units=longest * bundle.manifest.scales)


def plan_table(plans: Sequence[BucketPlan]) -> Iterator[str]:
    """Lines for people: one row a plan, then the buckets of the last."""
    own = not plans[0].batches
    what = "lengths x batch" if own else "lengths"
    yield f"{'graphs':>6} {'used':>5} {'padding':>8} {'saved':>7} {'memory':>9}  {what}"
    for plan in plans:
        lengths = " ".join(
            str(b.tokens) if plan.batches else f"{b.tokens}x{b.batch}" for b in plan.buckets
        )
        yield (
            f"{plan.asked:>6} {plan.graphs:>5} {plan.padding:>8.1%} {plan.saved:>7.1%} "
            f"{plan.memory_bytes / 1e6:>6.1f} MB  {lengths}"
        )
    yield "padding: work beyond the least; saved: against padding every text to the longest"
    if own:
        yield (
            f"batch: chosen for {AT_ONCE} windows at a time; a run costs what {FILL_STEPS} steps "
            "cost, or more"
        )
