"""PyTorch: the published form, exact lengths, bf16 autocast, and `torch.compile`."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

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
from amlr.benchmarks.systems.torch_models import ResearchModel, plain_model
from amlr.runtime.batching import Scores
from amlr.runtime.manifest import Manifest
from amlr.training.model import AmlrModel


class ResearchPeer(Peer):
    """Padded to the paper's length, the batch as the loader gives it."""

    def __init__(self, model: AmlrModel, manifest: Manifest) -> None:
        self._model = ResearchModel(model).eval()
        self._manifest = manifest

    def encode(self, pixels_bchw: Floats) -> list[Any]:
        """The pixels: the published code keeps nothing else."""
        return list(pixels_bchw)

    def prepare(self, inputs: Sequence[ModelInput], picture: Picture) -> Callable[[], Any]:
        """Tensors as the data loader hands them over."""
        if picture in BLOCKS:
            hidden, regions = padded_states(inputs, self._manifest, steps=RESEARCH_STEPS)
            states = torch.from_numpy(hidden)
            seen = torch.from_numpy(regions) if picture == "block" else self._empty(len(inputs))
            return lambda: _infer(self._model.score, states, seen)
        feed = padded_text(inputs, self._manifest, steps=RESEARCH_STEPS)
        tensors: dict[str, Tensor | None] = {"shape_ids": None, **_tensors(feed)}
        if picture == "none":
            tensors["seen"] = self._empty(len(inputs))
        else:
            pixels = [i.pixels_chw if i.regions is None else i.regions for i in inputs]
            stacked = np.stack([array for array in pixels if array is not None])
            tensors["seen"] = torch.from_numpy(stacked)
        return lambda: _infer(self._model, **tensors)

    def _empty(self, posts: int) -> Tensor:
        empty = self._model.model.cross.no_image.detach()
        return empty.expand(posts, self._manifest.regions, -1).contiguous()

    def scores(self, raw: Any, inputs: Sequence[ModelInput]) -> list[Scores]:
        """Pick the wanted units out of all of them."""
        return super().scores(_arrays(raw), inputs)


class EagerPeer(Peer):
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
        whole = plain_model(self._model, picture)

        def call() -> Any:
            with torch.autocast("cpu", torch.bfloat16, enabled=self._autocast):
                return [_infer(whole, **feed) for feed in feeds]

        return call

    def _feed(self, inputs: Sequence[ModelInput], picture: Picture) -> dict[str, Tensor]:
        return _tensors(padded_feed(inputs, self._manifest, picture, self.encode))

    def scores(self, raw: Any, inputs: Sequence[ModelInput]) -> list[Scores]:
        """Pick the wanted units out of all of them."""
        arrays = [_arrays(pair) for pair in raw]
        return super().scores(arrays if self._exact else arrays[0], inputs)


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
            whole = plain_model(self._model, picture)
            self._compiled[key] = torch.compile(whole, dynamic=True)
        compiled = self._compiled[key]

        def call() -> Any:
            with torch.no_grad():
                return [compiled(**feed)]

        return call


def _infer(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    with torch.inference_mode():
        return function(*arguments, **named)


def _tensors(feed: dict[str, Any]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in feed.items()}


def _arrays(pair: Any) -> list[Floats]:
    return [tensor.float().numpy() for tensor in pair]
