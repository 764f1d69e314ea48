"""The model in the forms that are measured in PyTorch, or exported as one graph."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from amlr.benchmarks.systems.base import BLOCKS, Picture
from amlr.export.graphs import GraphSpec
from amlr.runtime.manifest import Manifest
from amlr.training.model import AmlrModel, Units

OUTPUTS = ("unit_logits", "emissions")


class ConvUnits(nn.Module):
    """The published units: one Conv1d without padding per scale, the same weights as `Units`."""

    def __init__(self, units: Units) -> None:
        super().__init__()
        width = units.width
        self.convs = nn.ModuleList()
        for scale, linear in enumerate(units.maps, start=2):
            assert isinstance(linear, nn.Linear)
            weight = linear.weight.detach().view(width, scale, width).permute(0, 2, 1)
            conv = nn.Conv1d(width, width, scale)
            conv.load_state_dict({"weight": weight, "bias": linear.bias.detach()})
            self.convs.append(conv)

    def forward(self, hidden_btd: Tensor) -> Tensor:
        """All units (B, U, D), scale-major."""
        channels = hidden_btd.transpose(1, 2)
        longer = [conv(channels).transpose(1, 2) for conv in self.convs]
        return torch.cat([hidden_btd, *longer], dim=1)


class ResearchModel(nn.Module):
    """The released form: all units of a padded batch, plain attention, a picture for every post.

    Its loader knows neither a cache of pictures nor a post without one. A `hit` therefore costs
    what a cold picture costs; without a picture, attention still runs, over the learned region
    repeated to the usual number of regions, but the image encoder is left out in its favour.
    """

    def __init__(self, model: AmlrModel) -> None:
        super().__init__()
        self.model = model
        self.units = ConvUnits(model.units)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, seen: Tensor, shape_ids: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Score all units: `seen` is pixels (B, 3, H, W), or ready regions (B, P, D)."""
        hidden = self.model.text(input_ids, attention_mask, shape_ids)
        return self.score(hidden, self.model.image(seen) if seen.dim() == 4 else seen)

    def score(self, hidden: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
        """The block and the heads."""
        units = self.units(hidden)
        attended = self.model.cross.attend(units, regions)
        return self.model.classify(units, attended), self.model.token_head(hidden)


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
            attended = model.cross.constant().expand_as(units)
        else:
            attended = model.cross.attend(units, seen)
        return model.classify(units, attended), model.token_head(hidden)


class WholeModel(nn.Module):
    """Padded batch in, all units and emissions out; each post with its own picture, or none.

    `picture` decides the last input: pixels for `cold`, the image encoder's regions for `hit`
    (a service that caches them), nothing for `none`.
    """

    def __init__(self, model: AmlrModel, picture: Picture) -> None:
        super().__init__()
        self.block, self.picture = BlockModel(model), picture

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        shape_ids: Tensor | None = None,
        seen: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Score all units: `seen` is pixels (B, 3, H, W) or regions (B, P, D)."""
        model = self.block.model
        hidden = model.text(input_ids, attention_mask, shape_ids)
        regions = model.image(seen) if seen is not None and self.picture == "cold" else seen
        scores: tuple[Tensor, Tensor] = self.block(hidden, regions)
        return scores


def plain_model(model: AmlrModel, picture: Picture) -> nn.Module:
    """The module that takes `padded_feed` of the same kind of picture."""
    return BlockModel(model) if picture in BLOCKS else WholeModel(model, picture)


class Positional(nn.Module):
    """A model whose inputs are all positional, in the order of `names` (for exporters)."""

    def __init__(self, whole: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.whole, self.names = whole, tuple(names)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Score all units."""
        outputs: tuple[Tensor, Tensor] = self.whole(**dict(zip(self.names, tensors, strict=True)))
        return outputs


def plain_graphs(model: AmlrModel, manifest: Manifest) -> list[GraphSpec]:
    """One-graph exports for each kind of picture, and `regions`, which fills a `hit`'s cache.

    They can share one file of weights.
    """
    ids = torch.tensor([[2, 3, 4, 5, 6, 7, 8, 9], [2, 3, 4, 5, 6, 7, 0, 0]])
    text: dict[str, Tensor] = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    if manifest.shape_embedding:
        text["shape_ids"] = torch.zeros_like(ids)
    size = manifest.image.size
    pixels = torch.zeros(2, 3, size, size)
    with torch.no_grad():
        regions = model.image(pixels)
    hidden = torch.randn(2, 8, model.config.width)
    feeds: dict[Picture, dict[str, Tensor]] = {
        "cold": text | {"seen": pixels},
        "hit": text | {"seen": regions},
        "none": text,
        "block": {"hidden": hidden, "seen": regions},
        "block-none": {"hidden": hidden},
    }
    outputs = {"unit_logits": {0: "B", 1: "U"}, "emissions": {0: "B", 1: "T"}}
    return [
        GraphSpec(
            name="regions",
            module=model.image,
            inputs={"pixel_values": pixels},
            outputs=("regions_bpd",),
            axes={"pixel_values": {0: "B"}, "regions_bpd": {0: "B"}},
        ),
        *(
            GraphSpec(
                name=picture,
                module=Positional(plain_model(model, picture), list(feed)),
                inputs=feed,
                outputs=OUTPUTS,
                axes={n: {0: "B"} if n == "seen" else {0: "B", 1: "T"} for n in feed} | outputs,
            )
            for picture, feed in feeds.items()
        ),
    ]
