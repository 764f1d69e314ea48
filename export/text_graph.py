"""Text encoders rewritten for export: one stack of layers, padded or packed, same numbers.

The packed form keeps every matrix product and LayerNorm on the real steps (N, D) and goes to
(B, T) only around the attention, so padding costs nothing. Both forms run their linear layers on
two-dimensional arrays: the exporter then stores each weight the same way, and both graphs share
one copy of it. The attention mask is finite, so a fully masked row gives numbers instead of NaN,
and small enough for float16.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from amlr.training.backbones import TextBackbone

MASKED = -1e4
_BERT_LIKE = {"bert", "roberta", "xlm-roberta", "camembert"}


def can_pack(backbone: TextBackbone) -> bool:
    """Whether this encoder's layers are known well enough to be rewritten."""
    config = backbone.encoder.config
    absolute = getattr(config, "position_embedding_type", "absolute") == "absolute"
    return config.model_type in _BERT_LIKE | {"mpnet"} and absolute


def _attention(layer: Any) -> tuple[nn.Module, ...]:
    """Maps of query, key, value and output, and the norm, whatever the architecture calls them."""
    if hasattr(layer.attention, "attn"):  # MPNet
        attn = layer.attention.attn
        return attn.q, attn.k, attn.v, attn.o, layer.attention.LayerNorm
    attn, after = layer.attention.self, layer.attention.output
    return attn.query, attn.key, attn.value, after.dense, after.LayerNorm


class RelativeBias(nn.Module):
    """MPNet's bias by distance, as a table over all distances instead of the bucket formula."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.reach = int(encoder.config.max_position_embeddings)
        distance = torch.arange(-self.reach + 1, self.reach)
        bucket = encoder.encoder.relative_position_bucket(
            distance, num_buckets=encoder.config.relative_attention_num_buckets
        )
        with torch.no_grad():
            table = encoder.encoder.relative_attention_bias(bucket)
        self.register_buffer("table", table.detach().clone(), persistent=False)

    def forward(self, positions_t: Tensor) -> Tensor:
        """Bias (1, heads, T, T) of key minus query position."""
        table: Tensor = self.get_buffer("table")
        distance = positions_t[None, :] - positions_t[:, None] + (self.reach - 1)
        return table[distance].permute(2, 0, 1)[None]


class TextStack(nn.Module):
    """Embeddings and layers on rows (N, D), with the attention's layout left to the caller."""

    def __init__(self, backbone: TextBackbone) -> None:
        super().__init__()
        self.backbone = backbone
        encoder = backbone.encoder
        self.heads = int(encoder.config.num_attention_heads)
        kind = encoder.config.model_type
        self.bias = RelativeBias(encoder) if kind == "mpnet" else None
        # RoBERTa and MPNet number real positions from the padding id upwards.
        self.first_position = 0 if kind == "bert" else int(encoder.config.pad_token_id) + 1

    def embed(self, input_ids_n: Tensor, position_ids_n: Tensor, shapes_n: Tensor | None) -> Tensor:
        """Sum and normalise the embeddings of N steps."""
        parts = self.backbone.encoder.embeddings
        x = parts.word_embeddings(input_ids_n)
        if self.backbone.shapes is not None:
            assert shapes_n is not None
            x = x + self.backbone.shapes(shapes_n)
        x = x + parts.position_embeddings(position_ids_n + self.first_position)
        if hasattr(parts, "token_type_embeddings"):
            x = x + parts.token_type_embeddings.weight[0]
        embedded: Tensor = parts.LayerNorm(x)
        return embedded

    def run(
        self,
        x_nd: Tensor,
        attention_mask: Tensor,
        to_grid: Callable[[Tensor], Tensor],
        to_rows: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """All layers; `to_grid` maps rows (N, D) to (B, T, D) and `to_rows` back."""
        width = x_nd.shape[-1]
        head_width = width // self.heads
        mask = (1.0 - attention_mask.to(x_nd.dtype))[:, None, None, :] * MASKED
        if self.bias is not None:
            positions = torch.arange(attention_mask.shape[1], device=x_nd.device)
            mask = mask + self.bias(positions).to(x_nd.dtype)

        def split(rows: Tensor) -> Tensor:
            grid = to_grid(rows)
            return grid.reshape(*grid.shape[:2], self.heads, head_width).transpose(1, 2)

        for layer in self.backbone.encoder.encoder.layer:
            *qkv, output, norm = _attention(layer)
            query, key, value = (split(linear(x_nd)) for linear in qkv)
            scores = query @ key.transpose(2, 3) * (1.0 / math.sqrt(head_width)) + mask
            mixed = (torch.softmax(scores, dim=-1) @ value).transpose(1, 2)
            mixed = mixed.reshape(*mixed.shape[:2], width)
            x_nd = norm(output(to_rows(mixed)) + x_nd)
            inner = layer.intermediate.intermediate_act_fn(layer.intermediate.dense(x_nd))
            x_nd = layer.output.LayerNorm(layer.output.dense(inner) + x_nd)
        hidden: Tensor = self.backbone.project(x_nd)
        return hidden


class PaddedText(nn.Module):
    """Graph `text`: (B, T) ids and mask to hidden_btd."""

    def __init__(self, backbone: TextBackbone) -> None:
        super().__init__()
        self.stack = TextStack(backbone)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, shape_ids: Tensor | None = None
    ) -> Tensor:
        """Hidden states (B, T, D)."""
        batch, steps = input_ids.shape
        positions = torch.arange(steps, device=input_ids.device).repeat(batch)
        shapes = None if shape_ids is None else shape_ids.reshape(-1)
        x = self.stack.embed(input_ids.reshape(-1), positions, shapes)
        x = self.stack.run(
            x,
            attention_mask,
            lambda rows: rows.reshape(batch, steps, rows.shape[-1]),
            lambda grid: grid.reshape(batch * steps, grid.shape[-1]),
        )
        return x.reshape(batch, steps, x.shape[-1])


class PackedText(nn.Module):
    """Graph `text_packed`: N real steps of any posts to hidden_nd, without padding."""

    def __init__(self, backbone: TextBackbone) -> None:
        super().__init__()
        self.stack = TextStack(backbone)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        pad_index: Tensor,
        unpad_index: Tensor,
        attention_mask: Tensor,
        shape_ids: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (N, D).

        Args:
            input_ids: (N,) int64, the posts' steps one after another.
            position_ids: (N,) int64, position of each step in its post, from 0.
            pad_index: (B, T) int64, row of each step; any row where there is none.
            unpad_index: (N,) int64, position of each row in the flattened (B, T).
            attention_mask: (B, T) int64.
            shape_ids: (N,) int64, only for models with a word-shape embedding.
        """
        x = self.stack.embed(input_ids, position_ids, shape_ids)
        return self.stack.run(
            x,
            attention_mask,
            lambda rows: rows[pad_index],
            lambda grid: grid.reshape(-1, grid.shape[-1])[unpad_index],
        )


class PlainText(nn.Module):
    """Graph `text` of an encoder we do not rewrite: transformers' own forward."""

    def __init__(self, backbone: TextBackbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, shape_ids: Tensor | None = None
    ) -> Tensor:
        """Hidden states (B, T, D)."""
        hidden: Tensor = self.backbone(input_ids, attention_mask, shape_ids)
        return hidden
