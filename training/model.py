"""The AMLR model: multi-scale text units that look at image regions, a span head and a token head.

    hidden  = text(input_ids)                                     (B, T, D)
    regions = image(pixel_values)                                 (B, P, D)
    u_k,i   = W_k [hidden_i; ...; hidden_(i+k-1)] + b_k           k = 1..K, scale 1 is hidden itself
    Z       = LayerNorm(u + MultiHead(Q = u, K = V = regions))
    unit_logits = W_c Z + b_c                                     "span" head, (B, U, 1 + C)
    emissions   = W_t hidden + b_t                                "token" head, (B, T, Y)

Units are scale-major: all starts of scale 1, then of scale 2, ...; U = sum over k of (T - k + 1).
A post without a picture attends to one learned region. Softmax over one region is 1, so the
attention's output is the constant m = W_fc W_v r and Z = LayerNorm(u + m).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amlr.training.backbones import ImageBackbone, TextBackbone
from amlr.training.config import AmlrConfig


@dataclass(frozen=True, slots=True)
class AmlrOutput:
    """Raw scores of one batch: unit_logits (B, U, 1+C) and emissions (B, T, Y)."""

    unit_logits: Tensor
    emissions: Tensor


class Units(nn.Module):
    """Windows of k = 2..K hidden states, each scale with its own linear map kD -> D."""

    def __init__(self, width: int, scales: int) -> None:
        super().__init__()
        self.width = width
        self.maps = nn.ModuleList(nn.Linear(k * width, width) for k in range(2, scales + 1))

    def forward(self, hidden_btd: Tensor) -> Tensor:
        """All units of every start, (B, U, D); scales longer than T have none."""
        batch, steps, width = hidden_btd.shape
        parts = [hidden_btd]
        for k, linear in enumerate(self.maps, start=2):
            if steps < k:
                break
            windows = [hidden_btd[:, j : steps - k + 1 + j] for j in range(k)]
            # On rows, as in `select`: exported graphs then share one copy of each weight.
            rows = torch.cat(windows, dim=-1).reshape(-1, k * width)
            parts.append(linear(rows).reshape(batch, -1, width))
        return torch.cat(parts, dim=1)

    def select(self, hidden_nd: Tensor, rows: list[Tensor]) -> Tensor:
        """Only the chosen units.

        Args:
            hidden_nd: Hidden states of any number of posts, one row a step.
            rows: Per scale k = 1..K the row indices (n_k, k) of each unit's steps.

        Returns:
            (n_1 + ... + n_K, D) in the order of `rows`.
        """
        parts = [hidden_nd[rows[0].reshape(-1)]]
        for k, (linear, index_uk) in enumerate(zip(self.maps, rows[1:], strict=True), start=2):
            window = hidden_nd[index_uk.reshape(-1)].reshape(-1, k * self.width)
            parts.append(linear(window))
        return torch.cat(parts, dim=0)


class CrossModal(nn.Module):
    """Multi-head attention from units to regions, without biases, and the LayerNorm after it."""

    def __init__(self, config: AmlrConfig) -> None:
        super().__init__()
        width, inner = config.width, config.heads * config.head_width
        self.heads, self.head_width = config.heads, config.head_width
        self.query = nn.Linear(width, inner, bias=False)
        self.key = nn.Linear(width, inner, bias=False)
        self.value = nn.Linear(width, inner, bias=False)
        self.output = nn.Linear(inner, width, bias=False)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.no_image = nn.Parameter(torch.zeros(width))
        self.dropout = nn.Dropout(config.dropout)
        for linear in (self.query, self.key, self.value):
            nn.init.normal_(linear.weight, std=math.sqrt(2.0 / (width + config.head_width)))
        nn.init.xavier_normal_(self.output.weight)
        nn.init.normal_(self.no_image, std=0.02)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, self.head_width).transpose(1, 2)

    def weights(self, units_bud: Tensor, regions_bpd: Tensor) -> Tensor:
        """Attention weights (B, heads, U, P)."""
        query, key = self._split(self.query(units_bud)), self._split(self.key(regions_bpd))
        scores = query @ key.transpose(2, 3) / math.sqrt(self.head_width)
        return torch.softmax(scores, dim=-1)

    def attend(self, units_bud: Tensor, regions_bpd: Tensor) -> Tensor:
        """What each unit takes from its picture, (B, U, D)."""
        weights: Tensor = self.dropout(self.weights(units_bud, regions_bpd))
        mixed = weights @ self._split(self.value(regions_bpd))
        taken: Tensor = self.dropout(self.output(mixed.transpose(1, 2).flatten(2)))
        return taken

    def constant(self) -> Tensor:
        """Return m (D,): what every unit takes from the one learned "no image" region."""
        constant: Tensor = self.output(self.value(self.no_image))
        return constant


class AmlrModel(nn.Module):
    """Text and image encoders, the cross-modal block and both heads."""

    def __init__(self, config: AmlrConfig) -> None:
        super().__init__()
        self.config = config
        self.text = TextBackbone(config.text_encoder, config.width, config.shape_classes)
        self.image = ImageBackbone(config.image_encoder, config.width)
        self.units = Units(config.width, config.scales)
        self.cross = CrossModal(config)
        self.span_head = nn.Linear(config.width, len(config.classes))
        self.token_head = nn.Linear(config.width, len(config.tags))
        tags = len(config.tags)
        self.crf_start = nn.Parameter(torch.empty(tags).uniform_(-0.1, 0.1))
        self.crf_end = nn.Parameter(torch.empty(tags).uniform_(-0.1, 0.1))
        self.crf_transitions = nn.Parameter(torch.empty(tags, tags).uniform_(-0.1, 0.1))
        self.dropout = nn.Dropout(config.dropout)

    def classify(self, units_ud: Tensor, taken_ud: Tensor) -> Tensor:
        """Raw unit logits (..., 1+C) from units and what they took from the picture."""
        logits: Tensor = self.span_head(self.cross.norm(units_ud + taken_ud))
        return logits

    def take(
        self, units_bud: Tensor, regions_npd: Tensor | None, image_index_b: Tensor | None
    ) -> Tensor:
        """What each unit takes from its post's picture, or the constant where there is none.

        Args:
            units_bud: (B, U, D).
            regions_npd: Regions of the batch's pictures, (N, P, D), or None.
            image_index_b: (B,) int64, row of each post's picture in `regions_npd`, -1 for none.

        Returns:
            (B, U, D).
        """
        constant = self.cross.constant().to(units_bud.dtype)
        taken = constant.expand_as(units_bud)
        if regions_npd is None or image_index_b is None:
            return taken
        seen = (image_index_b >= 0).nonzero()[:, 0]
        if not len(seen):
            return taken
        attended = self.cross.attend(units_bud[seen], regions_npd[image_index_b[seen]])
        return taken.index_copy(0, seen, attended.to(taken.dtype))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor | None = None,
        image_index_b: Tensor | None = None,
        shape_ids: Tensor | None = None,
    ) -> AmlrOutput:
        """Score every unit and every step of a padded batch.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, T) int64.
            pixel_values: (N, 3, H, W) float32, the batch's distinct pictures, or None.
            image_index_b: (B,) int64 into `pixel_values`, -1 for a post without a picture.
            shape_ids: (B, T) int64, only for models with a word-shape embedding.

        Returns:
            Raw logits; units that touch a masked step mean nothing and must be dropped.
        """
        hidden = self.dropout(self.text(input_ids, attention_mask, shape_ids))
        regions = None if pixel_values is None else self.image(pixel_values)
        units = self.units(hidden)
        taken = self.take(units, regions, image_index_b)
        return AmlrOutput(self.classify(units, taken), self.token_head(hidden))
