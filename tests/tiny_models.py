"""Tiny random models of every backbone kind, for tests that need a graph and not an answer."""

import torch

from amlr.training.config import AmlrConfig
from amlr.training.model import AmlrModel

IMAGE_SIZE = 32

_BERT = {
    "model_type": "bert",
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}
_MPNET = _BERT | {"model_type": "mpnet"}
_VIT = {
    "model_type": "vit",
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": IMAGE_SIZE,
    "patch_size": 16,
}
_MOBILENET = {"model_type": "mobilenet_v2", "depth_multiplier": 0.35, "image_size": IMAGE_SIZE}


def tiny_model(
    text: str = "bert", image: str = "vit", *, head_width: int = 16, shapes: int = 0, seed: int = 0
) -> AmlrModel:
    """A random model in eval mode: `text` is bert or mpnet, `image` is vit or mobilenet_v2."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = AmlrConfig(
            text_encoder=_MPNET if text == "mpnet" else _BERT,
            image_encoder=_MOBILENET if image == "mobilenet_v2" else _VIT,
            width=32,
            scales=3,
            heads=2,
            head_width=head_width,
            shape_classes=shapes,
        )
        return AmlrModel(config).eval()
