"""Modules to ONNX files that share one file of weights."""

import hashlib
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
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
    """Export one module and check the graph; its weights are in memory, of any size.

    Raises:
        ExportError: The exporter or the ONNX checker refused; names the graph.
    """
    with tempfile.TemporaryDirectory() as folder:
        return onnx.load_model(str(write_graphs([spec], Path(folder))[spec.name]))


def _export(spec: "GraphSpec", folder: Path) -> onnx.ModelProto:
    """Run PyTorch's exporter; where the weights exceed 2 GB, it puts them beside the graph."""
    import torch

    with warnings.catch_warnings(), torch.no_grad():
        # The exporter announces its own retirement and every traced shape as warnings.
        warnings.simplefilter("ignore")
        # A string: of a Path the exporter does not take the folder, which large weights need.
        path = str(folder / f"{spec.name}.onnx")
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
    return onnx.load_model(path, load_external_data=False)


class SharedWeights:
    """Writes large tensors of several graphs into one file, each distinct tensor once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")
        self._offsets: dict[tuple[str, int], int] = {}

    def externalise(self, model: onnx.ModelProto, folder: Path | None = None) -> None:
        """Move the model's large initializers out, in place.

        Args:
            model: The graph.
            folder: Where weights lie that are outside of the graph already.
        """
        for tensor in model.graph.initializer:
            raw = _raw_bytes(tensor, folder)
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
        self._file.flush()

    def _place(self, raw: "bytes | memoryview") -> int:
        key = (hashlib.sha256(raw).hexdigest(), len(raw))
        if key not in self._offsets:
            start = self._file.tell()
            start += -start % PAGE_BYTES if len(raw) >= PAGE_BYTES else -start % 64
            self._file.seek(start)
            self._file.write(raw)
            self._offsets[key] = start
        return self._offsets[key]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def _raw_bytes(tensor: TensorProto, folder: Path | None) -> "bytes | memoryview":
    """Content of a tensor; mapped, not read, where it lies in a file of its own."""
    if tensor.data_location != TensorProto.EXTERNAL or folder is None:
        inside: bytes = tensor.raw_data
        return inside
    about = {entry.key: entry.value for entry in tensor.external_data}
    start = int(about.get("offset", 0))
    length = int(about["length"]) if "length" in about else None
    return np.memmap(folder / about["location"], np.uint8, "r", start, length).data


def write_graphs(specs: Iterable["GraphSpec"], folder: Path) -> dict[str, Path]:
    """Export graphs into a folder with one shared weights file.

    No graph is ever held or passed on together with its weights: protobuf ends at 2 GB.

    Args:
        specs: The graphs; traced one after another to keep memory low.
        folder: Must exist.

    Returns:
        File of each graph by name.

    Raises:
        ExportError: One of them could not be exported or checked; names the graph.
    """
    files: dict[str, Path] = {}
    with SharedWeights(folder / WEIGHTS_FILE) as weights:
        for spec in specs:
            files[spec.name] = folder / f"{spec.name}.onnx"
            try:
                inputs = _write_graph(spec, files[spec.name], weights)
            except Exception as error:
                raise ExportError(f"graph {spec.name!r} could not be exported: {error}") from error
            dropped = set(spec.inputs) - inputs
            if dropped:
                raise ExportError(
                    f"graph {spec.name!r} lost its inputs {sorted(dropped)} in tracing"
                )
    return files


def _write_graph(spec: "GraphSpec", path: Path, weights: SharedWeights) -> set[str]:
    """Write one graph, infer its shapes and check it; returns the names of its inputs."""
    # Beside the graph: large weights may not fit into the system's folder of temporary files.
    with tempfile.TemporaryDirectory(dir=path.parent) as aside:
        model = _export(spec, Path(aside))
        weights.externalise(model, Path(aside))
    path.write_bytes(model.SerializeToString(deterministic=True))
    onnx.shape_inference.infer_shapes_path(str(path), strict_mode=True, data_prop=True)
    onnx.checker.check_model(str(path), full_check=True)
    return {value.name for value in model.graph.input}


def write_models(models: Iterable[tuple[str, onnx.ModelProto]], folder: Path) -> dict[str, Path]:
    """Write graphs that are in memory, with one shared file of weights.

    Args:
        models: Name and graph, one after another; not changed.
        folder: Made where it is absent.

    Returns:
        File of each graph by name.

    Raises:
        ExportError: A written graph does not check; names it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Path] = {}
    with SharedWeights(folder / WEIGHTS_FILE) as weights:
        for name, graph in models:
            model = onnx.ModelProto()
            model.CopyFrom(graph)
            weights.externalise(model)
            files[name] = folder / f"{name}.onnx"
            files[name].write_bytes(model.SerializeToString(deterministic=True))
    for name, path in files.items():
        try:
            onnx.checker.check_model(str(path))
        except onnx.checker.ValidationError as error:
            raise ExportError(f"graph {name!r} is not valid: {error}") from error
    return files
