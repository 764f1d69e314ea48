"""onnxruntime on CUDA: how far its scores are from the carried ones, and how long it takes."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.benchmarks.gpu.context import TOKENS, Context, NotRunError, busy_share, one_line
from amlr.benchmarks.gpu.run import Row
from amlr.benchmarks.gpu.workload import make_batch, make_pixels
from amlr.export.parity import count_changes, entity_keys
from amlr.runtime.batching import Batch
from amlr.runtime.bundle import Bundle
from amlr.runtime.engine import Engine
from amlr.runtime.manifest import Variant
from amlr.runtime.providers.by_graphs import ByGraphs

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
            what = f"sessions {name}{', TF32' if tf32 else ''}"
            direct = partial(direct_engine, context, bundle, variant, tf32=tf32)
            yield compared(context, PAPER, what, direct, exact=is_fp32 and not tf32)
        load = partial(load_engine, context, bundle, variant.precision)
        yield compared(context, PAPER, f"engine {name}", load, exact=is_fp32)


def load_engine(context: Context, bundle: Bundle, precision: str) -> Engine:
    """The engine as a user loads it."""
    return Engine.load(bundle.path, provider=context.provider, precision=precision, check="off")


def direct_engine(
    context: Context, bundle: Bundle, variant: Variant, *, tf32: bool = False
) -> Engine:
    """An engine whose graphs run in plain sessions."""
    provider = DirectProvider(context, bundle, variant, tf32=tf32)
    return Engine(bundle, provider, variant=variant)


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
    """The engine's provider and plain sessions, for every variant."""
    import_onnxruntime(context)
    bundle = Bundle.open(context.plan(PAPER))
    # The fastest first: time may run out.
    for name, variant in reversed(list(context.variants_of(bundle).items())):
        loads: dict[str, Callable[[], Engine]] = {
            "engine": partial(load_engine, context, bundle, variant.precision),
            "plain": partial(direct_engine, context, bundle, variant),
        }
        for mode, load in loads.items():
            row: Row = {"card": context.card, "variant": name, "mode": mode}
            try:
                with load() as engine:
                    for timed in _timed(context, engine):
                        yield row | timed
            except Exception as error:  # another one may still run
                yield row | {"not_run": one_line(error)}


def _timed(context: Context, engine: Engine) -> Iterator[Row]:
    """Text and fusion with cached and with new pictures, and pictures alone, scores on the host."""
    posts, provider = context.posts(PAPER), engine.pipeline.provider
    for count in context.sizes(1, 8, 32, 64):
        batch = make_batch(engine.bundle, posts, count)
        pixels = make_pixels(engine.bundle, min(count, 32))
        images = provider.encode_images(pixels)
        slots = [images[i % len(images)] for i in range(count)]

        def both(batch: Batch = batch, pixels: Any = pixels) -> Any:
            return provider.score(batch, provider.encode_images(pixels))

        calls: dict[str, Callable[[], Any]] = {
            "text+fusion": partial(provider.score, batch, slots),
        }
        if len(pixels) == count:
            calls |= {"image+text+fusion": both, "image": partial(provider.encode_images, pixels)}
        for what, call in calls.items():
            timing = context.time(call)
            # The provider's stream is its own: the profiler sees them all.
            inside = "" if context.dry else busy_share(call, 0.1)["busy_ms_a_call"]
            yield {"what": what, "batch": count, "tokens": 0 if what == "image" else TOKENS,
                   "device_ms": inside, "queued_ms": "", "host_ms": timing["host_ms"],
                   "runs": timing["runs"]}  # fmt: skip


def import_onnxruntime(context: Context) -> Any:
    """onnxruntime, with PyTorch's CUDA libraries loaded before it.

    Raises:
        NotRunError: It is not the CUDA build.
    """
    import onnxruntime
    import torch  # noqa: F401  its CUDA and cuDNN are the ones that onnxruntime-gpu looks for

    if not context.dry and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise NotRunError(f"onnxruntime {onnxruntime.__version__} here has no CUDA: run install")
    return onnxruntime


def open_session(context: Context, path: Path, *, tf32: bool = False) -> Any:
    """A session on the device; `tf32` allows TF32 in float32 products.

    Raises:
        NotRunError: The session does not run on the device.
    """
    ort = import_onnxruntime(context)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if context.dry:
        options.intra_op_num_threads = 1
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    # The default searches all algorithms again for every new shape.
    settings = {"use_tf32": int(tf32), "cudnn_conv_algo_search": "HEURISTIC"}
    wanted = "CUDAExecutionProvider"
    session = ort.InferenceSession(str(path), options, providers=[(wanted, settings)])
    if session.get_providers()[0] != wanted:
        raise NotRunError(f"onnxruntime fell back to {session.get_providers()}; see log.txt")
    return session


class DirectProvider(ByGraphs):
    """A variant's padded graphs through plain sessions with settings of our choice."""

    def __init__(self, context: Context, bundle: Bundle, variant: Variant, *, tf32: bool) -> None:
        super().__init__(bundle, variant, packed="fusion" not in variant.graphs)
        self.name = "onnxruntime-direct"
        self._context, self._tf32 = context, tf32
        self._sessions: dict[str, Any] = {}

    def encode_images(self, pixels_bchw: npt.NDArray[np.float32]) -> list[Any]:
        """Regions (P, D) of each picture."""
        return list(self._run("image", {"pixel_values": pixels_bchw})["regions_bpd"])

    def close(self) -> None:
        """Forget the sessions."""
        self._sessions.clear()

    def _run(self, graph: str, feed: dict[str, Any]) -> dict[str, npt.NDArray[np.float32]]:
        if graph not in self._sessions:
            path = self._bundle.graph_path(self._variant, graph)
            self._sessions[graph] = open_session(self._context, path, tf32=self._tf32)
        session = self._sessions[graph]
        names = [output.name for output in session.get_outputs()]
        outputs = session.run(names, typed(feed, session))
        return {n: np.asarray(o, np.float32) for n, o in zip(names, outputs, strict=True)}


_NUMPY: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


def typed(feed: dict[str, Any], session: Any) -> dict[str, Any]:
    """The inputs that a session takes, in its types."""
    return {
        wanted.name: np.ascontiguousarray(feed[wanted.name], _NUMPY[wanted.type])
        for wanted in session.get_inputs()
    }
