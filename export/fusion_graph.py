"""The cross-modal block for export: folded where that is cheaper, padded or packed, same numbers.

Folding. Query, key, value and output maps have no bias, so per head

    scores = (u W_q)(V W_k)^T / sqrt(d_k) = (u A) V^T        A = W_q W_k^T / sqrt(d_k)
    taken  = softmax(scores) (V W_v) W_o  = softmax(scores) V B        B = W_v W_o

with A and B of shape (D, D). Regions then need no projection of their own. It is computed in
float64 with the 1/sqrt(d_k) inside and cast last.

Centring. Softmax ignores a constant added to all scores, and attention weights sum to 1, so V can
be replaced by V - mean(V) if mean(V) sum_h(B_h) is added back. That is exact, and keeps a large
common component of the regions out of low-precision products.
"""

import math

import torch
from torch import Tensor, nn

from amlr.training.model import AmlrModel, CrossModal

# A post of the Twitter corpora has about sixty word-aligned units.
TYPICAL_UNITS = 60


def fold_pays(width: int, heads: int, head_width: int, regions: int) -> bool:
    """Cost rule: multiplications for one post with a new picture, folded against plain.

    Example:
        >>> fold_pays(768, 8, 768, 197), fold_pays(768, 12, 64, 197)
        (True, False)
    """
    inner, folded = heads * head_width, heads * width
    plain = 2 * TYPICAL_UNITS * width * inner + 2 * regions * width * inner
    plain += 2 * TYPICAL_UNITS * regions * inner
    short = 2 * TYPICAL_UNITS * width * folded + 2 * TYPICAL_UNITS * regions * folded
    return short < plain


class FoldedCross(nn.Module):
    """Attention with one (D, D) map per head on either side; see the module docstring."""

    def __init__(self, cross: CrossModal, *, centre: bool = False) -> None:
        super().__init__()
        width, heads, inner = cross.query.in_features, cross.heads, cross.head_width
        self.heads, self.centre = heads, centre

        def by_head(linear: nn.Linear) -> Tensor:
            return linear.weight.detach().double().view(heads, inner, width)

        query, key, value = by_head(cross.query), by_head(cross.key), by_head(cross.value)
        output = cross.output.weight.detach().double().view(width, heads, inner).permute(1, 2, 0)
        into = query.transpose(1, 2) @ key / math.sqrt(inner)  # A (h, D, D)
        out = value.transpose(1, 2) @ output  # B (h, D, D)
        dtype = cross.query.weight.dtype
        self.into = _linear(into.transpose(1, 2).reshape(heads * width, width).to(dtype))
        self.out = _linear(out.permute(2, 0, 1).reshape(width, heads * width).to(dtype))
        self.mean_out = _linear(out.sum(0).t().to(dtype)) if centre else None

    def queries(self, units_rd: Tensor) -> Tensor:
        """(R, D) to (R, h * D)."""
        projected: Tensor = self.into(units_rd)
        return projected

    def scores(self, queries_isx: Tensor, regions_ipd: Tensor) -> Tensor:
        """Attention weights (I, S * h, P)."""
        batch, slots, _ = queries_isx.shape
        query = queries_isx.reshape(batch, slots * self.heads, regions_ipd.shape[-1])
        return torch.softmax(query @ regions_ipd.transpose(1, 2), dim=-1)

    def mix(self, queries_isx: Tensor, regions_ipd: Tensor) -> Tensor:
        """Context (I * S, h * D) of padded queries (I, S, h * D)."""
        batch, slots, inner = queries_isx.shape
        mixed = self.scores(queries_isx, regions_ipd) @ regions_ipd
        return mixed.reshape(batch * slots, inner)

    def finish(self, mixed_rx: Tensor) -> Tensor:
        """(R, h * D) to (R, D)."""
        taken: Tensor = self.out(mixed_rx)
        return taken


class PlainCross(nn.Module):
    """The same steps without folding, for many narrow heads."""

    def __init__(self, cross: CrossModal, *, centre: bool = False) -> None:
        super().__init__()
        self.cross, self.centre = cross, centre
        self.heads, self.inner = cross.heads, cross.head_width
        out: Tensor | None = None
        if centre:
            out = cross.output.weight.detach().double() @ cross.value.weight.detach().double()
        self.mean_out = None if out is None else _linear(out.to(cross.query.weight.dtype))

    def _split(self, rows: Tensor) -> Tensor:
        return rows.reshape(*rows.shape[:2], self.heads, self.inner).transpose(1, 2)

    def queries(self, units_rd: Tensor) -> Tensor:
        """(R, D) to (R, h * d_k)."""
        projected: Tensor = self.cross.query(units_rd)
        return projected

    def scores(self, queries_isx: Tensor, regions_ipd: Tensor) -> Tensor:
        """Attention weights (I, S * h, P), heads of one unit beside each other."""
        key = self._split(self.cross.key(regions_ipd))
        scores = self._split(queries_isx) @ key.transpose(2, 3) * (1.0 / math.sqrt(self.inner))
        weights = torch.softmax(scores, dim=-1).transpose(1, 2)
        # Explicit sizes everywhere: a batch without pictures makes these arrays empty.
        batch, slots, _ = queries_isx.shape
        return weights.reshape(batch, slots * self.heads, regions_ipd.shape[1])

    def mix(self, queries_isx: Tensor, regions_ipd: Tensor) -> Tensor:
        """Context (I * S, h * d_k) of padded queries (I, S, h * d_k)."""
        batch, slots, inner = queries_isx.shape
        weights = self.scores(queries_isx, regions_ipd)
        weights = weights.reshape(batch, slots, self.heads, regions_ipd.shape[1])
        weights = weights.transpose(1, 2)
        mixed = weights @ self._split(self.cross.value(regions_ipd))
        return mixed.transpose(1, 2).reshape(batch * slots, inner)

    def finish(self, mixed_rx: Tensor) -> Tensor:
        """(R, h * d_k) to (R, D)."""
        taken: Tensor = self.cross.output(mixed_rx)
        return taken


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    return linear


class Block(nn.Module):
    """What both fusion graphs share: cross attention, the constant, classifier and token head."""

    def __init__(self, model: AmlrModel, *, fold: bool, centre: bool = False) -> None:
        super().__init__()
        self.model = model
        self.cross = (FoldedCross if fold else PlainCross)(model.cross, centre=centre)
        cross = model.cross
        value = cross.value.weight.detach().double() @ cross.no_image.detach().double()
        constant = cross.output.weight.detach().double() @ value
        self.register_buffer("constant", constant.to(cross.no_image.dtype), persistent=False)

    def centred(self, regions_npd: Tensor) -> tuple[Tensor, Tensor | None]:
        """Regions without their mean, and what the mean adds to every unit (N, D)."""
        if self.cross.mean_out is None:
            return regions_npd, None
        mean = regions_npd.mean(dim=1, keepdim=True)
        return regions_npd - mean, self.cross.mean_out(mean[:, 0])


class _OnBlock(nn.Module):
    """A graph of a block."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block, self.scales = block, block.model.config.scales


class PaddedFusion(_OnBlock):
    """Graph `fusion`: padded hidden states, chosen units by index, one picture slot a post."""

    def forward(
        self, hidden_btd: Tensor, unit_index_bs: Tensor, pool_npd: Tensor, slot_b: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Unit logits (B, S, 1+C) and emissions (B, T, Y).

        Args:
            hidden_btd: (B, T, D) with T at least K.
            unit_index_bs: (B, S) int64 into the scale-major units of T steps.
            pool_npd: (N, P, D) regions of N pictures.
            slot_b: (B,) int64 into the pool, -1 for a post without a picture.
        """
        model, cross = self.block.model, self.block.cross
        width = hidden_btd.shape[-1]
        batch, slots = unit_index_bs.shape
        units = model.units(hidden_btd)
        index = unit_index_bs[:, :, None].expand(batch, slots, width)
        units = torch.gather(units, 1, index).reshape(batch * slots, width)
        has_image = (slot_b >= 0)[:, None, None]
        # Gathered before centring: a device's pool holds many more pictures than one batch shows.
        regions, shift = self.block.centred(pool_npd[slot_b.clamp(min=0)])
        queries = cross.queries(units)
        mixed = cross.mix(queries.reshape(batch, slots, queries.shape[-1]), regions)
        taken = cross.finish(mixed).reshape(batch, slots, width)
        if shift is not None:
            taken = taken + shift[:, None, :]
        constant = self.block.get_buffer("constant")
        taken = torch.where(has_image, taken, constant)
        logits = model.classify(units, taken.reshape(batch * slots, width))
        emissions = model.token_head(hidden_btd.reshape(-1, width))
        steps = hidden_btd.shape[1]
        return (
            logits.reshape(batch, slots, logits.shape[-1]),
            emissions.reshape(batch, steps, emissions.shape[-1]),
        )


class PackedFusion(_OnBlock):
    """Graph `fusion_packed`: only the chosen windows, no padding in any matrix product."""

    def forward(self, hidden_nd: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Unit logits (M, 1+C) and emissions (N, Y).

        Args:
            hidden_nd: (N, D) steps of any posts.
            *inputs: `rows_k` (n_k, k) per scale, then attend_rows_r (R,) the units that have a
                picture, attend_pad_is (I, S) positions in attend_rows_r for each post with a
                picture, attend_unpad_r (R,) each one's place in the flattened (I, S), pool_npd
                (N, P, D), slot_i (I,), and context_index_m (M,) each unit's place in
                attend_rows_r, or R for "no picture".
        """
        rows = list(inputs[: self.scales])
        attend_rows, pad, unpad, pool, slot, context_index = inputs[self.scales :]
        model, cross = self.block.model, self.block.cross
        units = model.units.select(hidden_nd, rows)
        regions, shift = self.block.centred(pool)
        queries = cross.queries(units[attend_rows])
        taken = cross.finish(cross.mix(queries[pad], regions[slot])[unpad])
        if shift is not None:
            owner = torch.div(unpad, pad.shape[1], rounding_mode="floor")
            taken = taken + shift[slot[owner]]
        constant = self.block.get_buffer("constant")[None]
        taken = torch.cat([taken, constant], dim=0)[context_index]
        return model.classify(units, taken), model.token_head(hidden_nd)


class ClosedFusion(_OnBlock):
    """Graph `fusion_closed`: as `fusion_packed` where no post has a picture, without attention."""

    def forward(self, hidden_nd: Tensor, *rows: Tensor) -> tuple[Tensor, Tensor]:
        """Unit logits (M, 1+C) and emissions (N, Y); `rows_k` (n_k, k) as in `fusion_packed`."""
        model = self.block.model
        units = model.units.select(hidden_nd, list(rows[: self.scales]))
        constant = self.block.get_buffer("constant")[None]
        return model.classify(units, constant), model.token_head(hidden_nd)


class AttentionMap(_OnBlock):
    """Graph `attention`: where in the picture each chosen unit looked, mean over heads."""

    def forward(self, hidden_nd: Tensor, *inputs: Tensor) -> Tensor:
        """Attention (I, S, P); inputs as `fusion_packed` without unpadding and context index."""
        rows = list(inputs[: self.scales])
        attend_rows, pad, pool, slot = inputs[self.scales :]
        units = self.block.model.units.select(hidden_nd, rows)
        regions, _ = self.block.centred(pool)
        queries = self.block.cross.queries(units[attend_rows])
        weights = self.block.cross.scores(queries[pad], regions[slot])
        batch, slots = pad.shape
        heads = self.block.cross.heads
        return weights.reshape(batch, slots, heads, weights.shape[-1]).mean(dim=2)
