"""Modules to ONNX files that share one file of weights."""

import hashlib
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from onnx import TensorProto

from amlr.errors import ExportError

if TYPE_CHECKING:  # the weights file is also written where torch is not installed
    from amlr.export.graphs import GraphSpec

# The newest opset that onnxruntime, OpenVINO and the TensorRT parsers all take from the
# TorchScript exporter; LayerNormalization is one node from here on.
OPSET = 17
WEIGHTS_FILE = "weights.bin"
# Weights start on a page so that a runtime can map them instead of copying.
PAGE_BYTES = 4096
# Smaller tensors stay inside the graph: shape inference needs their values.
INLINE_BYTES = 1024


def trace(spec: "GraphSpec") -> onnx.ModelProto:
    """Export one module and check the graph.

    Raises:
        ExportError: The exporter or the ONNX checker refused; names the graph.
    """
    try:
        model = _export(spec)
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        onnx.checker.check_model(model, full_check=model.ByteSize() < 2**31 - 1)
    except Exception as error:
        raise ExportError(f"graph {spec.name!r} could not be exported: {error}") from error
    dropped = set(spec.inputs) - {i.name for i in model.graph.input}
    if dropped:
        raise ExportError(f"graph {spec.name!r} lost its inputs {sorted(dropped)} in tracing")
    return model


def _export(spec: "GraphSpec") -> onnx.ModelProto:
    import torch

    with (
        tempfile.TemporaryDirectory() as folder,
        warnings.catch_warnings(),
        torch.no_grad(),
    ):
        # The exporter announces its own retirement and every traced shape as warnings.
        warnings.simplefilter("ignore")
        path = Path(folder) / f"{spec.name}.onnx"
        torch.onnx.export(
            spec.module.eval(),
            tuple(spec.inputs.values()),
            path,
            input_names=list(spec.inputs),
            output_names=list(spec.outputs),
            dynamic_axes={name: dict(axes) for name, axes in spec.axes.items()},
            opset_version=OPSET,
            dynamo=False,
        )
        return onnx.load_model(str(path))


class SharedWeights:
    """Writes large tensors of several graphs into one file, each distinct tensor once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")
        self._offsets: dict[tuple[str, int], int] = {}

    def externalise(self, model: onnx.ModelProto) -> None:
        """Move the model's large initializers out, in place."""
        for tensor in model.graph.initializer:
            raw = tensor.raw_data
            if len(raw) < INLINE_BYTES:
                continue
            offset = self._place(raw)
            del tensor.external_data[:]
            for key, value in (
                ("location", self._path.name),
                ("offset", str(offset)),
                ("length", str(len(raw))),
            ):
                tensor.external_data.add(key=key, value=value)
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL

    def _place(self, raw: bytes) -> int:
        key = (hashlib.sha256(raw).hexdigest(), len(raw))
        if key not in self._offsets:
            start = self._file.tell()
            start += -start % PAGE_BYTES if len(raw) >= PAGE_BYTES else -start % 64
            self._file.seek(start)
            self._file.write(raw)
            self._offsets[key] = start
        return self._offsets[key]

    def close(self) -> None:
        """Finish the file."""
        self._file.close()


def write_graphs(specs: Iterable["GraphSpec"], folder: Path) -> dict[str, Path]:
    """Export graphs into a folder with one shared weights file.

    Args:
        specs: The graphs; traced one after another to keep memory low.
        folder: Must exist.

    Returns:
        File of each graph by name.

    Raises:
        ExportError: One of them could not be exported or checked.
    """
    weights = SharedWeights(folder / WEIGHTS_FILE)
    files: dict[str, Path] = {}
    try:
        for spec in specs:
            model = trace(spec)
            weights.externalise(model)
            path = folder / f"{spec.name}.onnx"
            path.write_bytes(model.SerializeToString(deterministic=True))
            files[spec.name] = path
    finally:
        weights.close()
    for name, path in files.items():
        try:
            onnx.checker.check_model(str(path))
        except onnx.checker.ValidationError as error:
            raise ExportError(f"graph {name!r} is not valid with its weights: {error}") from error
    return files
