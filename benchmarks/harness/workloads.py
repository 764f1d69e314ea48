"""Which calls are timed: workloads, batch sizes and the posts behind them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from amlr.benchmarks.data import BenchPost, with_pictures
from amlr.benchmarks.harness.jobs import Job
from amlr.benchmarks.harness.timing import Budget
from amlr.benchmarks.systems.base import ModelInput, Picture, build_inputs
from amlr.errors import InputError
from amlr.export.samples import sample_posts
from amlr.runtime.bundle import Bundle
from amlr.runtime.results import Post

BATCH = 16
"""Posts a call, as the published code batches them."""
# With four rounds just enough calls for a p95.
QUICK_SINGLES = 5
_PICTURES: dict[str, Picture] = {
    "cold": "cold",
    "hit": "hit",
    "text-only": "none",
    "block": "block",
    "block-text-only": "block-none",
}
MAIN = ("cold", "hit", "text-only")
BLOCK = ("block", "block-text-only")
END_TO_END = tuple(f"end-to-end-{name}" for name in MAIN)
ALL = (*MAIN, *END_TO_END, *BLOCK)
# The host is measured without peers, by `amlr.benchmarks.host`.
HOST = "host"
CHOICES = (*ALL, HOST)
QUICK = (*MAIN, "end-to-end-cold")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One line of the plan.

    Attributes:
        name: Name in rows and of `--workloads`.
        job: What every peer is given.
        batch: Posts a call.
        budget: How long to measure.
    """

    name: str
    job: Job
    batch: int
    budget: Budget

    @property
    def weight(self) -> float:
        """Share of a limited run's time, relative to others."""
        return 1.0 if self.batch == 1 else 2.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Posts to time, each of one window, each with a picture of its own."""

    posts: tuple[Post, ...]
    inputs: tuple[ModelInput, ...]
    generated_pictures: int
    generated_posts: int


def make_pool(posts: Sequence[BenchPost], bundle: Bundle, size: int) -> Pool:
    """Choose posts to time: evenly through the data, of one window, with a usable picture.

    Too few posts are filled up with generated ones; both kinds of filling are counted.
    """
    encoder = bundle.encoder
    step = max(1, len(posts) // size)
    order = [*posts[::step], *(p for i, p in enumerate(posts) if i % step)][: 4 * size]
    encoded = encoder.encode([(item.post.text, item.post.words) for item in order])
    chosen = [p for p, text in zip(order, encoded, strict=True) if len(text.windows) == 1][:size]
    generated = size - len(chosen)
    if generated:
        extra = sample_posts(8 * size, images=0, seed=7)
        texts = encoder.encode([(post.text, None) for post in extra])
        short = [p for p, text in zip(extra, texts, strict=True) if len(text.windows) == 1]
        chosen += [BenchPost(id=f"fill-{i}", post=p) for i, p in enumerate(short[:generated])]
    filled, pictures = with_pictures(_readable(chosen, bundle))
    timed = [item.post for item in filled]
    inputs = build_inputs(timed, bundle)
    return Pool(
        posts=tuple(timed),
        inputs=tuple(inputs),
        generated_pictures=pictures,
        generated_posts=generated,
    )


def _readable(posts: Sequence[BenchPost], bundle: Bundle) -> list[BenchPost]:
    """Drop pictures that cannot be decoded; `with_pictures` replaces them."""
    from amlr.runtime.image import load_pixels

    kept = []
    for item in posts:
        try:
            if item.post.image is not None:
                load_pixels(item.post.image, bundle.manifest.image, bundle.manifest.limits)
            kept.append(item)
        except InputError:
            kept.append(replace(item, post=Post(item.post.text, None, item.post.words)))
    return kept


def check_groups(groups: Sequence[str]) -> None:
    """Check what `--workloads` names.

    Raises:
        InputError: A group has no such name.
    """
    unknown = [name for name in groups if name not in CHOICES]
    if unknown:
        raise InputError(f"unknown workload {unknown[0]!r}; expected some of {', '.join(CHOICES)}")


def plan(pool: Pool, groups: Sequence[str], *, quick: bool) -> list[Workload]:
    """All workloads of a run, what matters most first: a limited run leaves out the last ones.

    Whole batches come before single posts.

    Raises:
        InputError: A group has no such name.
    """
    check_groups(groups)
    workloads = [workload for group in groups for workload in _timed(group, pool, quick=quick)]
    return sorted(workloads, key=lambda workload: workload.batch == 1)


def _budgets(quick: bool) -> tuple[Budget, Budget]:
    """Budgets of whole batches and of single posts."""
    if quick:
        return Budget(seconds=0, min_rounds=2), Budget(seconds=0, min_rounds=4)
    return Budget(seconds=40, min_rounds=10), Budget(seconds=25, min_rounds=7)


def _timed(group: str, pool: Pool, *, quick: bool) -> list[Workload]:
    """Whole batches and single posts of one kind of call."""
    is_whole = group in END_TO_END
    picture = _PICTURES[group.removeprefix("end-to-end-")]
    items: Sequence[Any] = pool.posts if is_whole else pool.inputs
    batches = tuple(tuple(items[i : i + BATCH]) for i in range(0, len(items), BATCH))
    singles = tuple((item,) for item in items[: QUICK_SINGLES if quick else BATCH])
    many, single = _budgets(quick)
    sizes = [(BATCH, batches, many), (1, singles, single)]
    is_main = group == "cold"
    return [
        Workload(
            name=group,
            batch=batch,
            budget=budget,
            job=Job(picture=picture, calls=calls, end_to_end=is_whole),
        )
        # A quick run takes whole batches of the most telling kind only.
        for batch, calls, budget in (sizes[1:] if quick and not is_main else sizes)
    ]
