"""A plain OpenVINO conversion of the same model, one post after another at its exact length.

In int8 it is what NNCF's post-training quantization makes of that conversion; what stays in float
runs in bfloat16, where the CPU has it.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.benchmarks.inputs import BLOCKS, ModelInput, ModelShape, Picture, pick
from amlr.benchmarks.peers.padding import hit_regions, padded_feed, padded_states, stack_pixels
from amlr.errors import ExportError
from amlr.runtime.batching import Scores

_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "bf16"}
Feeds = list[dict[str, Any]]


class OpenvinoPlainPeer:
    """`openvino.convert_model`, compiled for latency on the CPU."""

    def __init__(self, folder: Path, shape: ModelShape, threads: int, precision: str) -> None:
        import openvino

        self._core = openvino.Core()
        self._convert = openvino.convert_model
        self._folder, self._shape, self._precision = folder, shape, precision
        # Without the hint, "fp32" silently runs in bf16 on CPUs that have it.
        self._config = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
        }
        self._requests: dict[str, Any] = {}

    def _request(self, name: str, feeds: Feeds) -> Any:
        if name not in self._requests:
            path = self._folder / f"{name}.onnx"
            if self._precision == "int8":
                model = self._core.read_model(quantized(path, feeds))
            else:
                model = self._convert(str(path))
            compiled = self._core.compile_model(model, "CPU", self._config)
            self._requests[name] = compiled.create_infer_request()
        return self._requests[name]

    def encode(self, pixels_bchw: npt.NDArray[np.float32]) -> list[Any]:
        """Regions, from the image encoder alone."""
        feed = {"pixel_values": pixels_bchw}
        return list(np.array(next(iter(self._request("regions", [feed]).infer(feed).values()))))

    def prepare(self, inputs: Sequence[ModelInput], picture: Picture) -> Callable[[], Any]:
        """One feed a post."""
        feeds = [self._feed(item, picture) for item in inputs]
        if picture in ("cold", "hit"):
            hit = picture == "hit"
            seen = hit_regions(inputs, self.encode) if hit else stack_pixels(inputs)
            for feed, array in zip(feeds, seen, strict=True):
                feed["seen"] = array[None]
        request = self._request(picture, feeds)

        def call() -> Any:
            # The request's outputs are its own memory: copy before the next post overwrites them.
            return [[np.array(array) for array in request.infer(feed).values()] for feed in feeds]

        return call

    def _feed(self, item: ModelInput, picture: Picture) -> dict[str, Any]:
        if picture not in BLOCKS:
            return dict(padded_feed([item], self._shape))
        hidden, regions = padded_states([item], self._shape)
        return {"hidden": hidden} | ({"seen": regions} if picture == "block" else {})

    def scores(self, raw: Any, inputs: Sequence[ModelInput]) -> list[Scores]:
        """Pick the wanted units out of all of them."""
        return [
            pick(logits, emissions, [item], [0])[0]
            for (logits, emissions), item in zip(raw, inputs, strict=True)
        ]

    def close(self) -> None:
        """Drop the compiled models."""
        self._requests.clear()


def quantized(path: Path, feeds: Feeds) -> Path:
    """Quantize an export on the posts given, unless that was done before.

    In a process of its own: the tool's memory is not that of serving.

    Returns:
        The quantized model, beside the export.

    Raises:
        ExportError: The tool failed.
    """
    target = path.with_suffix(".int8.xml")
    if target.exists():
        return target
    arrays = {f"{i}:{name}": array for i, feed in enumerate(feeds) for name, array in feed.items()}
    kept = path.with_suffix(".npz")
    np.savez(kept, allow_pickle=False, **arrays)
    done = subprocess.run(
        [sys.executable, "-m", "amlr.benchmarks.peers.quantize_plain", path, kept, target],
        # Its name for "send no statistics".
        env=os.environ | {"NNCF_CI": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    kept.unlink()
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise ExportError(f"NNCF could not quantize {path.name}: {lines[-1] if lines else '?'}")
    return target
