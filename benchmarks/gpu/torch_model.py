"""The eager AMLR model on a device, as a user of PyTorch would run it."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.benchmarks.gpu.context import Context, NotRunError
from amlr.benchmarks.gpu.recipe import Recipe
from amlr.runtime.batching import Batch, BatchSizes, Scores, pool_images
from amlr.runtime.units import scale_major_index

Floats = npt.NDArray[np.float32]


def load_model(context: Context, part: str) -> Any:
    """The eager model of a part of the kit, on the device, in eval mode.

    Raises:
        NotRunError: The part carries graphs only.
    """
    import torch

    from amlr.training.config import AmlrConfig
    from amlr.training.model import AmlrModel

    recipe = Recipe.load(context.kit / part)
    if recipe.config is None:
        raise NotRunError(f"the part {part!r} carries no eager model")
    with torch.device(context.device):
        model = AmlrModel(AmlrConfig.from_dict(recipe.config))
    names = list(model.state_dict())
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as workers:
        values = workers.map(lambda name: torch.from_numpy(np.array(recipe.pool[name])), names)
        model.load_state_dict(dict(zip(names, values, strict=True)))
    return model.eval().to(context.device)


def use_tf32(allowed: bool) -> None:
    """Whether float32 products and convolutions may use TF32."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


class TorchProvider:
    """An eager model behind the runtime's provider protocol.

    Padded texts, all units of every start, pictures through the plain attention: nothing of what
    an export changes.
    """

    name = "torch"
    batch_sizes = BatchSizes(windows=32, pictures=32)

    def __init__(self, model: Any, device: str) -> None:
        self.model, self._device = model, device
        self._dtype = next(model.parameters()).dtype
        self.precision = str(self._dtype).removeprefix("torch.")

    def encode_images(self, pixels_bchw: Floats) -> list[Any]:
        """Regions (P, D) of each picture, kept on the device."""
        import torch

        with torch.inference_mode():
            pixels = torch.from_numpy(pixels_bchw).to(self._device, self._dtype)
            return list(self.model.image(pixels))

    def score(self, batch: Batch, images: Sequence[Any | None]) -> Scores:
        """Raw logits of the batch's units and steps."""
        import torch

        feed = batch.padded_text(shapes=self.model.text.shapes is not None)
        tensors = {n: torch.from_numpy(array).to(self._device) for n, array in feed.items()}
        pool = pool_images(images)
        regions = torch.stack(pool.features) if pool.features else None
        slot_b = torch.from_numpy(pool.slot_b).to(self._device)
        with torch.inference_mode():
            hidden = self.model.text(**tensors)
            units = self.model.units(hidden)
            logits_bu = self.model.classify(units, self.model.take(units, regions, slot_b))
            emissions_bt = self.model.token_head(hidden)
            index_m = scale_major_index(batch.start_m, batch.scale_m, hidden.shape[1])
            rows = torch.from_numpy(batch.window_m).to(self._device)
            chosen = logits_bu[rows, torch.from_numpy(index_m).to(self._device)]
            logits: Floats = chosen.float().cpu().numpy()
            emissions: Floats = emissions_bt.float().cpu().numpy()
        return Scores(unit_logits_mc=logits, emissions_ny=emissions[feed["attention_mask"] == 1])

    def close(self) -> None:
        """Nothing to free."""
