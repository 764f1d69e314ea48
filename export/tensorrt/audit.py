"""Audit of precision: what every layer of the parsed network computes in.

A build that was asked for float16 and silently made a float32 engine is the usual failure of FP16
exports. The network's tensors carry their types, so the claim is checked before building, layer by
layer, against the islands the conversion declared.
"""

import json
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from amlr.errors import ExportError
from amlr.runtime.tensorrt_library import TensorRT

# Layers that only hold a float32 constant or change a type compute nothing in float32.
_ONNX = re.compile(r"\[ONNX Layer: (.+?)\]")
_PASSIVE = {"CONSTANT", "CAST", "SHAPE", "IDENTITY", "SHUFFLE"}
# A kernel in the text of a TensorRT-RTX plan, and what all kernels of whole attentions are called.
_KERNEL = re.compile(rb"function=\{ name=(\w+) ")
_ATTENTION = "mha"


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What a network computes in.

    Attributes:
        graph: Graph name.
        layers: Number of layers.
        dtypes: Layers by the type of their first output.
        float32: ONNX nodes whose layers compute in float32.
        outputs: Type of each network output.
        types: Layers by kind.
        fused_attentions: How many attentions the plan runs as one kernel each; None where it
            cannot be told, and before the plan is built.
    """

    graph: str
    layers: int
    dtypes: dict[str, int]
    float32: tuple[str, ...]
    outputs: dict[str, str]
    types: dict[str, int]
    fused_attentions: int | None = None

    @property
    def attentions(self) -> int:
        """How many attentions the network has."""
        return self.types.get("SOFTMAX", 0)

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for the manifest; kinds of layers by falling count."""
        values = {**asdict(self), "attentions": self.attentions}
        del values["graph"]
        return values


def audit_network(graph: str, network: Any) -> Audit:
    """Walk a parsed network."""
    dtypes: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    float32: list[str] = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        kind = _name(layer.type)
        kinds[kind] += 1
        if not layer.num_outputs or layer.get_output(0) is None:
            continue
        dtype = _name(layer.get_output(0).dtype)
        dtypes[dtype] += 1
        if dtype == "FLOAT" and kind not in _PASSIVE:
            float32.append(_origin(layer))
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    return Audit(
        graph=graph,
        layers=network.num_layers,
        dtypes=dict(dtypes.most_common()),
        float32=tuple(dict.fromkeys(float32)),
        outputs={tensor.name: _name(tensor.dtype) for tensor in outputs},
        types=dict(kinds.most_common()),
    )


def require_precision(audit: Audit, precision: str, islands: Collection[str]) -> None:
    """Fail where the network is not what was asked for.

    Args:
        audit: Of the parsed network.
        precision: `fp16` or `fp32`.
        islands: Node names that may compute in float32.

    Raises:
        ExportError: An output is not float32, a layer meant to be half is float32, or a float32
            graph holds half layers; names them.
    """
    wrong = {name: kind for name, kind in audit.outputs.items() if kind != "FLOAT"}
    if wrong:
        raise ExportError(
            f"graph {audit.graph!r}: outputs must be float32, found {wrong}; export it again"
        )
    half = audit.dtypes.get("HALF", 0)
    if precision == "fp32":
        if half:
            raise ExportError(
                f"graph {audit.graph!r} is meant to be float32 and has {half} float16 layers"
            )
        return
    if not half:
        raise ExportError(
            f"graph {audit.graph!r} was asked for in {precision}, but no layer of its network "
            "computes in float16; export the variant again with: amlr-export --precision fp16"
        )
    stray = [name for name in audit.float32 if name not in islands]
    if stray:
        raise ExportError(
            f"graph {audit.graph!r}: {len(stray)} layers meant to be float16 are float32, first "
            f"{stray[0]!r}; declare them as islands or export the variant again"
        )


def fused_attentions(library: TensorRT, data: bytes, profiles: int) -> int | None:
    """Count the attentions that a plan runs as one kernel each.

    Enterprise TensorRT's engine inspector tells, on the device that the plan was built on. A plan
    of TensorRT-RTX loads on no other machine than its user's, but holds its kernels' names as text.

    Args:
        library: What built the plan.
        data: The plan, with detailed layers.
        profiles: Its optimization profiles.

    Returns:
        The number in one profile, or None where nothing tells.
    """
    if library.is_rtx:
        kernels = [name.decode() for name in _KERNEL.findall(data)]
        return sum(_ATTENTION in name for name in kernels) // profiles if kernels else None
    runtime = library.api.Runtime(library.logger())
    # Version-compatible plans bring host code.
    runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        return None
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(library.api.LayerInformationFormat.JSON)
    layers = [layer for layer in json.loads(text)["Layers"] if isinstance(layer, dict)]
    # Layers of further profiles carry their number.
    names = [each["Name"] for each in layers if "[profile " not in each["Name"]]
    return sum(_ATTENTION in name for name in names) if names else None


def _origin(layer: Any) -> str:
    """The ONNX node a layer was made of; the parser writes it into the layer's metadata."""
    found = _ONNX.search(str(getattr(layer, "metadata", "")))
    return found.group(1) if found else str(layer.name)


def _name(value: Any) -> str:
    """Name of an enum member of either family's bindings."""
    return str(getattr(value, "name", value)).rpartition(".")[2]
