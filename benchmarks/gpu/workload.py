"""What is timed: batches of windows of one length, and the arrays that graphs take for them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.benchmarks.gpu.context import TOKENS, NotRunError
from amlr.runtime.batching import Batch
from amlr.runtime.bundle import Bundle
from amlr.runtime.manifest import Variant
from amlr.runtime.results import Post
from amlr.runtime.text import TextWindow
from amlr.runtime.windows import window_units

Array = npt.NDArray[Any]
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


# One graph for text and fusion: hidden states never leave it.
MERGED = "text_fusion"


def posts_graphs(variant: Variant) -> tuple[str, ...]:
    """Names of the graphs that score posts, in order: merged or padded where there are such.

    Raises:
        NotRunError: The variant has none of the usual ones.
    """
    for names in ((MERGED,), ("text", "fusion"), ("text_packed", "fusion_packed")):
        if set(names) <= set(variant.graphs):
            return names
    raise NotRunError(f"the {variant.precision} variant has only the graphs {list(variant.graphs)}")


def text_feed(batch: Batch, graph: str, *, shapes: bool) -> dict[str, Array]:
    """Inputs of a text graph."""
    if graph == "text_packed":
        return dict(batch.packed_text(shapes=shapes))
    return dict(batch.padded_text(min_steps=batch.scales, shapes=shapes))


def fusion_feed(batch: Batch, graph: str, hidden: Array, pool_npd: Array) -> dict[str, Array]:
    """Inputs of a fusion graph; each window looks at a picture of its own."""
    slot_b = np.arange(len(batch)) % len(pool_npd)
    if graph == "fusion_packed":
        return batch.packed_fusion(hidden, pool_npd, slot_b)
    return batch.padded_fusion(hidden, pool_npd, slot_b)


def merged_feed(batch: Batch, pool_npd: Array, *, shapes: bool) -> dict[str, Array]:
    """Inputs of the graph that is both."""
    words = text_feed(batch, MERGED, shapes=shapes)
    # Only its number of steps matters here.
    hidden = np.empty((*words["input_ids"].shape, 0), np.float32)
    feed = words | fusion_feed(batch, MERGED, hidden, pool_npd)
    return {name: value for name, value in feed.items() if name != "hidden_btd"}


def typed(feed: Mapping[str, Array], session: Any) -> dict[str, Array]:
    """The inputs that a session takes, in its types.

    Raises:
        NotRunError: It wants others.
    """
    names = {given.name: _NUMPY.get(given.type) for given in session.get_inputs()}
    missing = set(names) - set(feed)
    if missing:
        raise NotRunError(f"the graph wants inputs {sorted(missing)} that this harness lacks")
    return {
        name: np.ascontiguousarray(feed[name], dtype=kind or feed[name].dtype)
        for name, kind in names.items()
    }


_NUMPY: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}
