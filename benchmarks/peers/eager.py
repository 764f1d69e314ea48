"""PyTorch as it is: the published form, exact lengths, and bf16 autocast."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from amlr.benchmarks.inputs import BLOCKS, ModelInput, ModelShape, Picture, pick
from amlr.benchmarks.peers.base import RESEARCH_STEPS
from amlr.benchmarks.peers.padding import (
    hit_regions,
    padded_feed,
    padded_states,
    stack_pixels,
)
from amlr.benchmarks.peers.whole_model import BlockModel, WholeModel
from amlr.runtime.batching import Scores
from amlr.training.model import AmlrModel, Units

Floats = npt.NDArray[np.float32]


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
        model = self.model
        hidden = model.text(input_ids, attention_mask, shape_ids)
        return self.score(hidden, model.image(seen) if seen.dim() == 4 else seen)

    def score(self, hidden: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
        """The block and the heads."""
        model = self.model
        units = self.units(hidden)
        taken = model.cross.attend(units, regions)
        return model.classify(units, taken), model.token_head(hidden)


class ResearchPeer:
    """Padded to the paper's length, the batch as the loader gives it."""

    def __init__(self, model: AmlrModel, shape: ModelShape) -> None:
        self._model = ResearchModel(model).eval()
        self._shape = shape

    def encode(self, pixels_bchw: Floats) -> list[Any]:
        """The pixels: the published code keeps nothing else."""
        return list(pixels_bchw)

    def prepare(self, inputs: Sequence[ModelInput], picture: Picture) -> Callable[[], Any]:
        """Tensors as the data loader hands them over."""
        if picture in BLOCKS:
            return self._block(inputs, picture)
        feed = padded_feed(inputs, self._shape, steps=RESEARCH_STEPS)
        tensors = {name: torch.from_numpy(array) for name, array in feed.items()}
        tensors.setdefault("shape_ids", None)  # type: ignore[arg-type]
        if picture == "none":
            seen = self._empty(len(inputs))
        else:
            pixels = [i.pixels_chw if i.regions is None else i.regions for i in inputs]
            seen = torch.from_numpy(np.stack([array for array in pixels if array is not None]))

        def call() -> Any:
            with torch.inference_mode():
                return self._model(seen=seen, **tensors)

        return call

    def _empty(self, posts: int) -> Tensor:
        empty = self._model.model.cross.no_image.detach()
        return empty.expand(posts, self._shape.regions, -1).contiguous()

    def _block(self, inputs: Sequence[ModelInput], picture: Picture) -> Callable[[], Any]:
        hidden, regions = padded_states(inputs, self._shape, steps=RESEARCH_STEPS)
        states = torch.from_numpy(hidden)
        seen = torch.from_numpy(regions) if picture == "block" else self._empty(len(inputs))

        def call() -> Any:
            with torch.inference_mode():
                return self._model.score(states, seen)

        return call

    def scores(self, raw: Any, inputs: Sequence[ModelInput]) -> list[Scores]:
        """Pick the wanted units out of all of them."""
        return pick(raw[0].numpy(), raw[1].numpy(), inputs, range(len(inputs)))

    def close(self) -> None:
        """Nothing to free."""


class EagerPeer:
    """The same modules on unpadded posts, one after another (`exact`), or on one padded batch.

    With `autocast`, matrix products run in bf16 as `torch.autocast` chooses.
    """

    def __init__(
        self, model: AmlrModel, shape: ModelShape, *, exact: bool, autocast: bool = False
    ) -> None:
        self._model, self._shape = model.eval(), shape
        self._exact, self._autocast = exact, autocast

    def encode(self, pixels_bchw: Floats) -> list[Any]:
        """Regions in float32."""
        return encode_eager(self._model, pixels_bchw)

    def prepare(self, inputs: Sequence[ModelInput], picture: Picture) -> Callable[[], Any]:
        """One feed a post, or one for all."""
        groups = [[item] for item in inputs] if self._exact else [list(inputs)]
        feeds = [eager_feed(self._model, group, self._shape, picture) for group in groups]
        whole = eager_model(self._model, picture)

        def call() -> Any:
            with (
                torch.inference_mode(),
                torch.autocast("cpu", torch.bfloat16, enabled=self._autocast),
            ):
                return [whole(**feed) for feed in feeds]

        return call

    def scores(self, raw: Any, inputs: Sequence[ModelInput]) -> list[Scores]:
        """Pick the wanted units out of all of them."""
        return collect(raw, inputs, exact=self._exact)

    def close(self) -> None:
        """Nothing to free."""


def eager_feed(
    model: AmlrModel, inputs: Sequence[ModelInput], shape: ModelShape, picture: Picture
) -> dict[str, Tensor]:
    """Arguments of `WholeModel` for one padded batch."""
    if picture in BLOCKS:
        hidden, regions = map(torch.from_numpy, padded_states(inputs, shape))
        return {"hidden": hidden, "seen": regions} if picture == "block" else {"hidden": hidden}
    feed = {name: torch.from_numpy(a) for name, a in padded_feed(inputs, shape).items()}
    if picture == "cold":
        feed["seen"] = torch.from_numpy(stack_pixels(inputs))
    elif picture == "hit":
        kept = hit_regions(inputs, lambda pixels: encode_eager(model, pixels))
        feed["seen"] = torch.from_numpy(np.stack(kept))
    return feed


def eager_model(model: AmlrModel, picture: Picture) -> nn.Module:
    """The module that takes `eager_feed`."""
    return BlockModel(model) if picture in BLOCKS else WholeModel(model, picture)


def encode_eager(model: AmlrModel, pixels_bchw: Floats) -> list[Floats]:
    """Regions (P, D) of pictures."""
    with torch.inference_mode():
        regions: Floats = model.image(torch.from_numpy(pixels_bchw)).numpy()
    return list(regions)


def collect(raw: Any, inputs: Sequence[ModelInput], *, exact: bool) -> list[Scores]:
    """Scores out of (logits, emissions) pairs: one a post, or one for all."""
    arrays = [(logits.float().numpy(), emissions.float().numpy()) for logits, emissions in raw]
    if not exact:
        return pick(*arrays[0], inputs, range(len(inputs)))
    return [
        pick(logits, emissions, [item], [0])[0]
        for (logits, emissions), item in zip(arrays, inputs, strict=True)
    ]
