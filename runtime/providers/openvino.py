"""Provider `openvino`: the fastest on CPUs with bfloat16 or int8 instructions.

It reads the bundle's own ONNX graphs. Arithmetic is always asked for by name: without the hint
OpenVINO runs float32 graphs in bfloat16 wherever the CPU can.
"""

import tempfile
import threading
from pathlib import Path
from typing import Any

from amlr.errors import BackendUnavailableError, InputError
from amlr.kernels.arrays import Floats
from amlr.runtime.bundle import Bundle
from amlr.runtime.cpu import usable_cores
from amlr.runtime.manifest import Variant
from amlr.runtime.providers.base import ProviderOptions
from amlr.runtime.providers.by_graphs import ByGraphs
from amlr.runtime.providers.openvino_graph import CompiledGraph, read_graph, split_heads

TRANSFORMER_PICTURES = 4
_TAIL = "heads"


class OpenVinoProvider(ByGraphs):
    """Runs a variant's graphs; each is compiled when it is first needed."""

    name = "openvino"

    def __init__(self, bundle: Bundle, variant: Variant, options: ProviderOptions) -> None:
        """Check the library and the CPU; graphs compile later.

        Args:
            bundle: Verified for this variant.
            variant: Graphs to run, and what each computes in.
            options: `threads` for one call; what is left of the cores serves further calls at
                the same time. Compiled graphs are kept in `cache_dir`.

        Raises:
            BackendUnavailableError: openvino is not installed, or this CPU lacks what the variant
                computes in.
        """
        super().__init__(bundle, variant, round_up=bucket)
        self._core, self._cache_dir = _open_core(), options.cache_dir
        if self._cache_dir is not None:
            _require_writable(self._cache_dir)
        cores = usable_cores()
        threads = options.threads or cores
        streams = max(1, cores // threads)
        self._settings = {
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": threads * streams,
            # Pinning helps one process alone on the machine and hurts every other.
            "ENABLE_CPU_PINNING": False,
        }
        self._check_arithmetic()
        self._graphs: dict[str, CompiledGraph] = {}
        self._picture_batch = 1
        self._lock = threading.Lock()

    @property
    def loaded_graphs(self) -> tuple[str, ...]:
        """Graphs that are compiled."""
        return tuple(sorted(self._graphs))

    def arithmetic(self, graph: str) -> str:
        """What the float part of a graph is computed in, `f32` or `bf16`, asked of the library."""
        return self._graph(graph).arithmetic

    def encode_images(self, pixels_bchw: Floats) -> list[Floats]:
        """Regions of each picture, shape (P, D)."""
        graph = self._graph("image")
        regions: list[Floats] = []
        while len(regions) < len(pixels_bchw):
            # Halves of the largest batch, so that few shapes are met.
            left = len(pixels_bchw) - len(regions)
            size = min(self._picture_batch, 1 << (left.bit_length() - 1))
            part = pixels_bchw[len(regions) : len(regions) + size]
            regions += list(graph.run({"pixel_values": part})["regions_bpd"])
        return regions

    def close(self) -> None:
        """Forget the compiled graphs."""
        with self._lock:
            self._graphs.clear()

    def _run(self, graph: str, feed: dict[str, Any]) -> dict[str, Floats]:
        return self._graph(graph).run(feed)

    def _fuse(self, graph: str, feed: dict[str, Any]) -> dict[str, Floats]:
        if self._hint(graph) == "f32":
            return self._run(graph, feed)
        found = feed | self._run(graph, feed)
        tail = self._graph(f"{graph}.{_TAIL}")
        return tail.run({name: found[name] for name in tail.inputs})

    def _hint(self, graph: str) -> str:
        return "bf16" if self._variant.compute.get(graph) == "bf16" else "f32"

    def _check_arithmetic(self) -> None:
        able = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if "BF16" not in able and any(
            self._hint(graph) == "bf16" for graph in self._variant.graphs
        ):
            raise BackendUnavailableError(
                f"this CPU has no bfloat16 instructions (only {', '.join(able)}), which the "
                f"{self.precision} variant needs to be fast; use another precision"
            )

    def _graph(self, graph: str) -> CompiledGraph:
        found = self._graphs.get(graph)
        if found is not None:
            return found
        with self._lock:
            if graph not in self._graphs:
                self._compile(graph.removesuffix(f".{_TAIL}"))
            return self._graphs[graph]

    def _compile(self, graph: str) -> None:
        path: Path = self._bundle.graph_path(self._variant, graph)
        hint = self._hint(graph)
        model = read_graph(self._core, path)
        if graph == "image":
            self._picture_batch = picture_batch(model)
        if hint == "bf16" and graph.startswith("fusion"):
            # LayerNorm and classifiers hold half of the bfloat16 error and none of the work.
            model, tail = split_heads(model)
            self._graphs[f"{graph}.{_TAIL}"] = self._compiled(tail, "f32")
        self._graphs[graph] = self._compiled(model, hint)

    def _compiled(self, model: Any, hint: str) -> CompiledGraph:
        settings = {**self._settings, "INFERENCE_PRECISION_HINT": hint}
        if self._cache_dir is not None:
            # The library's key leaves the hint out: one folder would give bf16 the code of f32,
            # which writes beyond its memory.
            settings["CACHE_DIR"] = str(self._cache_dir / f"openvino-{hint}")
        return CompiledGraph(self._core.compile_model(model, "CPU", settings))


def picture_batch(model: Any) -> int:
    """Pictures that a graph is given at a time.

    Convolutions gain nothing from a batch. Transformers do in bfloat16, as their products are
    wider: ViT-B/16 a sixth to a quarter with four pictures on a CPU with AMX, no more with eight.
    """
    has_attention = any(op.get_type_name() == "Softmax" for op in model.get_ordered_ops())
    return TRANSFORMER_PICTURES if has_attention else 1


def bucket(count: int) -> int:
    """Round a size up to a multiple of eight, so that few different shapes reach the library.

    OpenVINO makes code for every new number of rows; in low precision a first visit can cost
    as much as the run itself.

    Example:
        >>> [bucket(n) for n in (0, 8, 9)]
        [8, 8, 16]
    """
    return -(-max(count, 1) // 8) * 8


def _require_writable(folder: Path) -> None:
    """Refuse a folder in which the library would fail later, with a message of its own.

    Raises:
        InputError: It cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"compiled graphs cannot be kept in {folder}: {error.strerror}; choose another "
            "cache_dir (--cache-dir), or none"
        ) from error


def _open_core() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise BackendUnavailableError(
            f"openvino cannot be imported ({error}); install it with: pip install openvino"
        ) from error
    return openvino.Core()
