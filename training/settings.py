"""Settings of a training run, and the recipes that reached the documented scores."""

from dataclasses import dataclass, replace
from typing import Literal

from amlr.errors import InputError

LossName = Literal["ce", "semi-crf"]
Reduction = Literal["mean", "sum"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """How to train; everything that changes the result.

    Attributes:
        epochs: Most passes over the data; the learning rate falls to zero over them.
        batch_size: Posts of one backward pass.
        accumulate: Backward passes of one update.
        lr: Peak learning rate of the pretrained encoders.
        head_lr: Peak learning rate of everything that starts from scratch.
        weight_decay: AdamW's, on matrices only.
        warmup: Share of the updates over which the learning rate rises.
        clip: Largest gradient norm.
        loss: Span head: class-weighted cross-entropy over all units, or a segmental CRF over the
            word-aligned ones.
        entity_weight: Weight of entity classes in the cross-entropy; the release uses 10.
        reduction: `mean`, or `sum` over the batch as the release.
        crf_weight: Weight of the token head's word-level CRF loss.
        image_drop: Share of pictures hidden in training, so that the model works without one.
        train_image: Also train the image encoder; else its features are computed once.
        patience: Epochs without a better dev F1 before stopping; 0 never stops early.
        seed: Of weights, order, dropout and hidden pictures.
        use_bf16: Encoders in bfloat16.
        save_every: Updates between resume points inside an epoch; 0 saves at its end only.
        eval_batch_size: Posts scored together on dev.
    """

    epochs: int = 8
    batch_size: int = 32
    accumulate: int = 1
    lr: float = 2e-4
    head_lr: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.1
    clip: float = 1.0
    loss: LossName = "ce"
    entity_weight: float = 10.0
    reduction: Reduction = "mean"
    crf_weight: float = 1.0
    image_drop: float = 0.2
    train_image: bool = False
    patience: int = 3
    seed: int = 0
    use_bf16: bool = False
    save_every: int = 0
    eval_batch_size: int = 64

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "eval_batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr", "head_lr", "clip", "entity_weight"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("warmup", "image_drop"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must lie in 0..1, got {getattr(self, name)}")
        if self.loss not in ("ce", "semi-crf"):
            raise InputError(f"loss must be ce or semi-crf, got {self.loss!r}")


_RECIPES: dict[tuple[str, str], TrainSettings] = {
    ("small", "ce"): TrainSettings(epochs=8, lr=2e-4, head_lr=1e-3),
    ("small", "semi-crf"): TrainSettings(epochs=5, lr=1e-4, head_lr=5e-4, loss="semi-crf"),
    ("base", "ce"): TrainSettings(epochs=4, lr=5e-5, head_lr=1e-3),
    ("base", "semi-crf"): TrainSettings(epochs=4, lr=5e-5, head_lr=1e-3, loss="semi-crf"),
    ("paper", "ce"): TrainSettings(
        epochs=40, lr=2e-5, head_lr=2e-5, reduction="sum", train_image=True, patience=0
    ),
}


def recipe(preset: str, loss: LossName | None = None) -> TrainSettings:
    """Training defaults of a preset under a loss.

    Example:
        >>> recipe("small", "semi-crf").epochs
        5
    """
    found = _RECIPES.get((preset, loss or "ce"))
    return found or replace(_RECIPES[preset, "ce"], loss=loss or "ce")
