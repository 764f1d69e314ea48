"""A checkpoint of a preset's sizes with random weights: for speed, memory and plumbing, not F1.

Its bundles compress to a hundredth, so that they can be carried to a machine without a network.
"""

import math
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
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
    weights = dict(model.state_dict())
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
        mean, std = _mean_and_std(name, shape)
        weights[name] = torch.from_numpy(_draw(generator, shape) * np.float32(std) + mean)
    return weights


def _draw(generator: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Normal values. In a matrix, each square block is one row, shifted by one place a row.

    A transposed block and a product of two blocks are of the same kind. So every file that an
    export makes of such weights repeats itself, and compresses well.
    """
    if len(shape) < 2:
        return generator.standard_normal(shape, np.float32)
    rows, columns = shape[0], math.prod(shape[1:])
    side = min(rows, columns)
    i, j = np.ogrid[:rows, :columns]
    blocks = generator.standard_normal((max(rows, columns) // side + 1, side), np.float32)
    values: npt.NDArray[np.float32] = blocks[i // side + j // side, (i + j) % side]
    return values.reshape(shape)


def _mean_and_std(name: str, shape: tuple[int, ...]) -> tuple[np.float32, float]:
    zero = np.float32(0)
    if len(shape) > 1 and ".encoder." in name:
        return zero, _ENCODER_STD
    if name.startswith("crf_"):
        return zero, _CHAIN_STD
    if len(shape) > 1:
        return zero, math.sqrt(2 / (shape[0] + shape[-1]))
    if name.endswith("weight"):
        return np.float32(1), _GAIN_STD
    return zero, _BIAS_STD


def is_random(provenance: Mapping[str, object]) -> bool:
    """Whether a checkpoint or bundle says that its weights are random."""
    return provenance.get("weights") == "random"
