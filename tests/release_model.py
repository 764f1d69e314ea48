"""The published release's model written out plainly, from the shapes in its state_dict.

It shares no code with the package: an independent reference for the import.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as functional
from torch import Tensor

Weights = Mapping[str, Tensor]


def random_release(
    *,
    width: int = 128,
    layers: int = 2,
    vocabulary: int = 400,
    positions: int = 140,
    patch: int = 16,
    side: int = 2,
    heads: int = 3,
    scales: int = 6,
    seed: int = 0,
) -> dict[str, Tensor]:
    """A state_dict with the release's keys and random values."""
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}

    def add(name: str, *shape: int, scale: float | None = None) -> None:
        spread = shape[-1] ** -0.5 if scale is None else scale
        weights[name] = torch.randn(*shape, generator=generator) * spread

    def linear(name: str, inputs: int, outputs: int) -> None:
        add(f"{name}.weight", outputs, inputs)
        add(f"{name}.bias", outputs, scale=0.1)

    def norm(name: str, size: int) -> None:
        weights[f"{name}.weight"] = 1 + 0.2 * torch.randn(size, generator=generator)
        add(f"{name}.bias", size, scale=0.2)

    text = "text_encoder."
    for name, rows in (("word", vocabulary), ("position", positions), ("token_type", 2)):
        add(f"{text}embeddings.{name}_embeddings.weight", rows, width, scale=0.5)
    norm(f"{text}embeddings.LayerNorm", width)
    for layer in range(layers):
        block = f"{text}encoder.layer.{layer}."
        for name in ("query", "key", "value"):
            linear(f"{block}attention.self.{name}", width, width)
        linear(f"{block}attention.output.dense", width, width)
        norm(f"{block}attention.output.LayerNorm", width)
        linear(f"{block}intermediate.dense", width, 4 * width)
        linear(f"{block}output.dense", 4 * width, width)
        norm(f"{block}output.LayerNorm", width)
    linear(f"{text}pooler.dense", width, width)

    image = "vit.vit."
    add(f"{image}cls_token", 1, 1, width, scale=0.5)
    add(f"{image}pos_embed", 1, side * side + 1, width, scale=0.5)
    add(f"{image}patch_embed.proj.weight", width, 3, patch, patch, scale=0.02)
    add(f"{image}patch_embed.proj.bias", width, scale=0.1)
    for layer in range(layers):
        block = f"{image}blocks.{layer}."
        norm(f"{block}norm1", width)
        linear(f"{block}attn.qkv", width, 3 * width)
        linear(f"{block}attn.proj", width, width)
        norm(f"{block}norm2", width)
        linear(f"{block}mlp.fc1", width, 4 * width)
        linear(f"{block}mlp.fc2", 4 * width, width)
    norm(f"{image}norm", width)
    linear(f"{image}head", width, 10)

    cross = "imgLa2text_aspect."
    for name in ("w_qs", "w_ks", "w_vs"):
        add(f"{cross}{name}.weight", heads * width, width)
    add(f"{cross}fc.weight", width, heads * width)
    norm(f"{cross}layer_norm", width)
    for k in range(2, scales + 1):
        linear(f"span_{k}", k * width, width)
    linear("ner_span_affine", width, 5)
    linear("ner_crf_13_classify", width, 13)
    add("crf_13.start_transitions", 13, scale=0.1)
    add("crf_13.end_transitions", 13, scale=0.1)
    add("crf_13.transitions", 13, 13, scale=0.1)
    return weights


def _linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def _norm(weights: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + eps)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _attend(query: Tensor, key: Tensor, value: Tensor, size: int) -> Tensor:
    """Attention head by head; the heads' results side by side."""
    results = []
    for start in range(0, query.shape[-1], size):
        part = slice(start, start + size)
        scores = query[:, part] @ key[:, part].T / size**0.5
        results.append(torch.softmax(scores, dim=-1) @ value[:, part])
    return torch.cat(results, dim=-1)


def text_states(weights: Weights, ids: Tensor) -> Tensor:
    """BERT's last hidden states (T, D) of one post without padding."""
    name = "text_encoder."
    table = f"{name}embeddings."
    x = weights[f"{table}word_embeddings.weight"][ids]
    x = x + weights[f"{table}position_embeddings.weight"][: len(ids)]
    x = _norm(
        weights, f"{table}LayerNorm", x + weights[f"{table}token_type_embeddings.weight"][0], 1e-12
    )
    layer = 0
    while f"{name}encoder.layer.{layer}.output.dense.weight" in weights:
        block = f"{name}encoder.layer.{layer}."
        query, key, value = (
            _linear(weights, f"{block}attention.self.{part}", x)
            for part in ("query", "key", "value")
        )
        mixed = _linear(weights, f"{block}attention.output.dense", _attend(query, key, value, 64))
        x = _norm(weights, f"{block}attention.output.LayerNorm", x + mixed, 1e-12)
        inner = functional.gelu(_linear(weights, f"{block}intermediate.dense", x))
        x = x + _linear(weights, f"{block}output.dense", inner)
        x = _norm(weights, f"{block}output.LayerNorm", x, 1e-12)
        layer += 1
    return x


def image_states(weights: Weights, pixels: Tensor) -> Tensor:
    """The ViT's states (P, D) of one picture (3, H, W), CLS first, after the final norm."""
    name = "vit.vit."
    kernel = weights[f"{name}patch_embed.proj.weight"]
    size = kernel.shape[2]
    rows = [
        (kernel * pixels[:, top : top + size, left : left + size]).sum((1, 2, 3))
        for top in range(0, pixels.shape[1], size)
        for left in range(0, pixels.shape[2], size)
    ]
    patches = torch.stack(rows) + weights[f"{name}patch_embed.proj.bias"]
    x = torch.cat([weights[f"{name}cls_token"][0], patches]) + weights[f"{name}pos_embed"][0]
    layer = 0
    while f"{name}blocks.{layer}.attn.qkv.weight" in weights:
        block = f"{name}blocks.{layer}."
        normed = _norm(weights, f"{block}norm1", x, 1e-6)
        query, key, value = _linear(weights, f"{block}attn.qkv", normed).chunk(3, dim=-1)
        x = x + _linear(weights, f"{block}attn.proj", _attend(query, key, value, 64))
        inner = functional.gelu(
            _linear(weights, f"{block}mlp.fc1", _norm(weights, f"{block}norm2", x, 1e-6))
        )
        x = x + _linear(weights, f"{block}mlp.fc2", inner)
        layer += 1
    return _norm(weights, f"{name}norm", x, 1e-6)


def release_forward(weights: Weights, ids: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Unit logits (U, 5), scale-major, and emissions (T, 13) of one post with its picture."""
    hidden, regions = text_states(weights, ids), image_states(weights, pixels)
    width = hidden.shape[1]
    units = [hidden]
    k = 2
    while f"span_{k}.weight" in weights:
        windows = [hidden[i : i + k].reshape(-1) for i in range(len(ids) - k + 1)]
        if windows:
            units.append(_linear(weights, f"span_{k}", torch.stack(windows)))
        k += 1
    stacked = torch.cat(units)
    cross = "imgLa2text_aspect."
    query = stacked @ weights[f"{cross}w_qs.weight"].T
    key, value = (regions @ weights[f"{cross}{part}.weight"].T for part in ("w_ks", "w_vs"))
    taken = _attend(query, key, value, width) @ weights[f"{cross}fc.weight"].T
    reinforced = _norm(weights, f"{cross}layer_norm", stacked + taken, 1e-6)
    return (
        _linear(weights, "ner_span_affine", reinforced),
        _linear(weights, "ner_crf_13_classify", hidden),
    )
