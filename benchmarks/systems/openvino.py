"""A plain OpenVINO conversion of the same model, one post after another at its exact length.

In int8 it is what NNCF's post-training quantization makes of that conversion; what stays in float
runs in bfloat16, where the CPU has it.
"""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from amlr.benchmarks.systems.base import (
    Floats,
    ModelInput,
    Peer,
    Picture,
    padded_feed,
)
from amlr.errors import ExportError
from amlr.runtime.manifest import Manifest

_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "bf16"}
Feeds = list[dict[str, Any]]


class OpenvinoPlainPeer(Peer):
    """`openvino.convert_model`, compiled for latency on the CPU."""

    def __init__(self, folder: Path, manifest: Manifest, threads: int, precision: str) -> None:
        import openvino

        self._core = openvino.Core()
        self._convert = openvino.convert_model
        self._folder, self._manifest, self._precision = folder, manifest, precision
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

    def encode(self, pixels_bchw: Floats) -> list[Any]:
        """Regions, from the image encoder alone."""
        feed = {"pixel_values": pixels_bchw}
        return list(np.array(next(iter(self._request("regions", [feed]).infer(feed).values()))))

    def prepare(self, inputs: Sequence[ModelInput], picture: Picture) -> Callable[[], Any]:
        """One feed a post."""
        feeds = [padded_feed([item], self._manifest, picture, self.encode) for item in inputs]
        request = self._request(picture, feeds)

        def call() -> Any:
            # The request's outputs are its own memory: copy before the next post overwrites them.
            return [[np.array(array) for array in request.infer(feed).values()] for feed in feeds]

        return call

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
        [sys.executable, "-m", "amlr.benchmarks.systems.openvino", path, kept, target],
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


def quantize_plain(source: Path, feeds: Path, target: Path) -> None:
    """Quantize an export on recorded inputs, as NNCF does it by default for transformers.

    `python -m amlr.benchmarks.systems.openvino MODEL.onnx FEEDS.npz OUT.xml` does this.
    """
    import openvino

    # It ships no types.
    nncf: Any = importlib.import_module("nncf")

    rows: dict[str, dict[str, np.ndarray]] = {}
    with np.load(feeds) as arrays:
        for key in arrays.files:
            number, _, name = key.partition(":")
            rows.setdefault(number, {})[name] = arrays[key]
    model = nncf.quantize(
        openvino.convert_model(str(source)),
        nncf.Dataset(list(rows.values())),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(rows),
    )
    # The weights first, the name that is looked for last.
    aside = target.with_name(f"partial-{target.name}")
    openvino.save_model(model, aside, compress_to_fp16=False)
    aside.with_suffix(".bin").replace(target.with_suffix(".bin"))
    aside.replace(target)


if __name__ == "__main__":
    quantize_plain(*map(Path, sys.argv[1:4]))
