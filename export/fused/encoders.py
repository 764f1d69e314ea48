"""Text encoders and vision transformers with about seven operators a layer.

Both keep their batch in (B, T, D) from end to end, so there is no shape arithmetic: one Slice by
the number of steps, whose bounds onnxruntime computes on the CPU and passes by value.
"""

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from amlr.export.fused.reader import Attention, Linear, Norm, Reader, attributes
from amlr.export.fused.writer import BATCH, MASKED, STEPS, Arithmetic, Mask, Writer
from amlr.kernels.arrays import Floats

# What the CUDA provider's memory-efficient attention wants of a head's width.
_HEAD_MULTIPLE = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layer:
    """One encoder layer; `first` is the norm before (ViT) or after (BERT) the attention."""

    attention: Attention
    first: Norm
    inner: Linear
    outer: Linear
    second: Norm

    @property
    def qkv(self) -> tuple[Linear, Linear, Linear]:
        """The maps of a self-attention."""
        assert self.attention.key is not None
        assert self.attention.value is not None
        return self.attention.query, self.attention.key, self.attention.value


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TextEncoder:
    """What a graph `text` is made of.

    Attributes:
        words: (vocabulary, D).
        positions: (most steps, D), token type and everything else constant included.
        shapes: (classes, D) word shapes, or None.
        norm: Of the embeddings.
        layers: Norms after each block.
        distances: (2 R - 1, heads) bias by key minus query position, or None.
        project: Last linear map, or None.
        width: Of the hidden states.
    """

    words: Floats
    positions: Floats
    shapes: Floats | None
    norm: Norm
    layers: tuple[Layer, ...]
    distances: Floats | None
    project: Linear | None
    width: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VisionTransformer:
    """What a graph `image` of a vision transformer is made of.

    Attributes:
        patches: (3 * side * side, D) map of one patch, its bias included.
        size: Of the picture.
        side: Of a patch.
        start: (P, D) added to the patches: class token, positions.
        layers: Norms before each block.
        norm: The last.
        project: Last linear map, or None.
    """

    patches: Linear
    size: int
    side: int
    start: Floats
    layers: tuple[Layer, ...]
    norm: Norm
    project: Linear | None

    @property
    def width(self) -> int:
        """D of the regions."""
        return int(self.start.shape[1] if self.project is None else self.project.bias.size)


# Reading ---------------------------------------------------------------------------------------


def read_text(graph: Reader) -> TextEncoder:
    """Recognise a BERT-like encoder.

    Raises:
        ExportError: It is built differently.
    """
    project, stream = _project(graph, "hidden_btd")
    norm = graph.norm(stream)
    layers: list[Layer] = []
    for _ in range(graph.attentions):
        outer, middle = graph.residual(norm.source)
        first, inner = graph.norm(middle), graph.mlp(outer)
        output, stream = graph.residual(first.source)
        attention = _self_attention(graph, output)
        if not (graph.same(inner.source, middle) and graph.same(attention.query.source, stream)):
            raise graph.refuse("a layer adds its result to another tensor")
        layers.insert(
            0, Layer(attention=attention, first=first, inner=inner, outer=outer, second=norm)
        )
        norm = graph.norm(stream)
    words, positions, shapes = _embeddings(graph, norm.source)
    return TextEncoder(
        words=words, positions=positions, shapes=shapes, norm=norm, layers=tuple(layers),
        distances=_distances(graph, layers), project=project,
        width=words.shape[1] if project is None else project.weight.shape[1],
    )  # fmt: skip


def _project(graph: Reader, output: str) -> tuple[Linear | None, str]:
    """The last map of a graph, if it has one, and what its last layer makes."""
    project = graph.linear(output)
    return project, output if project is None else project.source


def _self_attention(graph: Reader, output: Linear) -> Attention:
    attention = graph.attention(output)
    if attention.key is None or not graph.same(attention.query.source, attention.keys_from):
        raise graph.refuse(f"an attention does not read {attention.keys_from!r} three times")
    return attention


def _embeddings(graph: Reader, total: str) -> tuple[Floats, Floats, Floats | None]:
    """Tables of words, positions and word shapes whose sum is `total`."""
    tables: dict[str, Floats] = {}
    constant: Floats | None = None
    pending = [total]
    while pending:
        name = pending.pop()
        value, node = graph.constant(name), graph.maker(name, "Add", "Gather")
        if value is not None:
            constant = value if constant is None else constant + value
        elif node is not None and node.op_type == "Add":
            pending += node.input
        else:
            table = None if node is None else graph.constant(node.input[0])
            if node is None or table is None or table.ndim != 2:
                raise graph.refuse(f"embedding {name!r} is no table")
            kind, offset = _index(graph, node.input[1])
            if kind in tables:
                raise graph.refuse(f"two embeddings read {kind!r}")
            tables[kind] = table[offset:]
    shapes = tables.pop("shape_ids", None)
    if set(tables) != {"input_ids", "positions"}:
        raise graph.refuse(f"its embeddings are {sorted(tables)}")
    positions = tables["positions"]
    positions = positions if constant is None else (positions + constant).astype(np.float32)
    return tables["input_ids"], positions, shapes


def _index(graph: Reader, name: str) -> tuple[str, int]:
    """Which input an embedding's index is, or `positions`, and the number added to it."""
    parts = graph.combined(name, "Add")
    if parts is not None and parts[1].size == 1:
        kind, offset = _index(graph, parts[0])
        return kind, offset + int(parts[1].item())
    name = graph.before(name)
    node = graph.maker(name, "Tile", "Expand", "Range")
    if node is not None and node.op_type != "Range":
        return _index(graph, node.input[0])
    start = None if node is None else graph.constant(node.input[0])
    if start is not None and not start.any():
        return "positions", 0
    if name in graph.inputs:
        return name, 0
    raise graph.refuse(f"index {name!r} is built differently")


def _distances(graph: Reader, layers: list[Layer]) -> Floats | None:
    """MPNet's table of biases by distance, or None; all layers must share their mask."""
    masks = {layer.attention.mask for layer in layers}
    pending, seen = [mask or "" for mask in masks], set[str]()
    tables: list[Floats] = []
    while pending:
        name = pending.pop()
        node = graph.maker(name)
        if node is not None and name not in seen:
            table = graph.constant(node.input[0]) if node.op_type == "Gather" else None
            if table is not None and table.ndim == 2:
                tables.append(table)
            pending += node.input
        seen.add(name)
    if len(masks) != 1 or len(tables) > 1 or "attention_mask" not in seen:
        raise graph.refuse("its mask is built differently")
    return tables[0] if tables else None


def read_vision(graph: Reader) -> VisionTransformer:
    """Recognise a vision transformer.

    Raises:
        ExportError: It is built differently, or no transformer at all.
    """
    if not graph.attentions:
        raise graph.refuse("it is no vision transformer")
    project, stream = _project(graph, "regions_bpd")
    norm = graph.norm(stream)
    layers: list[Layer] = []
    stream = norm.source
    for _ in range(graph.attentions):
        outer, middle = graph.residual(stream)
        inner = graph.mlp(outer)
        output, stream = graph.residual(middle)
        attention, second = _self_attention(graph, output), graph.norm(inner.source)
        first = graph.norm(attention.query.source)
        if not (graph.same(second.source, middle) and graph.same(first.source, stream)):
            raise graph.refuse("a layer adds its result to another tensor")
        layers.insert(
            0, Layer(attention=attention, first=first, inner=inner, outer=outer, second=second)
        )
    patches, side, start, size = _patches(graph, stream)
    return VisionTransformer(
        patches=patches, size=size, side=side, start=start, layers=tuple(layers), norm=norm,
        project=project,
    )  # fmt: skip


def _patches(graph: Reader, stream: str) -> tuple[Linear, int, Floats, int]:
    """Map of a patch, its side, what is added, and the picture's side."""
    wrong = graph.refuse("its patches are built differently")
    parts = graph.combined(stream, "Add")
    joined = None if parts is None else graph.maker(parts[0], "Concat")
    if parts is None or joined is None or len(joined.input) != 2:
        raise wrong
    expand = graph.maker(joined.input[0], "Expand")
    token = None if expand is None else graph.constant(expand.input[0])
    convolution = graph.maker(graph.before(joined.input[1]), "Conv")
    if token is None or convolution is None or convolution.input[0] != "pixel_values":
        raise wrong
    weight, options = graph.constant(convolution.input[1]), attributes(convolution)
    bias = graph.constant(convolution.input[2]) if len(convolution.input) > 2 else None
    if weight is None or weight.ndim != 4 or weight.shape[2] != weight.shape[3]:
        raise wrong
    width, side = int(weight.shape[0]), int(weight.shape[2])
    shape = graph.inputs["pixel_values"].type.tensor_type.shape.dim
    size = int(shape[2].dim_value)
    plain = list(options.get("strides", [])) == [side, side] and not any(options.get("pads", []))
    plain = plain and set(options.get("dilations", [1])) == {1} and options.get("group", 1) == 1
    start = parts[1].reshape(-1, width).copy()
    if not plain or size % side or start.shape[0] != (size // side) ** 2 + 1:
        raise wrong
    start[0] += token.reshape(width)
    linear = Linear(
        weight=weight.reshape(width, -1).T,
        bias=np.zeros(width, np.float32) if bias is None else bias,
    )
    start[1:] += linear.bias
    return linear, side, start, size


# Writing ---------------------------------------------------------------------------------------


def write_text(out: Writer, text: TextEncoder) -> str:
    """Hidden states (batch, steps, D) of new inputs `input_ids`, `attention_mask`, `shape_ids`."""
    ids = out.input("input_ids", [BATCH, STEPS])
    mask = _mask(out, text, out.input("attention_mask", [BATCH, STEPS]))
    x = out.op("Gather", [out.weight("words", text.words), ids])
    if text.shapes is not None:
        shapes = out.input("shape_ids", [BATCH, STEPS])
        x = out.compute("Add", [x, out.op("Gather", [out.weight("shapes", text.shapes), shapes])])
    steps = out.op("Shape", [ids], start=1, end=2)
    table = out.weight("positions", text.positions)
    # Sum, as the library would turn Add and the norm into a SkipLayerNormalization, which in
    # strict mode takes no stream that is broadcast.
    x = out.compute("Sum", [x, out.op("Slice", [table, out.ints(0), steps, out.ints(0)])])
    x = out.norm(x, text.norm, "embeddings")
    for number, layer in enumerate(text.layers):
        label = f"layer.{number}"
        attention = layer.attention
        mixed = out.self_attention(x, layer.qkv, attention.heads, f"{label}.qkv", mask)
        mixed = out.product(mixed, attention.output, f"{label}.output")
        bias = out.bias(attention.output, f"{label}.output")
        x, _ = out.skip_norm(mixed, x, layer.first, f"{label}.first", bias, keep=False)
        y = out.gelu(x, layer.inner, f"{label}.inner")
        y = out.product(y, layer.outer, f"{label}.outer")
        bias = out.bias(layer.outer, f"{label}.outer")
        x, _ = out.skip_norm(y, x, layer.second, f"{label}.second", bias, keep=False)
    return x if text.project is None else out.linear(x, text.project, "project")


def _mask(out: Writer, text: TextEncoder, attention_mask: str) -> Mask:
    """What the layers' attention takes.

    docs/explanation/onnxruntime-cuda.md says which kernel that selects.
    """
    if text.distances is not None or not out.takes_index:
        return _biased_mask(out, text.distances, attention_mask)
    width = text.words.shape[1] // text.layers[0].attention.heads
    if out.arithmetic is not Arithmetic.HALF or width % _HEAD_MULTIPLE:
        return Mask(index=out.op("Cast", [attention_mask], to=TensorProto.INT32))
    # Lengths, and where each post's queries and keys start: the only mask that the CUDA provider's
    # memory-efficient attention takes. A post of nothing but padding counts as one step.
    real = out.op("Cast", [attention_mask], to=TensorProto.FLOAT)
    counts = out.op("ReduceSum", [real, out.ints(1)], keepdims=0)
    lengths = out.op("Max", [counts, out.constant("one_step", np.ones(1, np.float32))])
    # T of each post, summed up: x to the power of 0 is 1 everywhere. A Range with bounds from the
    # host came out too short on a device, in this place and nowhere else.
    zero = out.constant("no_steps", np.zeros(1, np.float32))
    steps = out.op("ReduceSum", [out.op("Pow", [real, zero]), out.ints(1)], keepdims=0)
    ends = out.op("CumSum", [steps, out.constant("first_axis", np.array(0, np.int64))])
    index = out.op("Concat", [lengths, zero, ends, zero, ends], axis=0)
    return Mask(index=out.op("Cast", [index], to=TensorProto.INT32))


def _biased_mask(out: Writer, distances: Floats | None, attention_mask: str) -> Mask:
    """Bias by distance, if there is one, and the mask in one tensor, which every kernel takes."""
    padding = out.op("Cast", [attention_mask], to=out.kind)
    padding = out.op("Sub", [padding, out.weight("one", np.array(1, np.float32))])
    padding = out.op("Mul", [padding, out.weight("masked", np.array(-MASKED, np.float32))])
    padding = out.op("Unsqueeze", [padding, out.ints(1, 2)])
    if distances is None:
        return Mask(bias=padding)
    reach = (distances.shape[0] + 1) // 2
    by_query = np.arange(reach)[None, :] - np.arange(reach)[:, None] + reach - 1
    full = distances[by_query].transpose(2, 0, 1)[None]
    steps = out.op("Shape", [attention_mask], start=1, end=2)
    ends = out.op("Concat", [steps, steps], axis=0)
    bias = out.op("Slice", [out.weight("distances", full), out.ints(0, 0), ends, out.ints(2, 3)])
    return Mask(bias=out.compute("Add", [bias, padding]))


def write_vision(out: Writer, vision: VisionTransformer) -> str:
    """Regions (batch, P, D) of a new input `pixel_values`."""
    side, across = vision.side, vision.size // vision.side
    size = vision.size
    x = out.enter(out.input("pixel_values", [BATCH, 3, size, size], TensorProto.FLOAT))
    # Patches as rows: the convolution is one matrix product, and gives the layout wanted here.
    x = out.op("Reshape", [x, out.ints(-1, 3, across, side, across, side)])
    x = out.op("Transpose", [x], perm=[0, 2, 4, 1, 3, 5])
    x = out.op("Reshape", [x, out.ints(-1, across * across, 3 * side * side)])
    x = out.product(x, vision.patches, "image.patches")
    # A row of zeros in front, to which the class token is added.
    x = out.op("Pad", [x, out.ints(0, 1, 0, 0, 0, 0)])
    x = out.compute("Sum", [x, out.weight("image.start", vision.start)])
    y = out.norm(x, vision.layers[0].first, "image.layer.0.first")
    following = [*(layer.first for layer in vision.layers[1:]), vision.norm]
    for number, (layer, last) in enumerate(zip(vision.layers, following, strict=True)):
        label = f"image.layer.{number}"
        attention = layer.attention
        y = out.self_attention(y, layer.qkv, attention.heads, f"{label}.qkv", Mask())
        y = out.product(y, attention.output, f"{label}.output")
        bias = out.bias(attention.output, f"{label}.output")
        y, x = out.skip_norm(y, x, layer.second, f"{label}.second", bias, keep=True)
        y = out.gelu(y, layer.inner, f"{label}.inner")
        y = out.product(y, layer.outer, f"{label}.outer")
        bias = out.bias(layer.outer, f"{label}.outer")
        keep = number + 1 < len(vision.layers)
        y, x = out.skip_norm(y, x, last, f"image.layer.{number + 1}.first", bias, keep=keep)
    return y if vision.project is None else out.linear(y, vision.project, "image.project")
