"""One differentiable pass over a batch: only the units that are asked for, heads in float32.

Around it, what training minimises: the losses of a batch, and the learning rates.
"""

from typing import Any

import torch
from torch import Tensor, nn

from amlr.training.data import Batch
from amlr.training.losses import crf_nll, segmental_nll, span_cross_entropy
from amlr.training.model import AmlrModel, AmlrOutput
from amlr.training.settings import TrainSettings


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

    def _regions(self, images: Tensor) -> Tensor:
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

    def forward(self, batch: Batch) -> AmlrOutput:
        """Score a batch.

        Args:
            batch: Posts, chosen units, words and pictures.

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
            regions = None if batch.images is None else self._regions(batch.images)
            taken = model.take(units, regions, batch.image_index_b)
            index = batch.first_bn[..., None].expand(-1, -1, width)
            words = hidden.gather(1, index)
        with torch.autocast(device.type, enabled=False):
            logits = model.classify(units.float(), taken.float())
            emissions: Tensor = model.token_head(words.float())
        return AmlrOutput(logits, emissions)


class Objective(nn.Module):
    """Scorer and losses in one forward.

    Data-parallel wrappers reduce gradients of parameters that their forward uses, and the CRF's
    transitions are used by the loss alone: so the loss belongs inside.
    """

    def __init__(self, scorer: Scorer, settings: TrainSettings) -> None:
        super().__init__()
        self.scorer = scorer
        self.settings = settings

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Span loss and CRF loss, scalars."""
        settings, model = self.settings, self.scorer.model
        output = self.scorer(batch)
        if settings.loss == "ce":
            span_loss = span_cross_entropy(
                output.unit_logits,
                batch.target_bs,
                batch.unit_mask_bs,
                entity_weight=settings.entity_weight,
                reduction=settings.reduction,
            )
        else:
            span_loss = segmental_nll(
                output.unit_logits,
                batch.target_bs,
                batch.cell_bs,
                batch.word_mask_bn.sum(1),
                chart_size=(batch.word_mask_bn.shape[1], model.config.scales),
                reduction=settings.reduction,
            )
        crf_loss = crf_nll(
            output.emissions,
            batch.tags_bn,
            batch.word_mask_bn,
            start_y=model.crf_start,
            transitions_yy=model.crf_transitions,
            end_y=model.crf_end,
            reduction=settings.reduction,
        )
        return span_loss, crf_loss


def parameter_groups(scorer: nn.Module, settings: TrainSettings) -> list[dict[str, Any]]:
    """Split parameters by learning rate (encoders, the rest) and by weight decay (matrices)."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in scorer.named_parameters():
        if parameter.requires_grad:
            key = (".encoder." in name, parameter.dim() > 1 and "norm" not in name.lower())
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": settings.lr if is_encoder else settings.head_lr,
            "weight_decay": settings.weight_decay if decays else 0.0,
        }
        for (is_encoder, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]
