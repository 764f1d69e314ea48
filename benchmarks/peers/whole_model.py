"""The plain model as one graph: what a user exports or compiles without further thought."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from amlr.benchmarks.inputs import ModelShape, Picture
from amlr.export.graphs import GraphSpec
from amlr.training.model import AmlrModel

OUTPUTS = ("unit_logits", "emissions")


class WholeModel(nn.Module):
    """Padded batch in, all units and emissions out; each post with its own picture, or none.

    `picture` decides the last input: pixels for `cold`, the image encoder's regions for `hit`
    (a service that caches them), nothing for `none`.
    """

    def __init__(self, model: AmlrModel, picture: Picture) -> None:
        super().__init__()
        self.model, self.picture = model, picture

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        shape_ids: Tensor | None = None,
        seen: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Score all units: `seen` is pixels (B, 3, H, W) or regions (B, P, D)."""
        model = self.model
        hidden = model.text(input_ids, attention_mask, shape_ids)
        units = model.units(hidden)
        if seen is None:
            taken = model.cross.constant().expand_as(units)
        else:
            regions = model.image(seen) if self.picture == "cold" else seen
            taken = model.cross.attend(units, regions)
        return model.classify(units, taken), model.token_head(hidden)


class BlockModel(nn.Module):
    """The cross-modal block and both heads alone, plainly: every unit of every start."""

    def __init__(self, model: AmlrModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, hidden: Tensor, seen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Score all units of hidden states (B, T, D) with regions (B, P, D), or without."""
        model = self.model
        units = model.units(hidden)
        if seen is None:
            taken = model.cross.constant().expand_as(units)
        else:
            taken = model.cross.attend(units, seen)
        return model.classify(units, taken), model.token_head(hidden)


class Positional(nn.Module):
    """A model whose inputs are all positional, in the order of `names` (for exporters)."""

    def __init__(self, whole: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.whole, self.names = whole, tuple(names)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Score all units."""
        outputs: tuple[Tensor, Tensor] = self.whole(**dict(zip(self.names, tensors, strict=True)))
        return outputs


def whole_graphs(model: AmlrModel, shape: ModelShape) -> list[GraphSpec]:
    """One-graph exports for `cold`, `hit` and `none`, and `regions`, which fills a `hit`'s cache.

    They can share one file of weights.
    """
    ids = torch.tensor([[2, 3, 4, 5, 6, 7, 8, 9], [2, 3, 4, 5, 6, 7, 0, 0]])
    feed: dict[str, Tensor] = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    if shape.shapes:
        feed["shape_ids"] = torch.zeros_like(ids)
    pixels = torch.zeros(2, 3, shape.image_size, shape.image_size)
    with torch.no_grad():
        regions = model.image(pixels)
    seen: Mapping[Picture, dict[str, Tensor]] = {
        "cold": {"seen": pixels},
        "hit": {"seen": regions},
        "none": {},
    }
    graphs = [
        GraphSpec(
            name="regions",
            module=model.image,
            inputs={"pixel_values": pixels},
            outputs=("regions_bpd",),
            axes={"pixel_values": {0: "B"}, "regions_bpd": {0: "B"}},
        )
    ]
    for picture, extra in seen.items():
        tensors = feed | extra
        axes = {name: {0: "B", 1: "T"} for name in feed} | {name: {0: "B"} for name in extra}
        graphs.append(
            GraphSpec(
                name=picture,
                module=Positional(WholeModel(model, picture), list(tensors)),
                inputs=tensors,
                outputs=OUTPUTS,
                axes=axes | {"unit_logits": {0: "B", 1: "U"}, "emissions": {0: "B", 1: "T"}},
            )
        )
    hidden = torch.randn(2, 8, model.config.width)
    return [*graphs, *_block_graphs(model, hidden, regions)]


def _block_graphs(model: AmlrModel, hidden: Tensor, regions: Tensor) -> list[GraphSpec]:
    feeds = {"block": {"hidden": hidden, "seen": regions}, "block-none": {"hidden": hidden}}
    return [
        GraphSpec(
            name=name,
            module=Positional(BlockModel(model), list(feed)),
            inputs=feed,
            outputs=OUTPUTS,
            axes={
                "hidden": {0: "B", 1: "T"},
                **({"seen": {0: "B"}} if "seen" in feed else {}),
                "unit_logits": {0: "B", 1: "U"},
                "emissions": {0: "B", 1: "T"},
            },
        )
        for name, feed in feeds.items()
    ]
