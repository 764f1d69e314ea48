"""The cross-modal block for devices: one product for the parts of all windows, then a gather.

A window of k steps is a sum over its positions, `u = sum_j hidden[t + j] W[k, j] + b[k]`. So every
step is multiplied once with all the W[k, j] beside each other, and a chosen unit is the sum of at
most K rows of the result. The float graph makes all units first, with a copy of the hidden states
for every position of every scale.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto

from amlr.export.fused.reader import Attention, Linear, Norm, Reader
from amlr.export.fused.writer import BATCH, SLOTS, STEPS, UNITS, Writer
from amlr.kernels.arrays import Floats, Ints


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fusion:
    """What a graph `fusion` is made of.

    Attributes:
        maps: Linear map of each scale from 2 upwards.
        attention: From units to regions, with or without maps of the regions.
        constant: (D,) what a unit takes where there is no picture.
        norm: Of a unit and what it took.
        classify: Unit logits.
        emit: Emissions.
        regions: P, of one picture.
        width: D.
    """

    maps: tuple[Linear, ...]
    attention: Attention
    constant: Floats
    norm: Norm
    classify: Linear
    emit: Linear
    regions: int
    width: int

    @property
    def scales(self) -> int:
        """K, the longest window."""
        return len(self.maps) + 1


def read_fusion(graph: Reader) -> Fusion:
    """Recognise the padded fusion graph, folded or not, regions not centred.

    Raises:
        ExportError: It is built differently.
    """
    classify, emit = graph.linear("unit_logits_bsc"), graph.linear("emissions_bty")
    if classify is None or emit is None:
        raise graph.refuse("it has not two heads")
    norm = graph.norm(classify.source)
    units, attention, constant = _taken(graph, norm)
    gather = graph.maker(attention.keys_from, "Gather")
    if attention.mask is not None or gather is None or gather.input[0] != "pool_npd":
        raise graph.refuse("its attention does not read chosen pictures of the pool")
    if not graph.same(units, attention.query.source) or not graph.same(emit.source, "hidden_btd"):
        raise graph.refuse("its heads do not read units and hidden states")
    shape = graph.inputs["pool_npd"].type.tensor_type.shape.dim
    return Fusion(
        maps=_maps(graph, units), attention=attention, constant=constant, norm=norm,
        classify=classify, emit=emit, regions=int(shape[1].dim_value),
        width=int(shape[2].dim_value),
    )  # fmt: skip


def _taken(graph: Reader, norm: Norm) -> tuple[str, Attention, Floats]:
    """The units under the norm, their attention, and what they take where there is no picture."""
    total = graph.maker(norm.source, "Add")
    for units, taken in () if total is None else (total.input, total.input[::-1]):
        choice = graph.maker(graph.before(taken), "Where")
        output = None if choice is None else graph.linear(choice.input[1])
        constant = None if choice is None else graph.constant(choice.input[2])
        if output is not None and constant is not None:
            return units, graph.attention(output), constant.ravel()
    raise graph.refuse("no choice between a picture's context and the constant")


def _maps(graph: Reader, units: str) -> tuple[Linear, ...]:
    """Maps of windows of 2, 3, ... steps under the gathered units."""
    gathered = graph.maker(graph.before(units), "GatherElements")
    joined: NodeProto | None = None
    if gathered is not None:
        joined = graph.maker(gathered.input[0], "Concat")
        if joined is None and gathered.input[0] == "hidden_btd":
            return ()
    if joined is None or joined.input[0] != "hidden_btd":
        raise graph.refuse("its units are built differently")
    maps = []
    for k, name in enumerate(joined.input[1:], start=2):
        linear = graph.linear(name)
        window = None if linear is None else graph.maker(graph.before(linear.source), "Concat")
        if linear is None or window is None or len(window.input) != k:
            raise graph.refuse(f"its windows of {k} steps are built differently")
        maps.append(linear)
    return tuple(maps)


# Writing ---------------------------------------------------------------------------------------


def write_fusion(out: Writer, fusion: Fusion, hidden: str, most_steps: int) -> None:
    """Write everything behind the hidden states; declares the further inputs and the outputs.

    Args:
        out: The graph.
        fusion: What to write.
        hidden: (batch, steps, D) in the graph's arithmetic.
        most_steps: Longest window of text that the graph takes.
    """
    units = _chosen_units(out, fusion, hidden, most_steps)
    taken = _context(out, fusion, units)
    z, _ = out.skip_norm(taken, units, fusion.norm, "cross.norm", keep=False)
    logits = out.linear(z, fusion.classify, "span_head")
    out.output(logits, "unit_logits_bsc", [BATCH, UNITS, fusion.classify.bias.size])
    emissions = out.linear(hidden, fusion.emit, "token_head")
    out.output(emissions, "emissions_bty", [BATCH, STEPS, fusion.emit.bias.size])


def _chosen_units(out: Writer, fusion: Fusion, hidden: str, most_steps: int) -> str:
    """Units (batch, units, D) that `unit_index_bs` asks for."""
    scales, width = fusion.scales, fusion.width
    slots = scales * (scales + 1) // 2 + 1
    index = out.input("unit_index_bs", [BATCH, UNITS])
    parts = out.compute("MatMul", [hidden, out.weight("windows", _windows(fusion))])
    parts = out.op("Reshape", [parts, out.ints(-1, width)])
    steps = out.op("Shape", [hidden], start=1, end=2)
    places = out.constant("places", grid_places(scales, most_steps))
    start = _first_place(out, steps, scales)
    end = _first_place(out, out.op("Add", [steps, out.ints(1)]), scales)
    places = out.op("Slice", [places, start, end, out.ints(0)])
    grid = out.op("Gather", [places, index])
    rows = out.op("Gather", [out.constant("rows", part_rows(scales, most_steps)), grid], axis=1)
    rows = out.op("Add", [rows, _post_starts(out, hidden, steps, slots)])
    chosen = out.op("Gather", [parts, rows])
    units = out.compute("ReduceSum", [chosen, out.ints(0)], keepdims=0)
    scale = out.op("Div", [grid, out.constant("most_steps", np.array(most_steps, np.int32))])
    biases = np.stack([np.zeros(width, np.float32), *(each.bias for each in fusion.maps)])
    bias = out.op("Gather", [out.weight("windows.bias", biases), scale])
    return out.compute("Add", [units, bias])


def _windows(fusion: Fusion) -> Floats:
    """(D, slots * D): scale 1 as it is, W[k, j] for k = 2..K and j < k, and zeros."""
    width = fusion.width
    parts = [np.eye(width, dtype=np.float32)]
    for linear in fusion.maps:
        parts += np.split(linear.weight, linear.weight.shape[0] // width)
    return np.concatenate([*parts, np.zeros((width, width), np.float32)], axis=1)


def grid_places(scales: int, most_steps: int) -> npt.NDArray[np.int32]:
    """For T = K, K + 1, ...: `(scale - 1) * most_steps + start` of each of T steps' units.

    The lists stand one after another; that of T begins at `first_place(T)`.
    """
    return np.concatenate(
        [
            scale * most_steps + np.arange(steps - scale, dtype=np.int32)
            for steps in range(scales, most_steps + 1)
            for scale in range(scales)
        ]
    ).astype(np.int32)


def first_place(steps: int, scales: int) -> int:
    """Where the list of `steps` steps begins: K t - K (K - 1) / 2 entries for each t before."""
    return scales * (steps - scales) * steps // 2


def _first_place(out: Writer, steps: str, scales: int) -> str:
    """`first_place` of a tensor of one element, computed on the CPU."""
    more = out.op("Mul", [out.op("Add", [steps, out.ints(-scales)]), out.ints(scales)])
    return out.op("Div", [out.op("Mul", [more, steps]), out.ints(2)])


def part_rows(scales: int, most_steps: int) -> Ints:
    """(K, K * most_steps): rows of a post's parts that add up to each unit of the grid."""
    slots = scales * (scales + 1) // 2 + 1
    start = np.arange(most_steps)
    rows = np.full((scales, scales, most_steps), slots - 1) + start * slots
    for scale in range(scales):
        for position in range(scale + 1):
            slot = scale * (scale + 1) // 2 + position
            rows[position, scale] = (start + position) * slots + slot
    return rows.reshape(scales, -1).astype(np.int64)


def _post_starts(out: Writer, hidden: str, steps: str, slots: int) -> str:
    """(batch, 1): row where each post's parts begin."""
    batch = out.op("Shape", [hidden], start=0, end=1)
    stride = out.op("Mul", [steps, out.ints(slots)])
    end = out.op("Mul", [stride, batch])
    scalars = [out.op("Squeeze", [name]) for name in (end, stride)]
    return out.op("Unsqueeze", [out.op("Range", [out.zero(), *scalars]), out.ints(1)])


def _context(out: Writer, fusion: Fusion, units: str) -> str:
    """What each unit takes from its post's picture, (batch, units, D)."""
    attention, width = fusion.attention, fusion.width
    pool = out.input("pool_npd", [SLOTS, fusion.regions, width], TensorProto.FLOAT)
    slot = out.input("slot_b", [BATCH])
    zero = out.zero()
    # Chosen before they are rounded: a device's pool holds many more pictures than a batch shows.
    regions = out.enter(out.op("Gather", [pool, out.op("Max", [slot, zero])]))
    query = out.product(units, attention.query, "cross.query")
    inner = attention.query.weight.shape[1]
    if attention.key is None or attention.value is None:
        # Folded: each head is one more query of the full width.
        query = out.op("Reshape", [query, out.ints(0, -1, width)])
        inputs, heads = [query, regions, regions], 1
    else:
        key = out.product(regions, attention.key, "cross.key")
        value = out.product(regions, attention.value, "cross.value")
        inputs, heads = [query, key, value], attention.heads
    options = {"num_heads": heads, "scale": attention.scale}
    mixed = out.compute("MultiHeadAttention", inputs, **options)
    mixed = out.op("Reshape", [mixed, out.ints(0, -1, inner)])
    taken = out.product(mixed, attention.output, "cross.output")
    seen = out.op("GreaterOrEqual", [slot, zero])
    seen = out.op("Unsqueeze", [seen, out.ints(1, 2)])
    return out.op("Where", [seen, taken, out.weight("cross.constant", fusion.constant)])
