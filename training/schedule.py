"""Learning rates: over time, and of which parameters."""

from typing import Any

from torch import nn

from amlr.training.settings import TrainSettings


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
