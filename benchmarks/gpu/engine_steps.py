"""The engine as a user calls it: posts a second, idle time, decoders, and a trained bundle."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from amlr.benchmarks.gpu.context import Context, busy_share, one_line
from amlr.benchmarks.gpu.onnx_steps import (
    PAPER,
    compared,
    direct_engine,
    import_onnxruntime,
    load_engine,
)
from amlr.benchmarks.gpu.run import Row
from amlr.benchmarks.gpu.workload import make_batch, make_pixels
from amlr.benchmarks.harness.timing import run_threads
from amlr.export.parity import Answer, ask, compare, entity_keys
from amlr.runtime.bundle import Bundle
from amlr.runtime.decode import Decoder
from amlr.runtime.engine import Engine
from amlr.runtime.providers.base import DecodesItself
from amlr.runtime.radii import Radii
from amlr.runtime.results import Post

SMALL = "small"
THREADS = (1, 16)
SECONDS = 1.5


def decoders(context: Context) -> Iterator[Row]:
    """Decoding behind the graphs on the device: the same entities as on the host, and its cost."""
    import_onnxruntime(context)
    bundle = Bundle.open(context.plan(PAPER))
    posts = context.posts(PAPER)
    yield from _each_precision(context, bundle, lambda e: _decoder_rows(context, e, posts))


def _each_precision(
    context: Context, bundle: Bundle, rows: Callable[[Engine], Iterable[Row]]
) -> Iterator[Row]:
    """Rows of an engine of each precision, or a row that says why it could not run."""
    for precision in _precisions(context, bundle):
        try:
            with load_engine(context, bundle, precision) as engine:
                yield from rows(engine)
        except Exception as error:  # another precision may still run
            yield {"card": context.card, "precision": precision, "not_run": one_line(error)}


def _decoder_rows(context: Context, engine: Engine, posts: Sequence[Post]) -> Iterator[Row]:
    provider, settings = engine.pipeline.provider, engine.decoder
    row: Row = {"card": context.card, "precision": engine.precision}
    if not isinstance(provider, DecodesItself) or not provider.can_decode(settings):
        yield row | {"not_run": f"{provider.name} leaves decoding to the host"}
        return
    on_device = engine.tag_batch(posts)
    scores = [post.scores for post in engine.pipeline.score(posts)]
    on_host = Decoder.of(engine.bundle).entities([each for each in scores if each is not None])
    changed = sum(
        entity_keys(one.entities) != entity_keys(other)
        for one, other in zip(on_device, on_host, strict=True)
    )
    failed = {"failed": f"decoders: {changed} posts differ"} if changed else {}
    yield row | {"posts": len(posts), "posts_changed": changed} | failed
    for count in context.sizes(1, 8, 32):
        batch = make_batch(engine.bundle, list(posts), count)
        images = provider.encode_images(make_pixels(engine.bundle, count))
        score = context.time(partial(provider.score, batch, images))
        both = context.time(partial(provider.decode, batch, images, settings))
        yield row | {
            "batch": count, "score_host_ms": score["host_ms"], "decode_host_ms": both["host_ms"]
        }  # fmt: skip


def end_to_end(context: Context) -> Iterator[Row]:
    """Posts a second through `tag_batch`, pictures a second, and the device's idle share."""
    import_onnxruntime(context)
    bundle = Bundle.open(context.plan(PAPER))
    posts = context.posts(PAPER)
    yield from _each_precision(
        context,
        bundle,
        lambda e: chain(_posts_rows(context, e, posts), _picture_rows(context, e)),
    )


def small(context: Context) -> Iterator[Row]:
    """The trained bundle's entities against the carried ones: float32, float16, certified."""
    import_onnxruntime(context)
    bundle = Bundle.open(context.plan(SMALL))
    for name, variant in context.variants_of(bundle).items():
        is_fp32 = variant.precision == "fp32"
        direct = partial(direct_engine, context, bundle, variant)
        yield compared(context, SMALL, f"sessions {name}", direct, exact=is_fp32)
    loads = [(precision, "engine") for precision in _precisions(context, bundle)]
    for precision, what in [*loads, ("escalate", "certified")]:
        load = partial(load_engine, context, bundle, precision)
        exact = precision in ("fp32", "escalate")
        yield compared(context, SMALL, f"{what} {precision}", load, exact=exact)
    if "fp16" in _precisions(context, bundle):
        yield certificates(context, bundle)
    posts = context.posts(SMALL)
    yield from _each_precision(context, bundle, lambda e: _posts_rows(context, e, posts))


def certificates(context: Context, bundle: Bundle) -> Row:
    """float16 answers within radii measured on one half of the posts, judged on the other half."""
    row: Row = {"card": context.card, "what": "certificates of fp16"}
    posts = context.posts(SMALL)
    answers: list[list[Answer]] = []
    for precision in ("fp32", "fp16"):
        try:
            with load_engine(context, bundle, precision) as engine:
                answers.append(ask(engine, posts))
        except Exception as error:  # the rows after this one may still run
            return row | {"not_run": one_line(error)}
    errors = compare(*answers).errors_p2
    half = len(posts) // 2
    units, tokens = errors[:half].max(axis=0).tolist()
    radii = Radii(units=units, tokens=tokens, posts=half, steps=0, blocks=frozenset())
    judged = [(one, other) for one, other in zip(*answers, strict=True)][half:]
    scores = [other.scores for _, other in judged if other.scores is not None]
    sure = Decoder.of(bundle).certify(scores, [radii] * len(scores))
    same = np.array(
        [one.entities == other.entities for one, other in judged if other.scores is not None]
    )
    wrong = int((sure & ~same).sum())
    row |= {
        "radii_posts": half,
        "radii": {"units": units, "tokens": tokens}, "posts": len(sure),
        "certified": int(sure.sum()), "changed": int((~same).sum()), "certified_changed": wrong,
        "beyond_radii": int((errors[half:] > errors[:half].max(axis=0)).any(axis=1).sum()),
    }  # fmt: skip
    return row | {"failed": f"{wrong} certified answers differ from float32's"} if wrong else row


def _precisions(context: Context, bundle: Bundle) -> list[str]:
    """Low ones first: time may run out."""
    precisions = [variant.precision for variant in context.variants_of(bundle).values()]
    return list(dict.fromkeys(reversed(precisions)))


def _posts_rows(context: Context, engine: Engine, posts: Sequence[Post]) -> Iterator[Row]:
    """Known pictures: every one has been seen once."""
    engine.tag_batch(posts)
    seconds = 0.05 if context.brief else SECONDS
    for threads in THREADS:
        for count in (1, 32) if threads == 1 else (32,):
            calls = [
                [posts[(start + i) % len(posts)] for i in range(count)]
                for start in range(0, max(count, len(posts)), count)
            ]
            # Every shape is met, captured and launched once before the clock runs.
            for call in calls * 3:
                engine.tag_batch(call)
            rate = _posts_per_second(engine, calls, threads, seconds)
            yield {"card": context.card, "precision": engine.precision, "what": "known pictures",
                   "threads": threads, "batch": count, "posts_per_s": round(rate, 1),
                   **_idle(context, engine, calls, threads)}  # fmt: skip


def _picture_rows(context: Context, engine: Engine) -> Iterator[Row]:
    provider = engine.pipeline.provider
    for count in context.sizes(8, 32):
        pixels = make_pixels(engine.bundle, count)
        timing = context.time(partial(provider.encode_images, pixels), runs=10)
        yield {"card": context.card, "precision": engine.precision, "what": "pictures",
               "batch": count, "host_ms": timing["host_ms"],
               "pictures_per_s": round(count / timing["host_ms"] * 1e3, 1)}  # fmt: skip


def _posts_per_second(
    engine: Engine, calls: Sequence[Sequence[Post]], threads: int, seconds: float
) -> float:
    posts, took_s = run_threads(
        lambda number: len(engine.tag_batch(calls[number % len(calls)])), threads, seconds
    )
    return posts / took_s


def _idle(
    context: Context, engine: Engine, calls: Sequence[Sequence[Post]], threads: int
) -> dict[str, Any]:
    """The device's idle share under the same load, from the profiler's own run."""
    if context.dry:
        return {"idle_share": "dry run"}
    try:
        load = partial(_posts_per_second, engine, calls, threads, 0.2)
        return busy_share(load, 0.2)
    except Exception as error:  # the rate is known without it
        return {"idle_share": one_line(error)}
