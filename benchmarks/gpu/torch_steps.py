"""PyTorch on the same model: eager in three arithmetics, and compiled for static shapes."""

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.benchmarks.gpu.context import TOKENS, Context, NotRunError, one_line
from amlr.benchmarks.gpu.onnx_steps import PAPER, compared
from amlr.benchmarks.gpu.recipe import Recipe
from amlr.benchmarks.gpu.rows import Row
from amlr.benchmarks.gpu.workload import make_batch, make_pixels
from amlr.runtime.batching import Batch, BatchSizes, Scores, pool_images
from amlr.runtime.bundle import Bundle
from amlr.runtime.engine import Engine
from amlr.runtime.units import scale_major_index

Floats = npt.NDArray[np.float32]


def eager(context: Context) -> Iterator[Row]:
    """float32 without TF32, float32 with it, and float16 weights: scores, then times."""
    bundle = Bundle.open(context.plan(PAPER))
    loaded = load_model(context, PAPER)
    for precision in ("fp16", "fp32", "fp32 TF32"):
        use_tf32(precision == "fp32 TF32")
        model = copy.deepcopy(loaded).half() if precision == "fp16" else loaded

        def load(model: Any = model) -> Engine:
            return Engine(bundle, TorchProvider(model, context.device))

        yield compared(context, PAPER, f"eager {precision}", load, exact=precision == "fp32")
        for count in context.sizes(1, 8, 32, 64):
            inputs = _inputs(context, bundle, model, count)
            for what, call in _calls(model, inputs, pictures=count <= 32):
                yield _row(context, "eager", precision, what, count, _inferring(call))


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
    model = load_model(context, PAPER)
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
        return _row(context, f"compile {mode}", "fp16", what, count, _inferring(call))
    except Exception as error:  # another shape may still compile
        return {"card": context.card, "what": what, "batch": count, "mode": mode,
                "not_run": one_line(error)}  # fmt: skip


def _compile(model: Any, inputs: dict[str, Any], what: str, mode: str) -> Callable[[], Any]:
    import torch

    compile_: Any = torch.compile
    if what == "image":
        image = compile_(model.image, mode=mode, dynamic=False)
        return lambda: image(inputs["pixels"])
    posts = compile_(lambda **given: _score(model, **given), mode=mode, dynamic=False)
    given = {name: inputs[name] for name in inputs if name != "pixels"}
    return lambda: posts(**given)


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


def _inferring(call: Callable[[], Any]) -> Callable[[], Any]:
    import torch

    def run() -> Any:
        with torch.inference_mode():
            return call()

    return run


def _row(
    context: Context, mode: str, precision: str, what: str, count: int, call: Callable[[], Any]
) -> Row:
    import time

    start = time.perf_counter()
    call()
    first = round(time.perf_counter() - start, 2)
    return {"card": context.card, "mode": mode, "precision": precision, "what": what,
            "batch": count, "tokens": 0 if what == "image" else TOKENS, "first_s": first,
            **context.time(call)}  # fmt: skip


def load_model(context: Context, part: str) -> Any:
    """The eager model of a part of the kit, on the device, in eval mode.

    Raises:
        NotRunError: The part carries graphs only.
    """
    import torch

    from amlr.training.config import AmlrConfig
    from amlr.training.model import AmlrModel

    recipe = Recipe.load(context.kit / part)
    if recipe.config is None:
        raise NotRunError(f"the part {part!r} carries no eager model")
    with torch.device(context.device):
        model = AmlrModel(AmlrConfig.from_dict(recipe.config))
    names = list(model.state_dict())
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as workers:
        values = workers.map(lambda name: torch.from_numpy(np.array(recipe.pool[name])), names)
        model.load_state_dict(dict(zip(names, values, strict=True)))
    return model.eval().to(context.device)


def use_tf32(allowed: bool) -> None:
    """Whether float32 products and convolutions may use TF32."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


class TorchProvider:
    """An eager model behind the runtime's provider protocol.

    Padded texts, all units of every start, pictures through the plain attention: nothing of what
    an export changes.
    """

    name = "torch"
    batch_sizes = BatchSizes(windows=32, pictures=32)

    def __init__(self, model: Any, device: str) -> None:
        self.model, self._device = model, device
        self._dtype = next(model.parameters()).dtype
        self.precision = str(self._dtype).removeprefix("torch.")

    def encode_images(self, pixels_bchw: Floats) -> list[Any]:
        """Regions (P, D) of each picture, kept on the device."""
        import torch

        with torch.inference_mode():
            pixels = torch.from_numpy(pixels_bchw).to(self._device, self._dtype)
            return list(self.model.image(pixels))

    def score(self, batch: Batch, images: Sequence[Any | None]) -> Scores:
        """Raw logits of the batch's units and steps."""
        import torch

        feed = batch.padded_text(shapes=self.model.text.shapes is not None)
        tensors = {n: torch.from_numpy(array).to(self._device) for n, array in feed.items()}
        pool = pool_images(images)
        regions = torch.stack(pool.features) if pool.features else None
        slot_b = torch.from_numpy(pool.slot_b).to(self._device)
        with torch.inference_mode():
            hidden = self.model.text(**tensors)
            units = self.model.units(hidden)
            logits_bu = self.model.classify(units, self.model.take(units, regions, slot_b))
            emissions_bt = self.model.token_head(hidden)
            index_m = scale_major_index(batch.start_m, batch.scale_m, hidden.shape[1])
            rows = torch.from_numpy(batch.window_m).to(self._device)
            chosen = logits_bu[rows, torch.from_numpy(index_m).to(self._device)]
            logits: Floats = chosen.float().cpu().numpy()
            emissions: Floats = emissions_bt.float().cpu().numpy()
        return Scores(unit_logits_mc=logits, emissions_ny=emissions[feed["attention_mask"] == 1])

    def close(self) -> None:
        """Nothing to free."""
