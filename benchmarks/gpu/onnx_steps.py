"""onnxruntime on CUDA: how far its scores are from the carried ones, and how long it takes."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from amlr.benchmarks.gpu.context import TOKENS, Context, NotRunError, busy_share, one_line
from amlr.benchmarks.gpu.onnx_sessions import (
    Bound,
    DirectProvider,
    import_onnxruntime,
    open_session,
)
from amlr.benchmarks.gpu.rows import Row
from amlr.benchmarks.gpu.workload import (
    fusion_feed,
    make_batch,
    make_pixels,
    merged_feed,
    posts_graphs,
    text_feed,
    typed,
)
from amlr.export.parity import count_changes, entity_keys
from amlr.runtime.bundle import Bundle
from amlr.runtime.engine import Engine
from amlr.runtime.manifest import Variant

PAPER = "paper"
# Of raw logits, float32 without TF32 against float32 on a CPU.
FP32_BOUND = 1e-3


def parity(context: Context) -> Iterator[Row]:
    """Every variant against the carried scores and entities of the float32 CPU run."""
    import_onnxruntime(context)
    bundle = Bundle.open(context.plan(PAPER))
    for name, variant in context.variants_of(bundle).items():
        is_fp32 = variant.precision == "fp32"
        for tf32 in (False, True) if is_fp32 and not context.brief else (False,):
            provider = DirectProvider(context, bundle, variant, tf32=tf32)
            what = f"sessions {name}{', TF32' if tf32 else ''}"

            def direct(provider: Any = provider, variant: Variant = variant) -> Engine:
                return Engine(bundle, provider, variant=variant)

            yield compared(context, PAPER, what, direct, exact=is_fp32 and not tf32)

        def load(precision: str = variant.precision) -> Engine:
            return Engine.load(
                bundle.path, provider=context.provider, precision=precision, check="off"
            )

        yield compared(context, PAPER, f"engine {name}", load, exact=is_fp32)


def compared(
    context: Context, part: str, what: str, load: Callable[[], Engine], *, exact: bool
) -> Row:
    """A row: errors of raw scores and changed entities of one engine, or why it did not run.

    Args:
        context: The run.
        part: Part of the kit whose posts and reference are used.
        what: Name of the row.
        load: Opens the engine.
        exact: Whether a changed entity, or an error above `FP32_BOUND`, fails the run.
    """
    posts = context.posts(part)
    reference = np.load(context.kit / part / "reference.npz")
    expected = json.loads((context.kit / part / "entities.json").read_text(encoding="utf-8"))
    try:
        with load() as engine:
            raws, answers = engine.raw(posts), engine.tag_batch(posts)
            precision = engine.precision
    except Exception as error:  # another variant may still run
        return {"card": context.card, "what": what, "not_run": one_line(error)}
    errors = {
        name: max(
            float(np.abs(getattr(raw, name) - reference[f"{number}.{name}"]).max(initial=0.0))
            for number, raw in enumerate(raws)
        )
        for name in ("unit_logits", "emissions")
    }
    changed = 0
    for answer, wanted in zip(answers, expected, strict=True):
        keys = {(start, end, label) for start, end, label in wanted}
        changed += count_changes(keys, entity_keys(answer.entities))
    row: Row = {
        "card": context.card, "what": what, "precision": precision, "posts": len(posts),
        "entities": sum(map(len, expected)), "changed": changed, "max_abs_error": errors,
    }  # fmt: skip
    is_off = not all(error <= FP32_BOUND for error in errors.values())
    if exact and (changed or is_off):
        row["failed"] = f"{what}: {changed} entities changed, errors {errors}"
    return row


def speed(context: Context) -> Iterator[Row]:
    """Plain, bound and captured sessions, and the engine's provider, for every variant."""
    import_onnxruntime(context)
    bundle = Bundle.open(context.plan(PAPER))
    # The fastest first: time may run out.
    for name, variant in reversed(list(context.variants_of(bundle).items())):
        for mode in ("captured", "bound", "plain"):
            try:
                yield from _mode_rows(context, bundle, name, variant, mode)
            except Exception as error:  # another mode may still run
                yield {
                    "card": context.card,
                    "variant": name,
                    "mode": mode,
                    "not_run": one_line(error),
                }
        try:
            yield from _engine_rows(context, bundle, name, variant)
        except Exception as error:
            yield {
                "card": context.card,
                "variant": name,
                "mode": "engine",
                "not_run": one_line(error),
            }


def _mode_rows(
    context: Context, bundle: Bundle, name: str, variant: Variant, mode: str
) -> Iterator[Row]:
    """Text and fusion with cached and with new pictures, and pictures alone."""
    chains = Chains(context, bundle, variant, mode)
    kinds: list[tuple[str, int, Callable[[int], Callable[[], Any]]]] = [
        ("text+fusion", 64, partial(chains.posts, new_pictures=False)),
        ("image+text+fusion", 32, partial(chains.posts, new_pictures=True)),
        ("image", 32, chains.pictures),
    ]
    for what, most, make in kinds:
        row: Row = {"card": context.card, "variant": name, "mode": mode, "what": what}
        try:
            for count in context.sizes(1, 8, 32, 64):
                if count <= most:
                    timing = context.time(make(count), chains.stream)
                    tokens = 0 if what == "image" else TOKENS
                    yield row | {"batch": count, "tokens": tokens, **timing}
        except Exception as error:  # other graphs may still run
            yield row | {"not_run": one_line(error)}


class Chains:
    """Calls that run a variant's graphs one after another in one of three modes."""

    def __init__(self, context: Context, bundle: Bundle, variant: Variant, mode: str) -> None:
        if mode == "captured" and context.dry:
            raise NotRunError("a CPU captures no CUDA graph")
        self.context, self.bundle, self.variant, self.mode = context, bundle, variant, mode
        self.posts_read = context.posts(PAPER)
        self.stream: Any = None
        if not context.dry:
            import torch

            cuda: Any = torch.cuda
            self.stream = cuda.Stream()
        self._sessions: dict[tuple[str, bool], Any] = {}
        self._captured = 0

    def session(self, graph: str, *, capture: bool = False) -> Any:
        """A graph's session, opened once."""
        key = (graph, capture)
        if key not in self._sessions:
            path = self.bundle.graph_path(self.variant, graph)
            self._sessions[key] = open_session(
                self.context, path, stream=self.stream, capture=capture
            )
        return self._sessions[key]

    def pictures(self, count: int) -> Callable[[], Any]:
        """The image graph alone."""
        feed = {"pixel_values": make_pixels(self.bundle, count)}
        if self.mode == "plain":
            return self._plain("image", feed)
        return self._bound("image", feed).run

    def posts(self, count: int, *, new_pictures: bool) -> Callable[[], Any]:
        """Text and fusion; with the image graph before them where the pictures are new."""
        names = posts_graphs(self.variant)
        batch = make_batch(self.bundle, self.posts_read, count)
        shapes = self.bundle.manifest.shape_embedding
        pixels = {"pixel_values": make_pixels(self.bundle, count)}
        regions = self._only(self._arrays("image", pixels))
        last = names[-1]
        if len(names) == 1:
            words = None
            feed = merged_feed(batch, regions, shapes=shapes)
        else:
            words = text_feed(batch, names[0], shapes=shapes)
            feed = fusion_feed(batch, last, self._only(self._arrays(names[0], words)), regions)
        if self.mode == "plain":
            calls = [self._plain("image", pixels)] * new_pictures
            calls += [] if words is None else [self._plain(names[0], words)]
            calls.append(self._plain(last, feed))
        else:
            # What a graph gives stays where it is and is the next one's input.
            given: dict[str, Any] = typed(feed, self.session(last))
            parts = []
            if new_pictures:
                parts.append(self._bound("image", pixels))
                given["pool_npd"] = _same(self._only(parts[-1].outputs), given["pool_npd"])
            if words is not None:
                parts.append(self._bound(names[0], words))
                hidden = next(name for name in given if name.startswith("hidden"))
                given[hidden] = _same(self._only(parts[-1].outputs), given[hidden])
            parts.append(self._bound(last, given))
            calls = [part.run for part in parts]

        def run() -> None:
            for call in calls:
                call()

        return run

    @staticmethod
    def _only(outputs: dict[str, Any]) -> Any:
        if len(outputs) != 1:
            raise NotRunError(f"a graph gives {sorted(outputs)}, expected one output")
        return next(iter(outputs.values()))

    def _arrays(self, graph: str, feed: dict[str, Any]) -> dict[str, Any]:
        session = self.session(graph)
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, typed(feed, session)), strict=True))

    def _plain(self, graph: str, feed: dict[str, Any]) -> Callable[[], Any]:
        session = self.session(graph)
        ready = typed(feed, session)
        return lambda: session.run(None, ready)

    def _bound(self, graph: str, feed: dict[str, Any]) -> Bound:
        capture = self.mode == "captured"
        arrays = {
            name: value if isinstance(value, np.ndarray) else value.cpu().numpy()
            for name, value in feed.items()
        }
        shapes = {name: value.shape for name, value in self._arrays(graph, arrays).items()}
        session = self.session(graph, capture=capture)
        ready = typed(arrays, session)
        inputs = {n: v if not isinstance(v, np.ndarray) else ready[n] for n, v in feed.items()}
        bound = Bound(self.context, session, {n: inputs[n] for n in ready}, shapes)
        if capture:
            self._captured += 1
            bound.name_graph(self._captured)
        return bound


def _same(tensor: Any, array: Any) -> Any:
    """A tensor as the next graph's input.

    Raises:
        NotRunError: It would have to be converted on the way.
    """
    kind = str(tensor.dtype).removeprefix("torch.")
    if kind != str(array.dtype) or tuple(tensor.shape) != array.shape:
        raise NotRunError(
            f"a graph gives {kind} {tuple(tensor.shape)}, the next takes {array.dtype} "
            f"{array.shape}"
        )
    return tensor


def _engine_rows(context: Context, bundle: Bundle, name: str, variant: Variant) -> Iterator[Row]:
    """The engine's own provider: scores on the host, whatever it does on the device."""
    posts = context.posts(PAPER)
    with Engine.load(
        bundle.path, provider=context.provider, precision=variant.precision, check="off"
    ) as engine:
        provider = engine.pipeline.provider
        for count in context.sizes(1, 8, 32, 64):
            batch = make_batch(bundle, posts, count)
            pixels = make_pixels(bundle, min(count, 32))
            images = provider.encode_images(pixels)
            slots = [images[i % len(images)] for i in range(count)]
            calls: list[tuple[str, int, int, Callable[[], Any]]] = [
                ("text+fusion", count, TOKENS, partial(provider.score, batch, slots)),
                ("image", len(pixels), 0, partial(provider.encode_images, pixels)),
            ]
            for what, size, tokens, call in calls:
                timing = context.time(call)
                # Its stream is its own: the profiler sees them all.
                inside = "" if context.dry else busy_share(call, 0.1)["busy_ms_a_call"]
                yield {"card": context.card, "variant": name, "mode": "engine", "what": what,
                       "batch": size, "tokens": tokens, "device_ms": inside, "queued_ms": "",
                       "host_ms": timing["host_ms"], "runs": timing["runs"]}  # fmt: skip
