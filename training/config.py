"""Configuration of the AMLR model and its presets.

Shape letters used everywhere: B batch, T subword steps, N words, D width, K largest scale, U units,
P image regions, C entity classes (without "none"), Y tags.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from amlr.errors import CheckpointError

LABELS = ("PER", "LOC", "ORG", "OTHER")


def bio_tags(labels: tuple[str, ...]) -> tuple[str, ...]:
    """Name the tags of the token head: "O", then "B-X" and "I-X" of each label.

    Example:
        >>> bio_tags(("PER", "LOC"))
        ('O', 'B-PER', 'I-PER', 'B-LOC', 'I-LOC')
    """
    return ("O", *(f"{prefix}-{label}" for label in labels for prefix in "BI"))


@dataclass(frozen=True, slots=True, kw_only=True)
class AmlrConfig:
    """Everything needed to build the model without its weights.

    Attributes:
        text_encoder: `to_dict()` of the text encoder's transformers configuration.
        image_encoder: The same of the image encoder.
        width: D, the width of units, regions and hidden states.
        scales: K, the largest number of subword steps in one unit.
        heads: Heads of the cross-modal attention.
        head_width: d_k, width of one head; the release uses D itself.
        labels: Entity classes without "none", in the order of the span head's columns 1..C.
        tags: Tags of the token head.
        dropout: Probability on hidden states, attention weights and the attention's output.
        layer_norm_eps: Epsilon of the block's LayerNorm.
        shape_classes: Rows of the word-shape embedding, 0 for none.
    """

    text_encoder: Mapping[str, Any]
    image_encoder: Mapping[str, Any]
    width: int
    scales: int = 6
    heads: int = 8
    head_width: int = 0
    labels: tuple[str, ...] = LABELS
    tags: tuple[str, ...] = field(default=())
    dropout: float = 0.1
    layer_norm_eps: float = 1e-6
    shape_classes: int = 0

    def __post_init__(self) -> None:
        """Fill derived defaults and check ranges."""
        object.__setattr__(self, "labels", tuple(self.labels))
        object.__setattr__(self, "tags", tuple(self.tags) or bio_tags(self.labels))
        object.__setattr__(self, "head_width", self.head_width or self.width)
        for name in ("width", "scales", "heads", "head_width"):
            if getattr(self, name) < 1:
                raise CheckpointError(f"{name} must be at least 1, got {getattr(self, name)}")
        missing = {"O", *(f"{p}-{label}" for label in self.labels for p in "BI")} - set(self.tags)
        if missing:
            raise CheckpointError(
                f"tags lack {sorted(missing)}; give every label a B- and an I- tag"
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """Columns of the span head: "none", then the labels."""
        return ("none", *self.labels)

    def to_dict(self) -> dict[str, Any]:
        """Plain dict, ready for JSON."""
        return asdict(self) | {"labels": list(self.labels), "tags": list(self.tags)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "AmlrConfig":
        """Rebuild a configuration.

        Raises:
            CheckpointError: A field is missing or unknown.
        """
        known = {f.name for f in fields(cls)}
        unknown = set(data) - known
        if unknown:
            raise CheckpointError(f"unknown model settings {sorted(unknown)}; upgrade amlr")
        try:
            return cls(**data)
        except TypeError as error:
            raise CheckpointError(f"incomplete model settings: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A named model size.

    Attributes:
        text_encoder: Name `amlr.training.encoders` understands: packaged, hub name or folder.
        image_encoder: The same for the image encoder.
        heads: Heads of the cross-modal attention.
        head_width: Width of one head; 0 means the text encoder's own width, as in the release.
    """

    text_encoder: str
    image_encoder: str
    heads: int = 8
    head_width: int = 0


PRESETS = {
    "small": Preset(text_encoder="minilm-l6", image_encoder="mobilenet-v2"),
    "base": Preset(text_encoder="mpnet-base", image_encoder="mobilenet-v2"),
    "paper": Preset(
        text_encoder="google-bert/bert-base-uncased",
        image_encoder="google/vit-base-patch16-224-in21k",
        head_width=768,
    ),
}
