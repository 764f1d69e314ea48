"""The bucket planner: which fixed shapes to capture as CUDA graphs, and a profile that fits them.

An engine runs any shape inside its profile; what pads is a captured graph (one fixed shape each)
and batching. Given how long the posts are, the planner chooses G lengths so that the expected
padded work is least, which is exact (dynamic programming over all candidates). A bucket's unit
count is the largest of its posts, rounded up to `UNIT_STEP`; its batch is the largest power of two
whose windows stay within `FILL_STEPS` steps.

`FILL_STEPS` is an assumption: below that a device is not full. Work of T padded steps is
T * (1 + T / (6 D)), the ratio of a transformer layer's linear and attention products, up to a
constant.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.errors import InputError
from amlr.export.posts import read_lines
from amlr.export.profiles import Extent, Profile
from amlr.kernels.arrays import Doubles, Ints
from amlr.runtime.bundle import Bundle
from amlr.runtime.results import Post
from amlr.runtime.windows import window_units

GRAPHS = (1, 4, 8, 16)
FILL_STEPS = 256
TOKEN_STEP, UNIT_STEP = 4, 8
LARGEST_BATCH = 32
# Half activations alive at once in a layer, in widths per step: inner layer, its input and output.
_WIDTHS_ALIVE = 8
_CHUNK_POSTS = 1024


@dataclass(frozen=True, slots=True)
class Bucket:
    """One captured shape.

    Attributes:
        tokens: T, padded steps.
        units: S, padded units.
        windows: How many windows of the traffic fall into it.
        batch: B, windows of a run.
    """

    tokens: int
    units: int
    windows: int
    batch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketPlan:
    """Chosen buckets and what they cost.

    Attributes:
        asked: Graphs that were allowed.
        buckets: One captured graph each, ascending.
        padding: Padded work beyond the least possible, as a share of the least.
        saved: Share of the work saved against padding everything to the longest.
        memory_bytes: Estimated memory of all captured graphs.
    """

    asked: int
    buckets: tuple[Bucket, ...]
    padding: float
    saved: float
    memory_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain dict, ready for JSON."""
        return {
            "asked": self.asked,
            "graphs": len(self.buckets),
            "buckets": [asdict(bucket) for bucket in self.buckets],
            # No batch size is shared by all buckets.
            "batches": [],
            "padding": self.padding,
            "saved": self.saved,
            "memory_mb": self.memory_bytes / 1e6,
        }


def measure_traffic(bundle: Bundle, posts: Iterable[Post]) -> tuple[Ints, Ints]:
    """Steps and word-aligned units of each window of posts, under a bundle's own text rules.

    Raises:
        InputError: No post has a window.
    """
    tokens: list[int] = []
    units: list[int] = []
    source = iter(posts)
    while chunk := list(islice(source, _CHUNK_POSTS)):
        for encoded in bundle.encoder.encode([(post.text, post.words) for post in chunk]):
            for window in encoded.windows:
                tokens.append(len(window.input_ids_t))
                units.append(len(window_units(window, bundle.manifest.scales, every=False)))
    if not tokens:
        raise InputError("no post has a word; the planner needs at least one")
    return np.array(tokens, np.int64), np.array(units, np.int64)


def work_of(tokens: npt.ArrayLike, width: int) -> Doubles:
    """Work of padded lengths, up to a constant."""
    t = np.asarray(tokens, np.float64)
    return np.asarray(t * (1 + t / (6 * width)))


def best_edges(lengths_n: Ints, candidates_k: Ints, cost_k: Doubles, graphs: int) -> list[int]:
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
    upto_k = np.cumsum(np.bincount(place_n, minlength=last + 1)).astype(np.float64)
    cost_k = cost_k[: last + 1]
    # Cost of the windows between two neighbouring buckets: j before k.
    step_kj = (upto_k[:, None] - upto_k[None, :]) * cost_k[:, None]
    step_kj[np.triu_indices(last + 1)] = np.inf
    # Least cost of all windows up to candidate k when k is a bucket, and the buckets that reach it.
    best_k = upto_k * cost_k
    edges_k = [[k] for k in range(last + 1)]
    for _ in range(1, min(graphs, last + 1)):
        total_kj = best_k[None, :] + step_kj
        before_k = total_kj.argmin(axis=1)
        least_k = total_kj.min(axis=1)
        edges_k = [
            [*edges_k[before_k[k]], k] if least_k[k] < best_k[k] else edges_k[k]
            for k in range(last + 1)
        ]
        best_k = np.minimum(best_k, least_k)
    return edges_k[last]


def plan_buckets(
    tokens_n: Ints, units_n: Ints, graphs: int, *, width: int = 768, least_tokens: int = 6
) -> BucketPlan:
    """Choose at most `graphs` captured shapes.

    Args:
        tokens_n: Steps of each window.
        units_n: Units of each.
        graphs: Most captured graphs.
        width: D of the model.
        least_tokens: K, the shortest text the graphs take.
    """
    tokens_n = np.maximum(tokens_n, least_tokens)
    top = _up(int(tokens_n.max()), TOKEN_STEP)
    candidates = np.arange(TOKEN_STEP, top + 1, TOKEN_STEP)
    candidates = np.unique(np.maximum(candidates, least_tokens))
    edges = candidates[best_edges(tokens_n, candidates, work_of(candidates, width), graphs)]
    place_n = np.searchsorted(edges, tokens_n)
    buckets = []
    for place in np.unique(place_n):
        inside = place_n == place
        tokens, units = int(edges[place]), max(1, int(units_n[inside].max()))
        buckets.append(Bucket(tokens, _up(units, UNIT_STEP), int(inside.sum()), batch_for(tokens)))
    row_bytes = 2 * width * _WIDTHS_ALIVE
    work = float(work_of(edges[place_n], width).mean())
    return BucketPlan(
        asked=graphs,
        buckets=tuple(buckets),
        padding=work / float(work_of(tokens_n, width).mean()) - 1,
        saved=1 - work / float(work_of(top, width)),
        memory_bytes=sum(row_bytes * (b.tokens + b.units) * b.batch for b in buckets),
    )


def batch_for(tokens: int) -> int:
    """The largest power of two of windows that stay within `FILL_STEPS` steps.

    Example:
        >>> [batch_for(tokens) for tokens in (4, 20, 64, 300)]
        [32, 8, 4, 1]
    """
    windows = min(LARGEST_BATCH, max(1, FILL_STEPS // tokens))
    return 1 << (windows.bit_length() - 1)


def _up(value: int, step: int) -> int:
    return -(-value // step) * step


def fit_profile(bundle: Bundle, plan: BucketPlan) -> Profile:
    """A profile whose optimum is the plan's most frequent bucket and whose range takes any post."""
    modal = max(plan.buckets, key=lambda bucket: bucket.windows)
    longest = bundle.manifest.text.max_tokens
    # Every word one subword and every unit within K steps: the most units a window can have.
    max_units = longest * bundle.manifest.scales
    return Profile(
        posts=Extent(1, modal.batch, LARGEST_BATCH),
        tokens=Extent(1, min(modal.tokens, longest), longest),
        units=Extent(1, min(modal.units, max_units), max_units),
    )


def plan_table(plans: Sequence[BucketPlan]) -> Iterator[str]:
    """Lines for people: one row a plan, and what the columns mean."""
    yield f"{'graphs':>6} {'used':>5} {'padding':>8} {'saved':>7} {'memory':>9}  lengths x batch"
    for plan in plans:
        yield (
            f"{plan.asked:>6} {len(plan.buckets):>5} {plan.padding:>8.1%} {plan.saved:>7.1%} "
            f"{plan.memory_bytes / 1e6:>6.1f} MB  "
            + " ".join(f"{b.tokens}x{b.batch}" for b in plan.buckets)
        )
    yield "padding: work beyond the least; saved: against padding every text to the longest"
    yield f"batch: the largest power of two within {FILL_STEPS} steps a run"


def plan_report(
    bundle: Bundle, posts: Path, *, graphs: Sequence[int] = GRAPHS
) -> tuple[list[str], dict[str, Any]]:
    """Plan for the posts of a JSON-lines file.

    Args:
        bundle: Whose tokenizer, window rule and width count.
        posts: Lines `{"text": ...}`, as `amlr-tag` reads them.
        graphs: How many captured graphs to plan for; one row each.

    Returns:
        Lines to print, and the same as a dict that `read_plan` reads back.

    Raises:
        InputError: The file cannot be read.
    """
    (tokens_n, units_n), manifest = measure_traffic(bundle, _read(posts)), bundle.manifest
    plans = [
        plan_buckets(tokens_n, units_n, count, width=manifest.width, least_tokens=manifest.scales)
        for count in graphs
    ]
    profile = asdict(fit_profile(bundle, plans[-1]))
    lines = [f"{len(tokens_n)} windows of {posts.name}", *plan_table(plans)]
    for name, extent in profile.items():
        lines.append(f"profile {name}: {extent['min']} / {extent['opt']} / {extent['max']}")
    values = {
        "windows": len(tokens_n),
        "plans": [plan.to_dict() for plan in plans],
        "profile": profile,
    }
    return lines, values


def read_plan(path: Path) -> tuple[Profile, tuple[tuple[int, int], ...]]:
    """Profile and buckets of a report that `plan_report` wrote as JSON.

    Returns:
        The profile, and steps and units of the buckets of the largest plan.

    Raises:
        InputError: The file holds no plan.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        buckets = values["plans"][-1]["buckets"]
        return (
            Profile.from_dict(values["profile"]),
            tuple((int(b["tokens"]), int(b["units"])) for b in buckets),
        )
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"{path} holds no plan ({error!r}); make one with: "
            "amlr-export --from BUNDLE --plan-buckets POSTS.jsonl"
        ) from error


def _read(path: Path) -> Iterator[Post]:
    for line in read_lines(path):
        if line.post is None:
            reason = line.error["message"] if line.error else "no post"
            raise InputError(f"{path}: {reason}")
        # Pictures do not change how long a text is.
        yield Post(line.post.text, None, line.post.words)
