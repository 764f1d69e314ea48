"""The two wide products of a transformer's MLP as several products of the model's width.

In bfloat16 on a CPU with AMX OpenVINO multiplies by weights of 768 x 768, which fit into a core's
cache, half as fast again as by those of 768 x 3072. A graph that is cut so lies beside the whole
one and reads its weights: rows straight from the file, columns through a Split at load.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import NodeProto, TensorProto, helper

from amlr.export.ladder.int8 import find_products
from amlr.export.precision.graph_tools import drop_unused, infer, is_flipped, prepare

# What may be computed between the two products: each value from one value of the wide tensor.
_POINTWISE = {"Add", "Div", "Erf", "Gelu", "Mul", "Pow", "Relu", "Sigmoid", "Sub", "Tanh"}
# Of a core, on the CPUs with AMX that this was measured on.
_CACHE_BYTES = 2 << 20
Constants = dict[str, TensorProto]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mlp:
    """A product to a multiple of the width, what is computed on it, and the product back."""

    first: NodeProto
    between: list[NodeProto]
    second: NodeProto
    pieces: int


def write_narrowed(source: Path) -> Path | None:
    """Write a float32 graph with its MLPs cut, beside it, where it has MLPs that gain by that.

    Returns:
        The new file; None where there is nothing to cut.
    """
    model = narrowed(onnx.load_model(str(source), load_external_data=False))
    if model is None:
        return None
    path = source.with_name(f"{source.stem}_narrow.onnx")
    path.write_bytes(model.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(path), full_check=True)
    return path


def narrowed(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """A float32 graph with its MLPs cut into pieces of the model's width.

    Each piece takes a block of the first product's columns and the same block of the second
    product's rows, so that the outputs of the pieces add up to that of the MLP.

    Args:
        model: The graph; values of its large weights are not read and may be outside.

    Returns:
        The graph with its shapes inferred; None where it has no MLP that gains by that.
    """
    model = prepare(model)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    mlps = list(_find_mlps(model, constants))
    if not mlps:
        return None
    dropped = {node.name for mlp in mlps for node in (mlp.first, *mlp.between)}
    rows: list[TensorProto] = []
    pieces = {mlp.second.name: _cut(mlp, constants, rows) for mlp in mlps}
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if node.name not in dropped:
            nodes += pieces.get(node.name, [NodeProto.FromString(node.SerializeToString())])
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(rows)
    return infer(drop_unused(model))


def _find_mlps(model: onnx.ModelProto, constants: Constants) -> Iterator[_Mlp]:
    products = {p.name for p in find_products(model) if len(constants[p.input[1]].dims) == 2}
    outputs = {value.name for value in model.graph.output}
    for first in model.graph.node:
        if first.name not in products:
            continue
        width, wide = _sizes(first, constants)
        if wide % width or not _pays(width, wide):
            continue
        between, others, made = [], [], {first.output[0]}
        for node in model.graph.node:
            if made.isdisjoint(node.input):
                continue
            beside = [constants.get(name) for name in node.input if name not in made]
            if node.op_type in _POINTWISE and all(_is_row(each, wide) for each in beside):
                between.append(node)
                made.add(node.output[0])
            else:
                others.append(node)
        if len(others) != 1 or others[0].name not in products or not made.isdisjoint(outputs):
            continue
        (second,) = others
        if second.input[0] in made and _sizes(second, constants) == (wide, width):
            yield _Mlp(first=first, between=between, second=second, pieces=wide // width)


def _pays(width: int, wide: int) -> bool:
    """Whether a piece of the weight fits into the cache in bfloat16, and the whole does not.

    Measured: a fifth faster at 768, less than a twentieth at 1,024, slower at 384.
    """
    return 2 * width * width < _CACHE_BYTES < 2 * width * wide


def _sizes(product: NodeProto, constants: Constants) -> tuple[int, int]:
    """How many columns a product of matrices reads and gives."""
    rows, columns = constants[product.input[1]].dims
    return (columns, rows) if is_flipped(product) else (rows, columns)


def _is_row(tensor: TensorProto | None, wide: int) -> bool:
    """Whether a tensor is a constant of one value, or of one value a column."""
    return tensor is not None and (not tensor.dims or tensor.dims[-1] in (1, wide))


def _rows(tensor: TensorProto, names: list[str]) -> Iterator[TensorProto]:
    """Equal blocks of the rows of a tensor outside: no runtime has to copy them."""
    about = {entry.key: entry.value for entry in tensor.external_data}
    size = int(about["length"]) // len(names)
    for place, name in enumerate(names):
        block = TensorProto(
            name=name, data_type=tensor.data_type, data_location=TensorProto.EXTERNAL
        )
        block.dims[:] = [tensor.dims[0] // len(names), *tensor.dims[1:]]
        offset = int(about["offset"]) + place * size
        for key, value in (about | {"offset": str(offset), "length": str(size)}).items():
            block.external_data.add(key=key, value=value)
        yield block


def _cut(mlp: _Mlp, constants: Constants, rows: list[TensorProto]) -> list[NodeProto]:
    """The nodes that take the place of an MLP; what they read of files is added to `rows`."""
    first, second = mlp.first, mlp.second
    axes = {
        first.input[1]: 0 if is_flipped(first) else 1,
        second.input[1]: 1 if is_flipped(second) else 0,
    }
    _, wide = _sizes(first, constants)
    for node in (first, *mlp.between):
        for name in node.input:
            if name in constants and name not in axes and constants[name].dims[-1:] == [wide]:
                axes[name] = len(constants[name].dims) - 1
    replaced = {*axes, *(node.output[0] for node in (first, *mlp.between, second))}

    def part(name: str, piece: int) -> str:
        return f"{first.name}:{name}:{piece}" if name in replaced else name

    nodes = []
    for name, axis in axes.items():
        names = [part(name, i) for i in range(mlp.pieces)]
        if axis == 0 and constants[name].data_location == TensorProto.EXTERNAL:
            rows += _rows(constants[name], names)
        else:
            label = f"{first.name}:{name}"
            nodes.append(helper.make_node("Split", [name], names, name=label, axis=axis))
    for i in range(mlp.pieces):
        for node in (first, *mlp.between, second):
            copy = NodeProto.FromString(node.SerializeToString())
            copy.name = f"{node.name}:{i}"
            # The last bias is added once.
            inputs = node.input[:2] if node is second and i else node.input
            copy.input[:] = [part(name, i) for name in inputs]
            copy.output[:] = [part(node.output[0], i)]
            nodes.append(copy)
    sums = [part(second.output[0], i) for i in range(mlp.pieces)]
    return [*nodes, helper.make_node("Sum", sums, second.output, name=second.name)]
