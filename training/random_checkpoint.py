"""A checkpoint of a preset's sizes with random weights: for speed, memory and plumbing, not F1."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import BertConfig, ViTConfig

from amlr.runtime.image import ImageSpec
from amlr.runtime.manifest import DecoderSettings, TokenIds
from amlr.runtime.text import TextSpec
from amlr.training.checkpoint import Checkpoint
from amlr.training.config import PRESETS, AmlrConfig
from amlr.training.encoders import load_tokenizer, plain
from amlr.training.model import AmlrModel
from amlr.training.seeded import SeededTensor

# `initializer_range` of BERT and ViT.
_ENCODER_STD = 0.02
# Not the identity, so that a lost gain or bias shows in the outputs.
_GAIN_STD, _BIAS_STD, _CHAIN_STD = 0.1, 0.02, 0.06


def paper_checkpoint(tokenizer: Path, seed: int = 0) -> Checkpoint:
    """BERT-base and ViT-B/16 with random weights.

    Args:
        tokenizer: Folder with a fast WordPiece tokenizer of BERT's vocabulary.
        seed: Decides all weights.
    """
    tokenizer_json, token_ids = load_tokenizer(str(tokenizer))
    preset = PRESETS["paper"]
    text = BertConfig()
    config = AmlrConfig(
        text_encoder=plain(text.to_dict()),
        image_encoder=plain(ViTConfig().to_dict()),
        width=int(text.hidden_size),
        heads=preset.heads,
        head_width=preset.head_width,
    )
    half = (0.5, 0.5, 0.5)
    return random_checkpoint(
        config, tokenizer_json, token_ids, image=ImageSpec(mean=half, std=half), seed=seed
    )


def random_checkpoint(
    config: AmlrConfig,
    tokenizer_json: str,
    token_ids: TokenIds,
    *,
    image: ImageSpec,
    text: TextSpec | None = None,
    seed: int = 0,
) -> Checkpoint:
    """A checkpoint whose weights are decided by the configuration and the seed alone."""
    model = AmlrModel(config)
    return Checkpoint(
        config=config,
        weights=random_weights(model, seed),
        tokenizer_json=tokenizer_json,
        token_ids=token_ids,
        text=text or TextSpec(max_tokens=128),
        image=image,
        decoder=DecoderSettings(kind="joint", bias=2.0, weight=0.5),
        provenance={"weights": "random", "seed": seed},
    )


def random_weights(model: AmlrModel, seed: int) -> dict[str, Tensor]:
    """The model's `state_dict` with every parameter drawn anew; buffers stay as they are."""
    drawn = {tensor.name: tensor for tensor in seeded_tensors(model)}
    return {
        name: torch.from_numpy(drawn[name].values(seed)) if name in drawn else value
        for name, value in model.state_dict().items()
    }


def seeded_tensors(model: AmlrModel) -> list[SeededTensor]:
    """How each parameter of a model is drawn."""
    return [_seeded(name, tuple(parameter.shape)) for name, parameter in model.named_parameters()]


def _seeded(name: str, shape: tuple[int, ...]) -> SeededTensor:
    mean = 0.0
    if len(shape) > 1 and ".encoder." in name:
        std = _ENCODER_STD
    elif name.startswith("crf_"):
        std = _CHAIN_STD
    elif len(shape) > 1:
        std = math.sqrt(2 / (shape[0] + shape[-1]))
    elif name.endswith("weight"):
        mean, std = 1.0, _GAIN_STD
    else:
        std = _BIAS_STD
    return SeededTensor(name=name, shape=shape, std=std, mean=mean)


def is_random(provenance: Mapping[str, object]) -> bool:
    """Whether a checkpoint or bundle says that its weights are random."""
    return provenance.get("weights") == "random"
