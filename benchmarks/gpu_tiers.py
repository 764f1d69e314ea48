"""What is compared on a GPU: the engine's tiers, and PyTorch as users run it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.runtime.batching import CPU_BATCHES, Batch, Scores, pool_images
from amlr.runtime.bundle import Bundle
from amlr.runtime.engine import Engine
from amlr.runtime.units import scale_major_index

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuTier:
    """One row of the report.

    Attributes:
        name: Shown in the report.
        open: Loads an engine; raises an `AmlrError` or anything else where it cannot.
        must_match: Whether a changed entity fails the run; false for plain PyTorch in half.
    """

    name: str
    open: Callable[[], Engine]
    must_match: bool = True


class TorchProvider:
    """The eager model on a device, as a user of PyTorch would run it."""

    name = "torch"
    batch_sizes = CPU_BATCHES

    def __init__(self, model: Any, device: str, *, compiled: bool, half: bool) -> None:
        import torch

        self.precision = "fp16" if half else "fp32"
        self._torch, self._device, self._half = torch, device, half
        self.model = model.eval().to(device)
        wrap = (lambda f: torch.compile(f, dynamic=True)) if compiled else (lambda f: f)
        self._text, self._image = wrap(self.model.text), wrap(self.model.image)
        self._fuse = wrap(self._fusion)

    def _fusion(self, hidden: Any, regions: Any, slot_b: Any) -> tuple[Any, Any]:
        units = self.model.units(hidden)
        taken = self.model.take(units, regions, slot_b)
        return self.model.classify(units, taken), self.model.token_head(hidden)

    def _context(self) -> Any:
        return self._torch.autocast(
            self._device.partition(":")[0], dtype=self._torch.float16, enabled=self._half
        )

    def encode_images(self, pixels_bchw: Floats) -> list[Any]:
        """Regions of each picture, kept on the device."""
        with self._torch.inference_mode(), self._context():
            regions = self._image(self._torch.from_numpy(pixels_bchw).to(self._device)).float()
        return list(regions)

    def score(self, batch: Batch, images: Sequence[Any | None]) -> Scores:
        """Raw logits of the batch's units and steps."""
        torch = self._torch
        feed = batch.padded_text(shapes=self.model.text.shapes is not None)
        tensors = {n: torch.from_numpy(array).to(self._device) for n, array in feed.items()}
        pool = pool_images(images)
        regions = torch.stack(pool.features) if pool.features else None
        with torch.inference_mode(), self._context():
            hidden = self._text(**tensors)
            slot_b = torch.from_numpy(pool.slot_b).to(self._device)
            logits_bu, emissions_bt = self._fuse(hidden, regions, slot_b)
            index_m = scale_major_index(batch.start_m, batch.scale_m, hidden.shape[1])
            rows = torch.from_numpy(batch.window_m).to(self._device)
            chosen = logits_bu[rows, torch.from_numpy(index_m).to(self._device)]
            logits: Floats = chosen.float().cpu().numpy()
            emissions: Floats = emissions_bt.float().cpu().numpy()
        return Scores(unit_logits_mc=logits, emissions_ny=emissions[feed["attention_mask"] == 1])

    def close(self) -> None:
        """Give the model's memory back."""
        self.model = self._text = self._image = self._fuse = None
        if self._device.startswith("cuda"):
            self._torch.cuda.empty_cache()


def torch_engine(path: Path, device: str, *, compiled: bool, half: bool) -> Engine:
    """The bundle's own reference model behind the runtime's text, batches and decoders."""
    from amlr.export.reference import load_reference

    bundle = Bundle.open(path)
    model = load_reference(bundle)
    return Engine(bundle, TorchProvider(model, device, compiled=compiled, half=half))


def gpu_tiers(path: Path, device: str = "cuda") -> list[GpuTier]:
    """Everything worth comparing; what cannot run here says so when it is opened."""

    def load(provider: str, precision: str) -> Callable[[], Engine]:
        return lambda: Engine.load(path, provider=provider, precision=precision)

    def torch(*, compiled: bool, half: bool) -> Callable[[], Engine]:
        return lambda: torch_engine(path, device, compiled=compiled, half=half)

    return [
        GpuTier(name="torch eager fp32", open=torch(compiled=False, half=False)),
        GpuTier(name="torch eager fp16", open=torch(compiled=False, half=True), must_match=False),
        GpuTier(name="torch.compile fp32", open=torch(compiled=True, half=False)),
        GpuTier(name="onnxruntime-cuda fp32", open=load("onnxruntime-cuda", "exact")),
        GpuTier(name="tensorrt fp32", open=load("tensorrt", "exact")),
        GpuTier(name="tensorrt fp16", open=load("tensorrt", "fp16")),
        GpuTier(name="tensorrt-rtx fp32", open=load("tensorrt-rtx", "exact")),
        GpuTier(name="tensorrt-rtx fp16", open=load("tensorrt-rtx", "fp16")),
    ]


def percentile_row(call: Callable[[], Any], seconds: float, most: int = 2000) -> dict[str, Any]:
    """Time a call until the budget is spent: milliseconds, warm-up excluded."""
    for _ in range(3):
        call()
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < 10 or (time.perf_counter() - start < seconds and len(times) < most):
        before = time.perf_counter()
        call()
        times.append((time.perf_counter() - before) * 1e3)
    p50, p95, p99 = (float(np.percentile(times, q)) for q in (50, 95, 99))
    return {
        "runs": len(times),
        "p50_ms": p50,
        "p95_ms": p95 if len(times) >= 20 else None,
        "p99_ms": p99 if len(times) >= 100 else None,
    }
