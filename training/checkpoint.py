"""`best.pt` in and out: configuration, tokenizer, preprocessing, decoder settings and weights.

A checkpoint is read with `weights_only=True`: tensors and plain values, never code.
"""

import pickle
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amlr.errors import AmlrError, CheckpointError
from amlr.runtime.image import ImageSpec
from amlr.runtime.manifest import DecoderSettings, TokenIds
from amlr.runtime.text import TextEncoder, TextSpec, load_tokenizer
from amlr.training.config import AmlrConfig
from amlr.training.model import AmlrModel
from amlr.whole import replacing

FORMAT = "amlr-checkpoint"
VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A trained model and all that is needed to use it.

    Attributes:
        config: Model settings.
        weights: `AmlrModel.state_dict()`.
        tokenizer_json: A `tokenizers` file.
        token_ids: Ids of the special tokens.
        text: How text becomes subwords.
        image: How pictures become pixels.
        decoder: How scores become entities.
        provenance: Where it comes from: data, settings, scores, versions.
    """

    config: AmlrConfig
    weights: Mapping[str, Tensor]
    tokenizer_json: str
    token_ids: TokenIds
    text: TextSpec
    image: ImageSpec
    decoder: DecoderSettings
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def build_model(self) -> AmlrModel:
        """Build the model in float32, ready for inference.

        Raises:
            CheckpointError: Weights and configuration do not fit each other.
        """
        model = AmlrModel(self.config)
        versions = self.provenance.get("versions", "unknown")
        load_weights(model, self.weights, f"use the versions it was made with: {versions}")
        return model.float().eval()

    def build_text_encoder(self) -> TextEncoder:
        """Build the runtime's text encoder of this model."""
        return TextEncoder(load_tokenizer(self.tokenizer_json), self.text, **asdict(self.token_ids))


def load_weights(model: AmlrModel, weights: Mapping[str, Tensor], fix: str) -> None:
    """Fill a model.

    Raises:
        CheckpointError: A tensor is missing, superfluous or of the wrong shape; ends with the fix.
    """
    try:
        model.load_state_dict(dict(weights))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()[:300]
        raise CheckpointError(f"weights do not fit the configuration: {reason}; {fix}") from error


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; the file appears whole or not at all."""
    save_atomically(
        path,
        {
            "format": FORMAT,
            "version": VERSION,
            "config": checkpoint.config.to_dict(),
            "weights": {k: v.detach().cpu().contiguous() for k, v in checkpoint.weights.items()},
            "tokenizer": checkpoint.tokenizer_json,
            "text": asdict(checkpoint.text) | asdict(checkpoint.token_ids),
            "image": asdict(checkpoint.image),
            "decoder": asdict(checkpoint.decoder),
            "provenance": dict(checkpoint.provenance),
        },
    )


def save_atomically(path: str | Path, content: Mapping[str, Any]) -> None:
    """`torch.save` aside, flush to disk, rename."""
    try:
        with replacing(Path(path)) as aside:
            torch.save(dict(content), aside)
    # torch's own writer reports a full disk as a RuntimeError.
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"cannot write {path}: {first_line(error)}; free some space, or choose another --out"
        ) from error


def read_plain(path: str | Path) -> dict[str, Any]:
    """Read a file of tensors and plain values.

    Raises:
        CheckpointError: Missing, damaged, or holding anything else (a pickle that runs code).
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            # torch warns about foreign pickles before it refuses them; the error says it all.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"no checkpoint at {path}; train one with amlr-train --out {path}"
        ) from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is no checkpoint of plain tensors and values: "
            f"{first_line(error)}; nothing in it was run; save a state_dict instead"
        ) from error
    # torch raises whatever its zip and pickle readers stumble over.
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: {first_line(error)}; it is damaged or of "
            "another kind"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, expected a checkpoint or a state_dict"
        )
    return content


def checkpoint_from(content: Mapping[str, Any], name: str) -> Checkpoint:
    """The checkpoint in a file's content.

    Raises:
        CheckpointError: It is of another version, or incomplete.
    """
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"{name} has checkpoint version {content.get('version')!r}, this amlr reads {VERSION}; "
            "use the version of amlr that wrote it"
        )
    try:
        text = content["text"]
        return Checkpoint(
            config=AmlrConfig.from_dict(content["config"]),
            weights=content["weights"],
            tokenizer_json=content["tokenizer"],
            token_ids=TokenIds(**{key: text[key] for key in TokenIds.__dataclass_fields__}),
            text=TextSpec.from_dict(text),
            image=ImageSpec.from_dict(content["image"]),
            decoder=DecoderSettings(**content["decoder"]),
            provenance=content["provenance"],
        )
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, AmlrError) as error:
        raise CheckpointError(
            f"{name} is incomplete: {type(error).__name__} {error}; train or export it again"
        ) from error


def first_line(error: Exception) -> str:
    """What an error says, short enough for a line of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
