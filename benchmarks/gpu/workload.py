"""What is timed: batches of windows of one length, and pictures."""

import numpy as np
import numpy.typing as npt

from amlr.benchmarks.gpu.context import TOKENS
from amlr.runtime.batching import Batch
from amlr.runtime.bundle import Bundle
from amlr.runtime.results import Post
from amlr.runtime.text import TextWindow
from amlr.runtime.windows import window_units

# Subwords of one word after another: 25 words in 38 subwords, as in the Twitter corpora.
_WORD_SIZES = (1, 2, 1, 1, 3, 1, 2, 1)


def make_batch(bundle: Bundle, posts: list[Post], count: int) -> Batch:
    """Windows of exactly `TOKENS` steps, made of the posts' own tokens."""
    prepared = [bundle.encoder.prepare(post.text) for post in posts]
    stream = np.concatenate(
        [w.input_ids_t[1:-1] for e in bundle.encoder.encode_prepared(prepared) for w in e.windows]
    )
    inner = TOKENS - 2
    sizes: list[int] = []
    while sum(sizes) < inner:
        sizes.append(min(_WORD_SIZES[len(sizes) % len(_WORD_SIZES)], inner - sum(sizes)))
    last = np.cumsum(sizes).astype(np.int32)
    ids = bundle.manifest.token_ids
    windows = []
    for row in range(count):
        own = stream[(np.arange(inner) + row * inner) % len(stream)]
        windows.append(
            TextWindow(
                input_ids_t=np.concatenate([[ids.cls_id], own, [ids.sep_id]]).astype(np.int64),
                shape_ids_t=np.r_[0, np.ones(inner), 0].astype(np.int64),
                first_n=(last - sizes + 1).astype(np.int32),
                last_n=last,
                word_start=0,
            )
        )
    scales = bundle.manifest.scales
    units = [window_units(window, scales, every=False) for window in windows]
    return Batch(windows, units, scales=scales, pad_id=ids.pad_id)


def make_pixels(bundle: Bundle, count: int) -> npt.NDArray[np.float32]:
    """Random pictures (B, 3, H, W) as the image graph takes them."""
    size = bundle.manifest.image.size
    rng = np.random.default_rng(count)
    return rng.standard_normal((count, 3, size, size), np.float32)
