"""`torch.compile` in the form that is fast on CPU: symbolic shapes and frozen weights.

Static shapes would compile anew for every length, and send float32 products to MKL; a symbolic
batch sends them to oneDNN.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from amlr.benchmarks.inputs import ModelInput, ModelShape, Picture
from amlr.benchmarks.peers.eager import Floats, collect, eager_feed, eager_model, encode_eager
from amlr.runtime.batching import Scores
from amlr.training.model import AmlrModel


class CompiledPeer:
    """One compiled model a kind of picture, dynamic in batch and length."""

    def __init__(self, model: AmlrModel, shape: ModelShape) -> None:
        import torch._inductor.config as inductor

        inductor.freezing = True
        self._model, self._shape = model.eval(), shape
        self._compiled: dict[tuple[Picture, bool], Any] = {}

    def encode(self, pixels_bchw: Floats) -> list[Any]:
        """Regions in float32, from the uncompiled encoder."""
        return encode_eager(self._model, pixels_bchw)

    def prepare(self, inputs: Sequence[ModelInput], picture: Picture) -> Callable[[], Any]:
        """Mark batch and length as dynamic; the first call compiles."""
        feed = eager_feed(self._model, inputs, self._shape, picture)
        single = len(inputs) == 1
        # Tensors made under inference_mode cannot be marked.
        feed = {name: tensor.clone() for name, tensor in feed.items()}
        for name, tensor in feed.items():
            _mark(tensor, name, single=single)
        # A batch of one is a specialisation of its own: a symbolic size is taken to be at least 2.
        key = (picture, single)
        if key not in self._compiled:
            whole = eager_model(self._model, picture)
            self._compiled[key] = torch.compile(whole, dynamic=True)
        compiled = self._compiled[key]

        def call() -> Any:
            with torch.no_grad():
                return [compiled(**feed)]

        return call

    def scores(self, raw: Any, inputs: Sequence[ModelInput]) -> list[Scores]:
        """Pick the wanted units out of all of them."""
        return collect(raw, inputs, exact=False)

    def close(self) -> None:
        """Nothing to free."""


def _mark(tensor: Tensor, name: str, *, single: bool) -> None:
    if not single:
        torch._dynamo.maybe_mark_dynamic(tensor, 0)
    if name != "seen":
        torch._dynamo.maybe_mark_dynamic(tensor, 1)
