"""What training minimises, and how fast: losses of one batch, learning rates."""

from typing import Any

from torch import Tensor, nn

from amlr.training.data import Batch
from amlr.training.losses import crf_nll, segmental_nll, span_cross_entropy
from amlr.training.scorer import Scorer
from amlr.training.settings import TrainSettings


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


def lr_factor(update: int, warmup: int, updates: int) -> float:
    """Rise over the warm-up, then fall linearly to zero.

    Example:
        >>> [lr_factor(u, 2, 6) for u in range(7)]
        [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if update < warmup:
        return update / max(1, warmup)
    return max(0.0, (updates - update) / max(1, updates - warmup))


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
