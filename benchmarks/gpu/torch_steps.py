"""PyTorch on the same model: eager in three arithmetics, and compiled for static shapes."""

import copy
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from amlr.benchmarks.gpu.context import TOKENS, Context, one_line
from amlr.benchmarks.gpu.onnx_steps import PAPER, compared
from amlr.benchmarks.gpu.run import Row
from amlr.benchmarks.gpu.workload import make_batch, make_pixels
from amlr.export.eager import EagerProvider, load_reference
from amlr.runtime.bundle import Bundle
from amlr.runtime.engine import Engine


def eager(context: Context) -> Iterator[Row]:
    """float32 without TF32, float32 with it, and float16 weights: scores, then times."""
    bundle = Bundle.open(context.plan(PAPER))
    loaded = load_model(context)
    for precision in ("fp16", "fp32", "fp32 TF32"):
        use_tf32(precision == "fp32 TF32")
        model = copy.deepcopy(loaded).half() if precision == "fp16" else loaded

        def load(model: Any = model) -> Engine:
            return Engine(bundle, EagerProvider(model))

        yield compared(context, PAPER, f"eager {precision}", load, exact=precision == "fp32")
        for count in context.sizes(1, 8, 32, 64):
            inputs = _inputs(context, bundle, model, count)
            for what, call in _calls(model, inputs, pictures=count <= 32):
                yield _row(context, "eager", precision, what, count, call)


def compile_static(context: Context) -> Iterator[Row]:
    """`torch.compile(mode="reduce-overhead")`, float16, static shapes."""
    model = _half_model(context)
    shapes = (("text+fusion", 1), ("text+fusion", 32), ("image", 8))
    # Compiling takes a quarter of a minute a shape.
    for what, count in shapes[:1] if context.smoke else shapes:
        yield _compiled(context, model, "reduce-overhead", what, count)


def compile_max(context: Context) -> Iterator[Row]:
    """`torch.compile(mode="max-autotune")`, float16, at one shape."""
    yield _compiled(context, _half_model(context), "max-autotune", "text+fusion", 32)


def _half_model(context: Context) -> Any:
    """Half arithmetic of a CPU lacks operators: a dry run stays in float32."""
    model = load_model(context)
    return model if context.dry else model.half()


def _compiled(context: Context, model: Any, mode: str, what: str, count: int) -> Row:
    import torch

    if context.dry:
        # A CPU needs a C++ compiler for minutes; the same calls, uncompiled.
        mode, count = f"{mode} (not compiled: dry run)", 1
    bundle = Bundle.open(context.plan(PAPER))
    inputs = _inputs(context, bundle, model, count)
    call = dict(_calls(model, inputs, pictures=True))[what]
    if not context.dry:
        torch.set_float32_matmul_precision("high")
        call = _compile(model, inputs, what, mode)
    try:
        return _row(context, f"compile {mode}", "fp16", what, count, call)
    except Exception as error:  # another shape may still compile
        return {"card": context.card, "what": what, "batch": count, "mode": mode,
                "not_run": one_line(error)}  # fmt: skip


def _compile(model: Any, inputs: dict[str, Any], what: str, mode: str) -> Callable[[], Any]:
    import torch

    compile_: Any = torch.compile
    if what == "image":
        return partial(compile_(model.image, mode=mode, dynamic=False), inputs["pixels"])
    posts = compile_(lambda **given: _score(model, **given), mode=mode, dynamic=False)
    return partial(posts, **{name: inputs[name] for name in inputs if name != "pixels"})


def _inputs(context: Context, bundle: Bundle, model: Any, count: int) -> dict[str, Any]:
    """Tensors on the device for a batch whose every post has a picture of its own."""
    import torch

    batch = make_batch(bundle, context.posts(PAPER), count)
    feed = batch.padded_text(shapes=model.text.shapes is not None)
    dtype = next(model.parameters()).dtype
    pixels = torch.from_numpy(make_pixels(bundle, count)).to(context.device, dtype)
    with torch.inference_mode():
        regions = model.image(pixels)
    return {
        **{name: torch.from_numpy(array).to(context.device) for name, array in feed.items()},
        "regions": regions.clone(),
        "pixels": pixels,
    }


def _score(model: Any, regions: Any, **words: Any) -> tuple[Any, Any]:
    """All units of padded posts that all have a picture: `AmlrModel.forward` without a branch."""
    hidden = model.text(**words)
    units = model.units(hidden)
    return model.classify(units, model.cross.attend(units, regions)), model.token_head(hidden)


def _calls(
    model: Any, inputs: dict[str, Any], *, pictures: bool
) -> list[tuple[str, Callable[[], Any]]]:
    words = {n: t for n, t in inputs.items() if n not in ("pixels", "regions")}
    calls: list[tuple[str, Callable[[], Any]]] = [
        ("text+fusion", lambda: _score(model, inputs["regions"], **words))
    ]
    if pictures:
        calls += [
            ("image", lambda: model.image(inputs["pixels"])),
            ("image+text+fusion", lambda: _score(model, model.image(inputs["pixels"]), **words)),
        ]
    return calls


def _row(
    context: Context, mode: str, precision: str, what: str, count: int, call: Callable[[], Any]
) -> Row:
    import torch

    with torch.inference_mode():
        start = time.perf_counter()
        call()
        first = round(time.perf_counter() - start, 2)
        timing = context.time(call)
    return {"card": context.card, "mode": mode, "precision": precision, "what": what,
            "batch": count, "tokens": 0 if what == "image" else TOKENS, "first_s": first,
            **timing}  # fmt: skip


def load_model(context: Context) -> Any:
    """The eager model of the paper preset, on the device, in eval mode."""
    return load_reference(Bundle.open(context.plan(PAPER))).to(context.device)


def use_tf32(allowed: bool) -> None:
    """Whether float32 products and convolutions may use TF32."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
