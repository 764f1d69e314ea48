"""The eager PyTorch model: stored in a bundle, and behind the runtime's provider protocol.

It is the other side of every parity check. Text, batching and decoding are the runtime's own, so a
difference can only come from the graphs. The model runs in its plain form: padded batches, all
units of every start, nothing folded.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from amlr.errors import BundleError
from amlr.kernels.arrays import Floats
from amlr.runtime.batching import CPU_BATCHES, Batch, Scores, pool_images
from amlr.runtime.bundle import Bundle
from amlr.runtime.manifest import REFERENCE
from amlr.runtime.units import scale_major_index
from amlr.training.config import AmlrConfig
from amlr.training.model import AmlrModel


class EagerProvider:
    """Runs an `AmlrModel` behind the runtime's provider protocol, on its device, in its dtype."""

    name = "eager"
    batch_sizes = CPU_BATCHES

    def __init__(self, model: AmlrModel) -> None:
        self.model = model.eval()
        weight = next(model.parameters())
        self._device, self._dtype = weight.device, weight.dtype
        self.precision = "fp32" if weight.dtype == torch.float32 else "fp16"

    def encode_images(self, pixels_bchw: Floats) -> list[Tensor]:
        """Regions (P, D) of each picture, kept on the device; pixels (B, 3, H, W) float32."""
        with torch.inference_mode():
            pixels = torch.from_numpy(pixels_bchw).to(self._device, self._dtype)
            return list(self.model.image(pixels))

    def score(self, batch: Batch, images: Sequence[Any | None]) -> Scores:
        """Raw logits of the batch's units and steps; `images` has one entry a window."""
        feed = batch.padded_text(shapes=self.model.text.shapes is not None)
        tensors = {name: torch.from_numpy(array).to(self._device) for name, array in feed.items()}
        features, slot_b = pool_images(images)
        regions = torch.stack(features) if features else None
        with torch.inference_mode():
            hidden = self.model.text(**tensors)
            units = self.model.units(hidden)
            slots = torch.from_numpy(slot_b).to(self._device)
            taken = self.model.take(units, regions, slots)
            logits = self.model.classify(units, taken).float().cpu().numpy()
            emissions = self.model.token_head(hidden).float().cpu().numpy()
        index_m = scale_major_index(batch.start_m, batch.scale_m, hidden.shape[1])
        return Scores(
            unit_logits_mc=logits[batch.window_m, index_m],
            emissions_ny=emissions[feed["attention_mask"] == 1],
        )

    def close(self) -> None:
        """Nothing to free."""


def write_reference(path: Path, config: AmlrConfig, weights: Mapping[str, Tensor]) -> None:
    """Write the eager model's configuration and weights as one safetensors file."""
    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in weights.items()}
    save_file(tensors, path, metadata={"config": json.dumps(config.to_dict())})


def load_reference(bundle: Bundle) -> AmlrModel:
    """Rebuild the eager model of a bundle.

    Raises:
        BundleError: The bundle was written without it, or it is damaged.
    """
    if REFERENCE not in bundle.manifest.files:
        raise BundleError(
            f"{bundle.path} holds no {REFERENCE} (exported with --no-reference), so there is no "
            "eager model to compare with; export it again from the checkpoint"
        )
    path = bundle.verified(REFERENCE)
    try:
        with safe_open(path, framework="pt") as file:
            config = AmlrConfig.from_dict(json.loads(file.metadata()["config"]))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError) as error:
        raise BundleError(f"{path} is damaged: {error}; export the bundle again") from error
    model = AmlrModel(config)
    model.load_state_dict(weights)
    return model.to(torch.float32).eval()
