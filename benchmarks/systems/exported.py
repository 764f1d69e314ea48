"""The one-graph export in onnxruntime and in OpenVINO, as one would run it plainly.

Exporter and quantizer run in processes of their own, so that nobody who is measured carries their
memory.
"""

import importlib
import os
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from amlr.benchmarks.process import Remote, RemoteError
from amlr.benchmarks.systems.base import Floats, ModelInput, Peer, Picture, padded_feed
from amlr.errors import ExportError
from amlr.runtime.bundle import Bundle
from amlr.runtime.manifest import Manifest

_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "bf16"}
Feed = dict[str, Any]
Run = Callable[[Feed], list[Any]]


class _ExportedPeer(Peer):
    """Reads the exports, each opened when it is first needed."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder, self._manifest = folder, manifest
        self._opened: dict[str, Run] = {}

    @abstractmethod
    def _open(self, path: Path, feeds: list[Feed]) -> Run:
        """Open an export that will be run on such feeds."""

    def _runner(self, name: str, feeds: list[Feed]) -> Run:
        if name not in self._opened:
            self._opened[name] = self._open(self._folder / f"{name}.onnx", feeds)
        return self._opened[name]

    def encode(self, pixels_bchw: Floats) -> list[Any]:
        """Regions, from the image encoder alone."""
        feed = {"pixel_values": pixels_bchw}
        return list(self._runner("regions", [feed])(feed)[0])

    def _feed(self, inputs: Sequence[ModelInput], picture: Picture) -> Feed:
        return padded_feed(inputs, self._manifest, picture, self.encode)


class OnnxPlainPeer(_ExportedPeer):
    """onnxruntime, padded to the longest post of the batch; default options but for the threads."""

    def __init__(self, folder: Path, manifest: Manifest, threads: int) -> None:
        import onnxruntime

        super().__init__(folder, manifest)
        self._library: Any = onnxruntime
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = threads
        self._options.inter_op_num_threads = 1
        self._options.log_severity_level = 3

    def _open(self, path: Path, feeds: list[Feed]) -> Run:
        session = self._library.InferenceSession(
            str(path), self._options, providers=["CPUExecutionProvider"]
        )
        return lambda feed: list(session.run(None, feed))

    def prepare(self, inputs: Sequence[ModelInput], picture: Picture) -> Callable[[], Any]:
        """One padded feed."""
        feed = self._feed(inputs, picture)
        run = self._runner(picture, [feed])
        return lambda: [run(feed)]


class OpenvinoPlainPeer(_ExportedPeer):
    """`openvino.convert_model`, compiled for latency, one post after another at its exact length.

    In int8 it is what NNCF's post-training quantization makes of that conversion; what stays in
    float runs in bfloat16, where the CPU has it.
    """

    def __init__(self, folder: Path, manifest: Manifest, threads: int, precision: str) -> None:
        import openvino

        super().__init__(folder, manifest)
        self._core = openvino.Core()
        self._convert = openvino.convert_model
        self._precision = precision
        # Without the hint, "fp32" silently runs in bf16 on CPUs that have it.
        self._config = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
        }

    def _open(self, path: Path, feeds: list[Feed]) -> Run:
        if self._precision == "int8":
            model = self._core.read_model(quantized(path, feeds))
        else:
            model = self._convert(str(path))
        request = self._core.compile_model(model, "CPU", self._config).create_infer_request()
        # The request's outputs are its own memory: copy before the next post overwrites them.
        return lambda feed: [np.array(array) for array in request.infer(feed).values()]

    def prepare(self, inputs: Sequence[ModelInput], picture: Picture) -> Callable[[], Any]:
        """One feed a post."""
        feeds = [self._feed([item], picture) for item in inputs]
        run = self._runner(picture, feeds)
        return lambda: [run(feed) for feed in feeds]


class Tools:
    """What makes models for these systems."""

    def export(self, bundle: Path, folder: Path) -> None:
        """Export the plain model of a bundle, unless a finished export of it is there."""
        done = folder / "done"
        if done.exists():
            return
        from amlr.benchmarks.systems.eager import plain_graphs
        from amlr.export.eager import load_reference
        from amlr.export.to_onnx import write_graphs

        folder.mkdir(parents=True, exist_ok=True)
        opened = Bundle.open(bundle)
        write_graphs(plain_graphs(load_reference(opened), opened.manifest), folder)
        done.touch()

    def quantize(self, source: Path, feeds: list[Feed], target: Path) -> None:
        """Quantize an export on recorded inputs, as NNCF does it by default for transformers."""
        import openvino

        # It ships no types.
        nncf: Any = importlib.import_module("nncf")

        model = nncf.quantize(
            openvino.convert_model(str(source)),
            nncf.Dataset(feeds),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(feeds),
        )
        # The weights first, the name that is looked for last.
        aside = target.with_name(f"partial-{target.name}")
        openvino.save_model(model, aside, compress_to_fp16=False)
        aside.with_suffix(".bin").replace(target.with_suffix(".bin"))
        aside.replace(target)


def quantized(path: Path, feeds: list[Feed]) -> Path:
    """The quantized model, beside the export; made on these feeds, unless it is there.

    Raises:
        ExportError: The tool failed.
    """
    target = path.with_suffix(".int8.xml")
    if not target.exists():
        # Its name for "send no statistics".
        environment = os.environ | {"NNCF_CI": "1"}
        try:
            with Remote(Tools, environment, is_inner=True) as tools:
                tools.call("quantize", path, feeds, target)
        except RemoteError as error:
            raise ExportError(f"NNCF could not quantize {path.name}: {error}") from error
    return target
