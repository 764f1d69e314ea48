"""Before the first request: run every path once, and measure what work costs here."""

import io
import random
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from amlr.errors import AmlrError
from amlr.runtime.results import Post
from amlr.serving.costs import CHARS_PER_TOKEN, CostRow, CostTable
from amlr.serving.jobs import TaggingEngine

BUCKETS = (8, 32, 64, 128)
_REPEATS = 3
_LONG_S = 1.0
_WORDS = ("the", "day", "in", "Paris", "was", "fine", "with", "John", "and", "Apple", "at", "home")


def measure(
    engine: TaggingEngine,
    *,
    workers: int,
    batch_posts: int,
    repeats: int = _REPEATS,
    stop: Callable[[], bool] = lambda: False,
) -> CostTable:
    """Warm the engine up and fill its cost table.

    Args:
        engine: The engine.
        workers: Threads that will call it at the same time.
        batch_posts: Posts of a full batch.
        repeats: Runs of which the median counts.
        stop: Asked between runs; true gives up.

    Raises:
        AmlrError: The engine cannot tag an ordinary post, or `stop` asked to give up.
    """
    random_state = random.Random(0)
    (first,) = engine.tag_batch([Post("Paris", picture(random_state))])
    if first.error is not None:
        raise AmlrError(f"the engine fails on an ordinary post: {first.error['message']}")
    # Pillow looks at all the formats it knows, and imports them, before it gives up on a picture:
    # better now than while others wait.
    engine.tag_batch([Post("Paris", b"no picture")])
    rows = []
    for tokens in BUCKETS:
        text = sample_text(tokens)
        posts = [Post(text)] * batch_posts
        single = _median(engine, [posts[:1]], repeats, stop)
        full = _median(engine, [posts] * workers, repeats, stop)
        rows.append(CostRow(tokens=tokens, single_s=single, full_s=max(single, full)))
    table = CostTable(
        rows=tuple(rows),
        image_s=0.0,
        batch_posts=batch_posts,
        workers=workers,
        provider=first.provider,
        precision=first.precision,
    )
    # Every picture is new: cached ones cost next to nothing, and the correction learns of them.
    count = min(8, batch_posts)
    text = sample_text(BUCKETS[0])
    with_pictures = statistics.median(
        _median(
            engine,
            [[Post(text, picture(random_state)) for _ in range(count)] for _ in range(workers)],
            1,
            stop,
        )
        for _ in range(repeats)
    )
    text_only = table.batch_s([BUCKETS[0]] * count, 0)
    return replace(table, image_s=max(1e-6, (with_pictures - text_only) / count))


def sample_text(tokens: int) -> str:
    """A text of about so many (estimated) tokens."""
    size = max(1, round((tokens - 2) * CHARS_PER_TOKEN))
    words = " ".join(_WORDS)
    return (f"{words} " * (size // len(words) + 1))[:size]


def picture(random_state: random.Random) -> bytes:
    """A picture nobody has seen, of the size of an ordinary photo on the web."""
    from PIL import Image

    small = Image.frombytes("RGB", (16, 12), random_state.randbytes(16 * 12 * 3))
    buffer = io.BytesIO()
    small.resize((640, 480)).save(buffer, "JPEG")
    return buffer.getvalue()


def _median(
    engine: TaggingEngine,
    batches: Sequence[Sequence[Post]],
    repeats: int,
    stop: Callable[[], bool],
) -> float:
    """Median wall time of calls at the same time, one for each batch."""
    times = []
    for _ in range(repeats):
        if stop():
            raise AmlrError("stopped while warming up")
        calls = [threading.Thread(target=engine.tag_batch, args=(batch,)) for batch in batches]
        begun = time.perf_counter()
        for call in calls:
            call.start()
        for call in calls:
            call.join()
        times.append(time.perf_counter() - begun)
        if times[-1] > _LONG_S:  # a slow machine must not also be slow to get ready
            break
    return statistics.median(times)
