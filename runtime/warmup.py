"""The first posts after a load: shapes that an engine has not seen cost more than their work.

An engine library makes code, or plans memory, when it first meets a size. Typical sizes are met
here, before the first user is: posts of rising length, with and without a picture, within a budget.
"""

import time
from collections.abc import Iterator

from amlr.runtime.pipeline import Pipeline
from amlr.runtime.results import Post

BUDGET_S = 0.3
# Subwords of posts in the Twitter corpora: mean 27, nine in ten below 37, the longest 58.
_WORDS = (14, 22, 30, 8, 38, 18, 26, 46)


def warm_up(pipeline: Pipeline, *, pictures: bool, seconds: float = BUDGET_S) -> int:
    """Score made-up posts, the commonest lengths first; returns how many there was time for.

    Args:
        pipeline: What to warm; its counters of pictures are the caller's to reset.
        pictures: Whether to load the image graph and use golden pictures, which it then knows.
        seconds: No post is begun after this time.
    """
    end = time.perf_counter() + seconds
    done = 0
    for post in _posts(pipeline, pictures):
        if time.perf_counter() >= end:
            break
        for _ in pipeline.score([post]):
            done += 1
    return done


def _posts(pipeline: Pipeline, pictures: bool) -> Iterator[Post]:
    golden = pipeline.bundle.golden
    words = " ".join(post.text for post in golden).split()
    shown = next((post.image for post in golden if post.image is not None), None)
    if not words:
        return
    for count in _WORDS:
        text = " ".join((words * count)[:count])
        yield Post(text)
        if pictures and shown is not None:
            yield Post(text, shown)
