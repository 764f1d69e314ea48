"""Text and image encoders of `transformers` behind two small modules with one output width."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.models.mobilenet_v2.modeling_mobilenet_v2 import apply_depth_multiplier

from amlr.errors import CheckpointError

# Encoders without a pooler argument reject it; those with one would carry unused weights.
_POOLER_FREE = {"bert", "mpnet", "roberta", "vit", "mobilenet_v2"}


def build_encoder(settings: Mapping[str, Any]) -> Any:
    """Build a randomly initialised encoder from a configuration dict.

    Raises:
        CheckpointError: The settings name no model type that transformers knows.
    """
    options = dict(settings)
    kind = options.pop("model_type", None)
    if not kind:
        raise CheckpointError("encoder settings lack model_type; save them with config.to_dict()")
    try:
        config = AutoConfig.for_model(kind, **options)
    except ValueError as error:
        raise CheckpointError(f"transformers does not know the encoder type {kind!r}") from error
    extra = {"add_pooling_layer": False} if kind in _POOLER_FREE else {}
    return AutoModel.from_config(config, **extra)


def projection(inner: int, width: int) -> nn.Module:
    """A linear map where widths differ, nothing where they agree."""
    return nn.Identity() if inner == width else nn.Linear(inner, width)


class TextBackbone(nn.Module):
    """Subword ids to hidden states (B, T, D)."""

    def __init__(self, settings: Mapping[str, Any], width: int, shape_classes: int) -> None:
        super().__init__()
        self.encoder = build_encoder(settings)
        inner = int(self.encoder.config.hidden_size)
        self.project = projection(inner, width)
        self.shapes = nn.Embedding(shape_classes, inner) if shape_classes else None
        if self.shapes is not None:
            nn.init.normal_(self.shapes.weight, std=0.02)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, shape_ids: Tensor | None = None
    ) -> Tensor:
        """Encode padded posts.

        Args:
            input_ids: (B, T) int64, padded on the right.
            attention_mask: (B, T) int64, 1 where a step is real.
            shape_ids: (B, T) int64 word-shape classes; needed when the model has that embedding.

        Returns:
            (B, T, D); steps past the end hold numbers without meaning.
        """
        if self.shapes is None:
            output = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        else:
            assert shape_ids is not None, "this model has a word-shape embedding: pass shape_ids"
            words: nn.Embedding = self.encoder.get_input_embeddings()
            embeds = words(input_ids) + self.shapes(shape_ids)
            output = self.encoder(inputs_embeds=embeds, attention_mask=attention_mask)
        hidden: Tensor = self.project(output.last_hidden_state)
        return hidden


class ImageBackbone(nn.Module):
    """Pixels to regions (B, P, D): tokens of a ViT, or the grid of a CNN."""

    def __init__(self, settings: Mapping[str, Any], width: int) -> None:
        super().__init__()
        self.encoder = build_encoder(settings)
        self.project = projection(feature_width(self.encoder.config), width)

    def features(self, pixel_values: Tensor) -> Tensor:
        """The encoder's own regions (B, P, inner), before the projection."""
        hidden: Tensor = self.encoder(pixel_values=pixel_values).last_hidden_state
        return hidden.flatten(2).transpose(1, 2) if hidden.dim() == 4 else hidden

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Encode pictures (B, 3, H, W), float32, normalised; returns (B, P, D)."""
        regions: Tensor = self.project(self.features(pixel_values))
        return regions


def feature_width(config: Any) -> int:
    """Channels of an image encoder's last hidden state."""
    if config.model_type == "mobilenet_v2":
        # The last 1x1 convolution keeps 1280 channels in thinner networks when fine-grained.
        thin = config.finegrained_output and config.depth_multiplier < 1.0
        return 1280 if thin else int(apply_depth_multiplier(config, 1280))
    for name in ("hidden_size", "hidden_sizes"):
        value = getattr(config, name, None)
        if value is not None:
            return int(value[-1] if isinstance(value, list | tuple) else value)
    raise CheckpointError(f"cannot tell the width of image encoder {config.model_type!r}")
