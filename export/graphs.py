"""The graphs of a bundle: which modules they are, their inputs, outputs and dynamic axes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from amlr.export.fusion_graph import (
    AttentionMap,
    Block,
    ClosedFusion,
    PackedFusion,
    PaddedFusion,
    fold_pays,
)
from amlr.export.text_graph import PackedText, PaddedText, PlainText, can_pack
from amlr.training.model import AmlrModel

Axes = Mapping[str, Mapping[int, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSpec:
    """One graph to export.

    Attributes:
        name: File stem in the bundle.
        module: The module to trace, in eval mode.
        inputs: Example tensors by input name, in the module's order.
        outputs: Output names.
        axes: Dynamic axes by input or output name.
    """

    name: str
    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    axes: Axes


def regions_of(model: AmlrModel, image_size: int) -> int:
    """P: how many regions the image encoder gives for one square picture of `image_size`."""
    with torch.no_grad():
        return int(model.image(torch.zeros(1, 3, image_size, image_size)).shape[1])


def build_graphs(
    model: AmlrModel, *, image_size: int, fold: bool | None = None, centre: bool = False
) -> list[GraphSpec]:
    """Rewrite a model as the graphs of a bundle.

    Args:
        model: The eager model, in eval mode.
        image_size: Side of the picture in pixels.
        fold: Fold the attention's maps per head; None decides by `fold_pays`.
        centre: Centre regions before the attention (for low precision).

    Returns:
        `text`, `text_packed` where the encoder can be packed, `image`, `fusion`,
        `fusion_packed`, `fusion_closed`, `attention`.
    """
    config = model.config
    regions = regions_of(model, image_size)
    if fold is None:
        fold = fold_pays(config.width, config.heads, config.head_width, regions)
    block = Block(model, fold=fold, centre=centre).eval()
    pool = torch.randn(2, regions, config.width)
    image = GraphSpec(
        name="image",
        module=model.image,
        inputs={"pixel_values": torch.randn(2, 3, image_size, image_size)},
        outputs=("regions_bpd",),
        axes={"pixel_values": {0: "B"}, "regions_bpd": {0: "B"}},
    )
    return [*_text_graphs(model), image, _padded_fusion(block, pool), *_packed_fusion(block, pool)]


def _text_graphs(model: AmlrModel) -> list[GraphSpec]:
    packable = can_pack(model.text)
    ids = torch.tensor([[2, 3, 4, 5, 6, 7, 8], [2, 3, 4, 5, 0, 0, 0]])
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    padded = {"input_ids": ids, "attention_mask": mask}
    axes: dict[str, dict[int, str]] = {n: {0: "B", 1: "T"} for n in (*padded, "hidden_btd")}
    if model.text.shapes is not None:
        padded["shape_ids"] = torch.zeros_like(ids)
        axes["shape_ids"] = {0: "B", 1: "T"}
    graphs = [
        GraphSpec(
            name="text",
            module=PaddedText(model.text) if packable else PlainText(model.text),
            inputs=padded,
            outputs=("hidden_btd",),
            axes=axes,
        )
    ]
    if packable:
        graphs.append(_packed_text(model, ids, mask))
    return graphs


def _packed_text(model: AmlrModel, ids: Tensor, mask: Tensor) -> GraphSpec:
    real = mask.reshape(-1).nonzero()[:, 0]
    packed = {
        "input_ids": ids.reshape(-1)[real],
        "position_ids": real % mask.shape[1],
        "pad_index": (mask.reshape(-1).cumsum(0) - 1).reshape(mask.shape),
        "unpad_index": real,
        "attention_mask": mask,
    }
    axes = {n: {0: "N"} for n in ("input_ids", "position_ids", "unpad_index", "hidden_nd")}
    axes |= {n: {0: "B", 1: "T"} for n in ("pad_index", "attention_mask")}
    if model.text.shapes is not None:
        packed["shape_ids"] = torch.zeros_like(packed["input_ids"])
        axes["shape_ids"] = {0: "N"}
    return GraphSpec(
        name="text_packed",
        module=PackedText(model.text),
        inputs=packed,
        outputs=("hidden_nd",),
        axes=axes,
    )


def _padded_fusion(block: Block, pool: Tensor) -> GraphSpec:
    scales = block.model.config.scales
    steps = scales + 3
    return GraphSpec(
        name="fusion",
        module=PaddedFusion(block),
        inputs={
            "hidden_btd": torch.randn(2, steps, pool.shape[-1]),
            "unit_index_bs": torch.tensor([[0, 1, 2, 3, steps], [4, 5, 6, 7, steps + 1]]),
            "pool_npd": pool,
            "slot_b": torch.tensor([1, -1]),
        },
        outputs=("unit_logits_bsc", "emissions_bty"),
        axes={
            "hidden_btd": {0: "B", 1: "T"},
            "unit_index_bs": {0: "B", 1: "S"},
            "pool_npd": {0: "N"},
            "slot_b": {0: "B"},
            "unit_logits_bsc": {0: "B", 1: "S"},
            "emissions_bty": {0: "B", 1: "T"},
        },
    )


def _packed_fusion(block: Block, pool: Tensor) -> list[GraphSpec]:
    scales = block.model.config.scales
    rows = {
        f"rows_{k}": torch.arange(2)[:, None] + torch.arange(k)[None] for k in range(1, scales + 1)
    }
    units = 2 * scales
    attended = units - 1  # the example has one unit without a picture
    inputs = {
        "hidden_nd": torch.randn(scales + 3, pool.shape[-1]),
        **rows,
        "attend_rows_r": torch.arange(attended),
        "attend_pad_is": torch.stack([torch.arange(units // 2), torch.arange(units // 2) + 1]),
        "attend_unpad_r": torch.arange(attended),
        "pool_npd": pool,
        "slot_i": torch.tensor([0, 1]),
        "context_index_m": torch.arange(units),
    }
    axes: dict[str, dict[int, str]] = {"hidden_nd": {0: "N"}}
    axes |= {name: {0: f"n{k}"} for k, name in enumerate(rows, start=1)}
    axes |= {
        "attend_rows_r": {0: "R"},
        "attend_pad_is": {0: "I", 1: "S"},
        "attend_unpad_r": {0: "R"},
        "pool_npd": {0: "Np"},
        "slot_i": {0: "I"},
        "context_index_m": {0: "M"},
    }
    fusion = GraphSpec(
        name="fusion_packed",
        module=PackedFusion(block),
        inputs=inputs,
        outputs=("unit_logits_mc", "emissions_ny"),
        axes={**axes, "unit_logits_mc": {0: "M"}, "emissions_ny": {0: "N"}},
    )
    closed_inputs = ("hidden_nd", *rows)
    closed = replace(
        fusion,
        name="fusion_closed",
        module=ClosedFusion(block),
        inputs={n: inputs[n] for n in closed_inputs},
        axes={n: fusion.axes[n] for n in (*closed_inputs, *fusion.outputs)},
    )
    kept = [n for n in inputs if n not in ("attend_unpad_r", "context_index_m")]
    attention = GraphSpec(
        name="attention",
        module=AttentionMap(block),
        inputs={n: inputs[n] for n in kept},
        outputs=("attention_isp",),
        axes={**{n: axes[n] for n in kept}, "attention_isp": {0: "I", 1: "S"}},
    )
    return [fusion, closed, attention]
