"""One differentiable pass over a batch: only the units that are asked for, heads in float32."""

import torch
from torch import Tensor, nn

from amlr.training.data import Batch
from amlr.training.model import AmlrModel, AmlrOutput


class Scorer(nn.Module):
    """The model behind one call, so that data-parallel wrappers see a single forward.

    The encoders, units and attention run in bfloat16 where that is asked for; LayerNorm and both
    heads, and every loss, in float32.
    """

    def __init__(
        self, model: AmlrModel, *, train_image: bool = False, use_bf16: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self.train_image = train_image
        self.use_bf16 = use_bf16
        for parameter in model.image.encoder.parameters():
            parameter.requires_grad_(train_image)

    def train(self, mode: bool = True) -> "Scorer":
        """Switch dropout on; batch statistics of a pretrained image encoder stay as they are."""
        super().train(mode)
        for module in self.model.image.encoder.modules():
            if not self.train_image or isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def regions(self, images: Tensor) -> Tensor:
        """Regions (I, P, D) of pixels (I, 3, H, W) or of frozen features (I, P, inner)."""
        backbone = self.model.image
        if images.dim() == 3:
            features = images
        elif self.train_image:
            features = backbone.features(images)
        else:
            with torch.no_grad():
                features = backbone.features(images)
        projected: Tensor = backbone.project(features)
        return projected

    def forward(self, batch: Batch, shared_regions: Tensor | None = None) -> AmlrOutput:
        """Score a batch.

        Args:
            batch: Posts, chosen units, words and pictures.
            shared_regions: Regions computed already, instead of `batch.images`.

        Returns:
            unit_logits (B, S, 1+C) of the batch's units and emissions (B, N, Y) of the first
            subword of each word, float32. Padding holds numbers without meaning.
        """
        model = self.model
        device = batch.input_ids_bt.device
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.use_bf16):
            hidden = model.dropout(
                model.text(batch.input_ids_bt, batch.attention_mask_bt, batch.shape_ids_bt)
            )
            dense = model.units(hidden)
            width = dense.shape[-1]
            units = dense.reshape(-1, width).index_select(0, batch.unit_row_bs.reshape(-1))
            units = units.reshape(*batch.unit_row_bs.shape, width)
            regions = shared_regions
            if regions is None and batch.images is not None:
                regions = self.regions(batch.images)
            taken = model.take(units, regions, batch.image_index_b)
            index = batch.first_bn[..., None].expand(-1, -1, width)
            words = hidden.gather(1, index)
        with torch.autocast(device.type, enabled=False):
            logits = model.classify(units.float(), taken.float())
            emissions: Tensor = model.token_head(words.float())
        return AmlrOutput(logits, emissions)
