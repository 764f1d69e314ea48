"""Which calls are timed: workloads, batch sizes and the posts behind them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from amlr.benchmarks.data import BenchPost, photo
from amlr.benchmarks.harness.timing import Budget
from amlr.benchmarks.harness.worker import Job
from amlr.benchmarks.systems.base import ModelInput, Picture, build_inputs
from amlr.errors import InputError
from amlr.export.samples import sample_posts
from amlr.runtime.bundle import Bundle
from amlr.runtime.image import load_pixels
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
    step = max(1, len(posts) // size)
    order = [*posts[::step], *(p for i, p in enumerate(posts) if i % step)][: 4 * size]
    chosen = _of_one_window([item.post for item in order], bundle)[:size]
    generated = size - len(chosen)
    if generated:
        extra = sample_posts(8 * size, images=0, seed=7)
        chosen += _of_one_window(extra, bundle)[:generated]
    # Timing a cold picture needs one of its own for every post.
    timed = [
        post if _has_picture(post, bundle) else Post(post.text, photo(number), post.words)
        for number, post in enumerate(chosen)
    ]
    return Pool(
        posts=tuple(timed),
        inputs=tuple(build_inputs(timed, bundle)),
        generated_pictures=sum(post is not old for post, old in zip(timed, chosen, strict=True)),
        generated_posts=generated,
    )


def _of_one_window(posts: Sequence[Post], bundle: Bundle) -> list[Post]:
    texts = bundle.encoder.encode([(post.text, post.words) for post in posts])
    return [p for p, text in zip(posts, texts, strict=True) if len(text.windows) == 1]


def _has_picture(post: Post, bundle: Bundle) -> bool:
    """Whether a post has a picture that can be decoded."""
    try:
        if post.image is not None:
            load_pixels(post.image, bundle.manifest.image, bundle.manifest.limits)
    except InputError:
        return False
    return post.image is not None


def plan(pool: Pool, groups: Sequence[str], *, quick: bool) -> list[Job]:
    """All workloads of a run, what matters most first: a limited run leaves out the last ones.

    Whole batches come before single posts.
    """
    jobs = [job for group in groups for job in _jobs(group, pool, quick=quick)]
    return sorted(jobs, key=lambda job: job.batch == 1)


def budget_for(job: Job, *, quick: bool) -> Budget:
    """How long to measure a workload."""
    is_single = job.batch == 1
    if quick:
        return Budget(seconds=0, min_rounds=4 if is_single else 2)
    return Budget(seconds=25, min_rounds=7) if is_single else Budget(seconds=40, min_rounds=10)


def _jobs(group: str, pool: Pool, *, quick: bool) -> list[Job]:
    """Whole batches and single posts of one kind of call."""
    is_whole = group in END_TO_END
    items: Sequence[Any] = pool.posts if is_whole else pool.inputs
    batches = tuple(tuple(items[i : i + BATCH]) for i in range(0, len(items), BATCH))
    singles = tuple((item,) for item in items[: QUICK_SINGLES if quick else BATCH])
    return [
        Job(
            name=group,
            picture=_PICTURES[group.removeprefix("end-to-end-")],
            calls=calls,
            end_to_end=is_whole,
        )
        # A quick run takes whole batches of the most telling kind only.
        for calls in ([singles] if quick and group != "cold" else [batches, singles])
    ]
