"""The published release's checkpoints: a bare state_dict, mapped onto our model without loss.

What the tensors tell is read from them: widths, layers, heads of the cross-attention, scales,
classes. What they do not tell has the release's values as defaults: heads of 64 in both encoders,
their published epsilons, the order of the classes, and the preprocessing.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amlr.errors import CheckpointError, InputError
from amlr.runtime.image import ImageSpec
from amlr.runtime.manifest import DecoderSettings
from amlr.runtime.text import TextSpec
from amlr.training.checkpoint import (
    FORMAT,
    Checkpoint,
    checkpoint_from,
    load_weights,
    read_plain,
)
from amlr.training.config import LABELS, AmlrConfig, bio_tags
from amlr.training.encoders import load_tokenizer
from amlr.training.model import AmlrModel

_TEXT, _IMAGE, _CROSS = "text_encoder.", "vit.vit.", "imgLa2text_aspect."
_NEEDED = (
    f"{_TEXT}embeddings.word_embeddings.weight",
    f"{_IMAGE}patch_embed.proj.weight",
    f"{_CROSS}w_qs.weight",
    "ner_span_affine.weight",
)
_ENCODER_HEAD = 64
_TEXT_EPS, _IMAGE_EPS, _BLOCK_EPS = 1e-12, 1e-6, 1e-6
# ln of the release's class weight: takes back what the weight adds to an entity's log-odds.
_RELEASE_BIAS = 2.302585092994046
_SPECIAL_TAGS = ("X", "[CLS]", "[SEP]", "PAD")
# Tensors that hold no learned numbers, or that inference never reads.
_IGNORED = re.compile(
    r"text_encoder\.(pooler\.|embeddings\.(position_ids|token_type_ids)$)|vit\.vit\.(head\.|fc_norm)"
)

_BLOCK = r"vit\.vit\.blocks\.(\d+)\."
_LAYER = r"image.encoder.layers.\1."
_TOKEN_HEAD = re.compile(r"ner_crf_\d+_classify\.")
_SPAN = re.compile(r"span_(\d+)\.")
# What a name of the release begins with, and what it is here; timm's ViT names among them, with
# query, key and value apart.
_NAMES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(theirs), ours)
    for theirs, ours in (
        (r"text_encoder\.", "text.encoder."),
        (r"vit\.vit\.cls_token$", "image.encoder.embeddings.cls_token"),
        (r"vit\.vit\.pos_embed$", "image.encoder.embeddings.position_embeddings"),
        (r"vit\.vit\.patch_embed\.proj\.", "image.encoder.embeddings.patch_embeddings.projection."),
        (r"vit\.vit\.norm\.", "image.encoder.layernorm."),
        (_BLOCK + r"norm1\.", _LAYER + "layernorm_before."),
        (_BLOCK + r"attn\.([qkv])\.", _LAYER + r"attention.\2_proj."),
        (_BLOCK + r"attn\.proj\.", _LAYER + "attention.o_proj."),
        (_BLOCK + r"norm2\.", _LAYER + "layernorm_after."),
        (_BLOCK + r"mlp\.fc([12])\.", _LAYER + r"mlp.fc\2."),
        (r"imgLa2text_aspect\.w_qs\.", "cross.query."),
        (r"imgLa2text_aspect\.w_ks\.", "cross.key."),
        (r"imgLa2text_aspect\.w_vs\.", "cross.value."),
        (r"imgLa2text_aspect\.fc\.", "cross.output."),
        (r"imgLa2text_aspect\.layer_norm\.", "cross.norm."),
        (r"ner_span_affine\.", "span_head."),
        (r"crf_\d+\.start_transitions$", "crf_start"),
        (r"crf_\d+\.end_transitions$", "crf_end"),
        (r"crf_\d+\.transitions$", "crf_transitions"),
        (_TOKEN_HEAD.pattern, "token_head."),
    )
)
# Names that older releases of transformers 5 use for the same tensors.
_VIT_OLDER = (
    ("attention.o_proj", "attention.output.dense"),
    ("attention.q_proj", "attention.attention.query"),
    ("attention.k_proj", "attention.attention.key"),
    ("attention.v_proj", "attention.attention.value"),
    ("mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "output.dense"),
    ("layers.", "encoder.layer."),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseOptions:
    """What a bare state_dict of the published release does not say.

    Attributes:
        tokenizer: Folder or hub name of its tokenizer.
        image_mean: Per-channel mean; the release feeds CLIP's.
        image_std: Per-channel standard deviation.
        labels: Entity classes in the order of its span head; None takes PER, LOC, ORG, OTHER.
    """

    tokenizer: str = "google-bert/bert-base-uncased"
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    labels: tuple[str, ...] | None = None


def load_any_checkpoint(path: str | Path, release: ReleaseOptions | None = None) -> Checkpoint:
    """Read `best.pt`, or a state_dict of the published release.

    Args:
        path: File written by `amlr-train`, or by the release's own scripts.
        release: What a release state_dict lacks; ignored for our own checkpoints.

    Raises:
        CheckpointError: It cannot be read, or is neither of the two.
    """
    content = read_plain(path)
    if content.get("format") == FORMAT:
        return checkpoint_from(content, str(path))
    if all(key in content for key in _NEEDED):
        return convert_release(content, release or ReleaseOptions())
    keys = ", ".join(sorted(map(str, content))[:4])
    raise CheckpointError(
        f"{path} is neither a checkpoint of amlr-train nor the release's state_dict "
        f"(keys: {keys} ...); export it from amlr-train --out"
    )


def convert_release(content: Mapping[str, Any], options: ReleaseOptions) -> Checkpoint:
    """Map the release's state_dict onto our model.

    Args:
        content: Its tensors.
        options: What they do not say.

    Returns:
        A checkpoint with segmental decoding, w = 0 and b = ln 10, the release's class weight. A
        post without a picture, a case the release does not know, attends to a region of zeros.

    Raises:
        CheckpointError: A tensor is missing, superfluous or of the wrong shape.
        InputError: The tokenizer cannot be loaded or does not fit the vocabulary.
    """
    tensors = {key: value for key, value in content.items() if not _IGNORED.match(key)}
    wrong = [key for key, value in tensors.items() if not isinstance(value, Tensor)]
    if wrong:
        raise CheckpointError(f"{wrong[:3]} are no tensors; save the model's state_dict alone")
    config = _read_config(tensors, options)
    model = AmlrModel(config)
    weights = _fit_vit_names(_map_weights(tensors), model.state_dict())
    weights["cross.no_image"] = torch.zeros(config.width)
    load_weights(model, weights, "is the release's state_dict complete?")
    tokenizer_json, token_ids = load_tokenizer(options.tokenizer)
    rows = tensors[f"{_TEXT}embeddings.word_embeddings.weight"].shape[0]
    if max(token_ids.cls_id, token_ids.sep_id, token_ids.pad_id, token_ids.unk_id) >= rows:
        raise InputError(
            f"the tokenizer {options.tokenizer!r} has ids past the model's {rows} words; give the "
            "one it was trained with: --tokenizer FOLDER"
        )
    steps = int(config.text_encoder["max_position_embeddings"])
    return Checkpoint(
        config=config,
        weights=weights,
        tokenizer_json=tokenizer_json,
        token_ids=token_ids,
        # The release tokenizes links as they stand.
        text=TextSpec(max_tokens=min(128, steps), url_text=None),
        image=ImageSpec(
            size=int(config.image_encoder["image_size"]),
            resize="squash",
            mean=options.image_mean,
            std=options.image_std,
        ),
        decoder=DecoderSettings(kind="segmental", bias=_RELEASE_BIAS, weight=0.0),
        provenance={"source": "state_dict of the published release"},
    )


def _read_config(tensors: Mapping[str, Tensor], options: ReleaseOptions) -> AmlrConfig:
    words = _get(tensors, f"{_TEXT}embeddings.word_embeddings.weight")
    width = words.shape[1]
    patch = _get(tensors, f"{_IMAGE}patch_embed.proj.weight")
    positions = _get(tensors, f"{_IMAGE}pos_embed").shape[1]
    side = round((positions - 1) ** 0.5)
    if side * side != positions - 1:
        raise CheckpointError(f"{positions} image positions are no square grid and a CLS token")
    query = _get(tensors, f"{_CROSS}w_qs.weight")
    if query.shape[0] % width:
        raise CheckpointError(
            f"the cross-attention projects to {query.shape[0]}, expected heads of {width} each"
        )
    return AmlrConfig(
        text_encoder={
            "model_type": "bert",
            "vocab_size": words.shape[0],
            "hidden_size": width,
            "num_hidden_layers": _layers(tensors, f"{_TEXT}encoder.layer."),
            "num_attention_heads": max(1, width // _ENCODER_HEAD),
            "intermediate_size": _rows(tensors, f"{_TEXT}encoder.layer.0.intermediate.dense"),
            "max_position_embeddings": _rows(tensors, f"{_TEXT}embeddings.position_embeddings"),
            "type_vocab_size": _rows(tensors, f"{_TEXT}embeddings.token_type_embeddings"),
            "layer_norm_eps": _TEXT_EPS,
            "hidden_act": "gelu",
        },
        image_encoder={
            "model_type": "vit",
            "hidden_size": patch.shape[0],
            "num_hidden_layers": _layers(tensors, f"{_IMAGE}blocks."),
            "num_attention_heads": max(1, patch.shape[0] // _ENCODER_HEAD),
            "intermediate_size": _rows(tensors, f"{_IMAGE}blocks.0.mlp.fc1"),
            "patch_size": patch.shape[2],
            "image_size": patch.shape[2] * side,
            "layer_norm_eps": _IMAGE_EPS,
            "hidden_act": "gelu",
            "qkv_bias": f"{_IMAGE}blocks.0.attn.qkv.bias" in tensors,
        },
        width=width,
        scales=max([1, *(int(m[1]) for key in tensors if (m := _SPAN.match(key)))]),
        heads=query.shape[0] // width,
        head_width=width,
        labels=(labels := _labels(tensors, options)),
        tags=_tags(tensors, labels),
        layer_norm_eps=_BLOCK_EPS,
    )


def _labels(tensors: Mapping[str, Tensor], options: ReleaseOptions) -> tuple[str, ...]:
    classes = _get(tensors, "ner_span_affine.weight").shape[0] - 1
    labels = options.labels or LABELS
    if len(labels) != classes:
        raise CheckpointError(
            f"the span head has {classes} entity classes, {len(labels)} labels were given "
            f"({', '.join(labels)}); name them in order with --labels"
        )
    return tuple(labels)


def _tags(tensors: Mapping[str, Tensor], labels: tuple[str, ...]) -> tuple[str, ...]:
    rows = [value.shape[0] for key, value in tensors.items() if _TOKEN_HEAD.match(key)]
    words = bio_tags(labels)
    if not rows or rows[0] < len(words):
        raise CheckpointError(
            f"the token head has {rows[0] if rows else 0} tags, expected at least {len(words)} "
            f"for {len(labels)} classes"
        )
    extra = rows[0] - len(words)
    numbered = tuple(f"unused-{number}" for number in range(max(0, extra - len(_SPECIAL_TAGS))))
    return words + (_SPECIAL_TAGS + numbered)[:extra]


def _map_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if ".attn.qkv." in key:
            # timm stacks query, key and value in one matrix.
            for which, third in zip("qkv", value.chunk(3, dim=0), strict=True):
                weights[_our_name(key.replace("qkv", which))] = third.float()
        elif match := _SPAN.match(key):
            # A Conv1d kernel (D, D, k) is the Linear over k neighbours with k moved in front.
            flat = value if value.dim() != 3 else value.transpose(1, 2).flatten(1)
            weights[f"units.maps.{int(match[1]) - 2}.{key[match.end() :]}"] = flat.float()
        else:
            weights[_our_name(key)] = value.float()
    return weights


def _our_name(key: str) -> str:
    for theirs, ours in _NAMES:
        if match := theirs.match(key):
            return match.expand(ours) + key[match.end() :]
    raise CheckpointError(
        f"the release's state_dict has an unknown tensor {key!r}; only its model can be "
        "converted, not optimizer state or variants"
    )


def _fit_vit_names(weights: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if any(name.startswith("image.encoder.layers.") for name in wanted):
        return weights
    renamed = {}
    for name, value in weights.items():
        if name.startswith("image.encoder.layers."):
            for new, old in _VIT_OLDER:
                name = name.replace(new, old)
        renamed[name] = value
    return renamed


def _get(tensors: Mapping[str, Tensor], key: str) -> Tensor:
    if key not in tensors:
        raise CheckpointError(f"the release's state_dict lacks {key!r}; is it complete?")
    return tensors[key]


def _rows(tensors: Mapping[str, Tensor], name: str) -> int:
    return int(_get(tensors, f"{name}.weight").shape[0])


def _layers(tensors: Mapping[str, Tensor], prefix: str) -> int:
    numbers = {
        int(key.removeprefix(prefix).split(".")[0]) for key in tensors if key.startswith(prefix)
    }
    if not numbers:
        raise CheckpointError(f"the release's state_dict has no {prefix}*; is it complete?")
    return max(numbers) + 1
