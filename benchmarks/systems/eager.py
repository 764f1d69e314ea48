"""The model in PyTorch: as published, at exact lengths, in bf16, compiled; and as one graph."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from amlr.benchmarks.systems.base import (
    BLOCKS,
    RESEARCH_STEPS,
    Floats,
    ModelInput,
    Peer,
    Picture,
    padded_feed,
    padded_states,
    padded_text,
)
from amlr.export.graphs import GraphSpec
from amlr.runtime.batching import Scores
from amlr.runtime.manifest import Manifest
from amlr.training.model import AmlrModel, Units

# What the published code is given for each kind of picture: pixels, or regions.
_RESEARCH: dict[Picture, Picture] = {
    "cold": "cold", "hit": "cold", "none": "hit", "block": "block", "block-none": "block"
}  # fmt: skip


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


class PlainModel(nn.Module):
    """The model as one would write it down: every unit of every start of a padded batch.

    Each post has a picture of its own, or none has one. Tensors come in the order of `padded_feed`
    for a kind of picture, which says what they are.
    """

    def __init__(self, model: AmlrModel, picture: Picture) -> None:
        super().__init__()
        self.model, self.picture = model, picture

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Score all units: the last tensor is what is seen, those before it are words.

        Seen are pixels (B, 3, H, W) of a `cold` picture, and regions (B, P, D) of a `hit` or in a
        `block`, whose words are hidden states (B, T, D).
        """
        model, words = self.model, tensors
        seen: Tensor | None = None
        if self.picture in ("cold", "hit", "block"):
            words, seen = tensors[:-1], tensors[-1]
        hidden = words[0] if self.picture in BLOCKS else model.text(*words)
        units = model.units(hidden)
        if seen is None:
            attended = model.cross.constant().expand_as(units)
        else:
            regions = model.image(seen) if self.picture == "cold" else seen
            attended = model.cross.attend(units, regions)
        return model.classify(units, attended), model.token_head(hidden)


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
                module=PlainModel(model, picture),
                inputs=feed,
                outputs=tuple(outputs),
                axes={n: {0: "B"} if n == "seen" else {0: "B", 1: "T"} for n in feed} | outputs,
            )
            for picture, feed in feeds.items()
        ),
    ]


class TorchPeer(Peer):
    """Gives pairs of tensors."""

    def scores(self, raw: Any, inputs: Sequence[ModelInput]) -> list[Scores]:
        """Pick the wanted units out of all of them."""
        arrays = [[tensor.float().numpy() for tensor in pair] for pair in raw]
        return super().scores(arrays, inputs)


class ResearchPeer(TorchPeer):
    """The released form: padded to the paper's length, all units as convolutions, plain attention.

    Its loader knows neither a cache of pictures nor a post without one. A `hit` therefore costs
    what a cold picture costs; without a picture, attention still runs, over the learned region
    repeated to the usual number of regions, but the image encoder is left out in its favour.
    """

    def __init__(self, model: AmlrModel, manifest: Manifest) -> None:
        """Take over a model."""
        model.units = ConvUnits(model.units)  # type: ignore[assignment]
        self._model, self._manifest = model.eval(), manifest

    def encode(self, pixels_bchw: Floats) -> list[Any]:
        """The pixels: the published code keeps nothing else."""
        return list(pixels_bchw)

    def prepare(self, inputs: Sequence[ModelInput], picture: Picture) -> Callable[[], Any]:
        """Tensors as the data loader hands them over."""
        manifest = self._manifest
        if picture in BLOCKS:
            hidden, seen = padded_states(inputs, manifest, steps=RESEARCH_STEPS)
            words: list[Any] = [hidden]
        else:
            words = [*padded_text(inputs, manifest, steps=RESEARCH_STEPS).values()]
        if picture in ("cold", "hit"):
            pixels = [i.pixels_chw if i.regions is None else i.regions for i in inputs]
            seen = np.stack([array for array in pixels if array is not None])
        elif picture != "block":
            no_image = self._model.cross.no_image.detach()
            seen = no_image.expand(len(inputs), manifest.regions, -1).contiguous().numpy()
        plain = PlainModel(self._model, _RESEARCH[picture])
        tensors = [torch.from_numpy(array) for array in (*words, seen)]
        return lambda: [_infer(plain, *tensors)]


class EagerPeer(TorchPeer):
    """The same modules on unpadded posts, one after another (`exact`), or on one padded batch.

    With `autocast`, matrix products run in bf16 as `torch.autocast` chooses.
    """

    def __init__(
        self, model: AmlrModel, manifest: Manifest, *, exact: bool, autocast: bool = False
    ) -> None:
        self._model, self._manifest = model.eval(), manifest
        self._exact, self._autocast = exact, autocast

    def encode(self, pixels_bchw: Floats) -> list[Any]:
        """Regions (P, D) in float32."""
        return list(_infer(self._model.image, torch.from_numpy(pixels_bchw)).numpy())

    def prepare(self, inputs: Sequence[ModelInput], picture: Picture) -> Callable[[], Any]:
        """One feed a post, or one for all."""
        groups = [[item] for item in inputs] if self._exact else [list(inputs)]
        feeds = [self._feed(group, picture) for group in groups]
        plain = PlainModel(self._model, picture)

        def call() -> Any:
            with torch.autocast("cpu", torch.bfloat16, enabled=self._autocast):
                return [_infer(plain, *feed.values()) for feed in feeds]

        return call

    def _feed(self, inputs: Sequence[ModelInput], picture: Picture) -> dict[str, Tensor]:
        return _tensors(padded_feed(inputs, self._manifest, picture, self.encode))


class CompiledPeer(EagerPeer):
    """`torch.compile` in the form that is fast on CPU: symbolic shapes and frozen weights.

    Static shapes would compile anew for every length, and send float32 products to MKL; a symbolic
    batch sends them to oneDNN. One compiled model a kind of picture.
    """

    def __init__(self, model: AmlrModel, manifest: Manifest) -> None:
        import torch._inductor.config as inductor

        super().__init__(model, manifest, exact=False)
        inductor.freezing = True
        self._compiled: dict[tuple[Picture, bool], Any] = {}

    def prepare(self, inputs: Sequence[ModelInput], picture: Picture) -> Callable[[], Any]:
        """Mark batch and length as dynamic; the first call compiles."""
        single = len(inputs) == 1
        feed = self._feed(inputs, picture)
        for name, tensor in feed.items():
            if not single:
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
            if name != "seen":
                torch._dynamo.maybe_mark_dynamic(tensor, 1)
        # A batch of one is a specialisation of its own: a symbolic size is taken to be at least 2.
        key = (picture, single)
        if key not in self._compiled:
            plain = PlainModel(self._model, picture)
            self._compiled[key] = torch.compile(plain, dynamic=True)
        compiled = self._compiled[key]

        def call() -> Any:
            with torch.no_grad():
                return [compiled(*feed.values())]

        return call


def _infer(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    with torch.inference_mode():
        return function(*arguments, **named)


def _tensors(feed: dict[str, Any]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in feed.items()}
