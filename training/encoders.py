"""Pretrained text and image encoders from a package, a local folder or a hub name."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel
from transformers.utils import logging

from amlr.errors import CheckpointError, InputError
from amlr.runtime.image import ImageSpec
from amlr.runtime.manifest import TokenIds
from amlr.runtime.text import load_tokenizer as clean_tokenizer
from amlr.training.checkpoint import first_line
from amlr.training.config import AmlrConfig
from amlr.training.model import AmlrModel
from amlr.training.wheels import PACKAGED

# Position tables of RoBERTa-like encoders spend two rows on padding.
_POSITION_OFFSET = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedText:
    """A pretrained text encoder.

    Attributes:
        encoder: The model of `transformers`, in float32.
        tokenizer_json: Its fast tokenizer, without padding and truncation.
        token_ids: Ids of the special tokens.
        max_tokens: Most steps it can read, special tokens included.
    """

    encoder: Any
    tokenizer_json: str
    token_ids: TokenIds
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedImage:
    """A pretrained image encoder, a model of `transformers` in float32, and its preprocessing."""

    encoder: Any
    spec: ImageSpec


def load_text_encoder(source: str) -> LoadedText:
    """Load a BERT-like encoder and its fast tokenizer.

    Args:
        source: Folder or hub name.

    Raises:
        InputError: It cannot be loaded, or has no fast tokenizer.
    """
    tokenizer_json, token_ids = load_tokenizer(source)
    encoder = _load_model(source, "text encoder")
    positions = int(getattr(encoder.config, "max_position_embeddings", None) or 512)
    if encoder.config.model_type in {"roberta", "xlm-roberta", "mpnet", "camembert"}:
        positions -= _POSITION_OFFSET
    return LoadedText(
        encoder=encoder,
        tokenizer_json=tokenizer_json,
        token_ids=token_ids,
        max_tokens=positions,
    )


def load_tokenizer(source: str) -> tuple[str, TokenIds]:
    """Load a fast tokenizer as JSON without padding and truncation, and its special ids."""
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(source, use_fast=True)
    except (OSError, ValueError) as error:
        raise _unloadable(source, "tokenizer", error) from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise InputError(f"{source} has no fast tokenizer; add its tokenizer.json", "no_tokenizer")
    # A copy: padding and truncation are the batcher's work, and setters are shared state.
    tokenizer = clean_tokenizer(backend.to_str())
    ids = {
        "cls_id": loaded.cls_token_id if loaded.cls_token_id is not None else loaded.bos_token_id,
        "sep_id": loaded.sep_token_id if loaded.sep_token_id is not None else loaded.eos_token_id,
        "pad_id": loaded.pad_token_id,
        "unk_id": loaded.unk_token_id,
    }
    missing = [name for name, value in ids.items() if value is None]
    if missing:
        raise InputError(f"the tokenizer of {source} lacks {missing}; choose a BERT-like encoder")
    return str(tokenizer.to_str()), TokenIds(**ids)


def load_image_encoder(source: str) -> LoadedImage:
    """Load a ViT-like or convolutional encoder and its preprocessing.

    Args:
        source: Folder or hub name. Of a CLIP-like pair, the vision half is taken.

    Raises:
        InputError: It cannot be loaded.
    """
    encoder = _load_model(source, "image encoder", half="vision_config")
    return LoadedImage(encoder=encoder, spec=image_spec(_preprocessor(source)))


def _load_model(source: str, what: str, half: str | None = None) -> Any:
    """A pretrained model; of a pair, the half whose configuration has that name."""
    # Loading takes a moment; bars for every encoder would bury our own lines.
    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(source)
        if half is not None:
            config = getattr(config, half, config)
        return AutoModel.from_pretrained(source, config=config, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise _unloadable(source, what, error) from error


def _preprocessor(source: str) -> Mapping[str, Any]:
    folder = Path(source)
    try:
        if folder.is_dir():
            path = folder / "preprocessor_config.json"
            return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        from transformers import ImageProcessingMixin

        settings, _ = ImageProcessingMixin.get_image_processor_dict(source)
        return dict(settings)
    except (OSError, ValueError) as error:
        raise _unloadable(source, "preprocessor_config.json", error) from error


def image_spec(settings: Mapping[str, Any]) -> ImageSpec:
    """Preprocessing of `transformers` in our terms; ImageNet values where it says nothing.

    A centre crop is kept only in the usual 256 to 224 ratio; otherwise the whole picture is scaled
    to the square, so nothing at its edges is lost.
    """
    size = settings.get("size") or 224
    crop = settings.get("crop_size") or size
    shortest = int(size.get("shortest_edge") or 0) if isinstance(size, dict) else 0
    side = int(crop.get("height") or shortest or 224) if isinstance(crop, dict) else int(crop)
    is_usual_crop = bool(settings.get("do_center_crop")) and round(side * 256 / 224) == shortest
    return ImageSpec(
        size=side,
        resize="crop" if is_usual_crop else "squash",
        resample="bicubic" if settings.get("resample") == 3 else "bilinear",
        mean=tuple(settings.get("image_mean") or (0.485, 0.456, 0.406)),
        std=tuple(settings.get("image_std") or (0.229, 0.224, 0.225)),
    )


def build_model(config: AmlrConfig, text: LoadedText, image: LoadedImage) -> AmlrModel:
    """Build the model and copy both pretrained encoders into it.

    Raises:
        CheckpointError: An encoder lacks a tensor the model needs.
    """
    model = AmlrModel(config)
    for encoder, loaded in (
        (model.text.encoder, text.encoder),
        (model.image.encoder, image.encoder),
    ):
        missing, _ = encoder.load_state_dict(loaded.state_dict(), strict=False)
        # Poolers and classifiers of the source are left out; nothing the model has may be absent.
        if missing:
            raise CheckpointError(
                f"the {type(encoder).__name__} weights lack {missing[:3]} and "
                f"{max(0, len(missing) - 3)} more; choose weights of this architecture"
            )
    return model


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a configuration with JSON types only."""
    copy: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    copy.pop("_name_or_path", None)
    return copy


def _unloadable(source: str, what: str, error: Exception) -> InputError:
    return InputError(
        f"cannot load the {what} {source!r}: {first_line(error)}; give a packaged name "
        f"({', '.join(PACKAGED)}), a folder of transformers files, or a hub name with network",
        "encoder_missing",
    )
