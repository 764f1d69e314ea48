"""Tiny random models: real architectures, a few thousand weights."""

from typing import Any

import torch
from transformers import BertConfig, MobileNetV2Config, MPNetConfig, ViTConfig

from amlr.training.config import AmlrConfig
from amlr.training.model import AmlrModel

IMAGE_SIZE = 64
VOCABULARY = 400
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 140,
}


def tiny_config(text: str = "bert", image: str = "mobilenet", **options: Any) -> AmlrConfig:
    """Configuration of a tiny model: bert or mpnet, mobilenet or vit."""
    text_config = {"bert": BertConfig, "mpnet": MPNetConfig}[text](**_SIZES)
    if image == "mobilenet":
        image_config: Any = MobileNetV2Config(
            depth_multiplier=0.35, image_size=IMAGE_SIZE, tf_padding=False
        )
    else:
        image_config = ViTConfig(
            hidden_size=48,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=96,
            image_size=IMAGE_SIZE,
            patch_size=16,
        )
    settings: dict[str, Any] = {"width": 32, "heads": 2, "shape_classes": 9} | options
    return AmlrConfig(
        text_encoder=text_config.to_dict(), image_encoder=image_config.to_dict(), **settings
    )


def tiny_model(config: AmlrConfig | None = None, seed: int = 0) -> AmlrModel:
    """A random model in eval mode, its weights decided by the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AmlrModel(config or tiny_config()).eval()
        with torch.no_grad():
            # Trained norms are not the identity; a lost weight would go unnoticed otherwise.
            model.cross.norm.weight.uniform_(0.5, 1.5)
            model.cross.norm.bias.normal_(std=0.1)
    return model
