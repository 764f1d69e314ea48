"""Losses of the span head (class-weighted cross-entropy or segmental CRF) and of the token head.

Shape letters: B posts, S scored units of a post, N words, K units that end at one word, C classes,
Y tags. All losses are computed in float32 whatever the encoders run in.
"""

import torch
import torch.nn.functional as functional
from torch import Tensor

from amlr.training.settings import Reduction

# Finite, so that a masked score never turns a gradient into NaN.
_IMPOSSIBLE = -1e4


def span_cross_entropy(
    unit_logits_bsc: Tensor,
    target_bs: Tensor,
    mask_bs: Tensor,
    *,
    entity_weight: float = 10.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy of every unit, entity classes weighted against "none".

    Args:
        unit_logits_bsc: Raw unit logits (B, S, 1+C), "none" first.
        target_bs: Class of each unit, int64, 0 for none.
        mask_bs: True where a unit exists.
        entity_weight: Weight of every entity class; the release uses 10.
        reduction: `sum` over the batch is the release's form; `mean` divides by the sum of the
            weights, so that the loss does not grow with the batch or the posts' length.

    Returns:
        Scalar.
    """
    weight = unit_logits_bsc.new_full((unit_logits_bsc.shape[-1],), entity_weight)
    weight[0] = 1.0
    return functional.cross_entropy(
        unit_logits_bsc[mask_bs].float(),
        target_bs[mask_bs],
        weight=weight.float(),
        reduction=reduction,
    )


def segmental_nll(
    unit_logits_bsc: Tensor,
    target_bs: Tensor,
    cell_bs: Tensor,
    lengths_b: Tensor,
    *,
    chart_size: tuple[int, int],
    reduction: Reduction = "mean",
) -> Tensor:
    """Negative log-likelihood of the gold segmentation among all of a post.

    A segmentation is a set of non-overlapping word-aligned units with one entity class each; its
    score is the sum of z_class - z_none; words in no unit score 0. The normaliser

        F[0] = 0,  F[j] = logsumexp(F[j-1], F[i] + s(i, j, c) over units i..j and classes c)

    runs over words. An entity too long for any unit cannot be reached and counts as none.

    Args:
        unit_logits_bsc: Raw unit logits (B, S, 1+C).
        target_bs: Class of each unit in the gold segmentation, int64, 0 for not in it.
        cell_bs: Place of each unit in the chart, int64, `end_word * K + word_length - 1`; -1 for
            padding and for units that cut words.
        lengths_b: Words of each post, int64.
        chart_size: (N, K).
        reduction: Mean or sum over posts.

    Returns:
        Scalar.
    """
    logits = unit_logits_bsc.float()
    odds_bsc = logits[..., 1:] - logits[..., :1]
    exists_bs = cell_bs >= 0
    gold_bs = odds_bsc.gather(-1, (target_bs - 1).clamp(min=0)[..., None])[..., 0]
    gold_b = (gold_bs * ((target_bs > 0) & exists_bs)).sum(1)

    words, longest = chart_size
    batch = logits.shape[0]
    # One spare cell takes what does not exist.
    cells = words * longest + 1
    index_bs = torch.where(exists_bs, cell_bs, cells - 1)
    chart = odds_bsc.new_full((batch, cells), _IMPOSSIBLE)
    chart = chart.scatter(1, index_bs, torch.logsumexp(odds_bsc, dim=-1))[:, :-1]
    chart_bnk = chart.reshape(batch, words, longest)

    forward = [chart.new_zeros(batch)]
    for end in range(words):
        reach = min(longest, end + 1)
        before_bk = torch.stack(forward[end - reach + 1 : end + 1][::-1], dim=1)
        terms = torch.cat([forward[end][:, None], before_bk + chart_bnk[:, end, :reach]], dim=1)
        forward.append(torch.logsumexp(terms, dim=1))
    total_b = torch.stack(forward, dim=1).gather(1, lengths_b[:, None])[:, 0]
    nll_b = total_b - gold_b
    return nll_b.mean() if reduction == "mean" else nll_b.sum()


def crf_nll(
    emissions_bny: Tensor,
    tags_bn: Tensor,
    mask_bn: Tensor,
    *,
    start_y: Tensor,
    transitions_yy: Tensor,
    end_y: Tensor,
    reduction: Reduction = "mean",
) -> Tensor:
    """Negative log-likelihood of the gold tags under a linear-chain CRF over words.

    Args:
        emissions_bny: Tag scores of each word's first subword, (B, N, Y).
        tags_bn: Gold tags, int64.
        mask_bn: True where a word exists; the first word of every post must.
        start_y: Scores of the first tag.
        transitions_yy: Score of tag i (row) to tag j (column).
        end_y: Scores of the last tag.
        reduction: Mean or sum over posts.

    Returns:
        Scalar.
    """
    emissions = emissions_bny.float()
    mask = mask_bn.to(emissions.dtype)
    lengths_b = mask_bn.sum(1)

    scores_bn = emissions.gather(-1, tags_bn[..., None])[..., 0] * mask
    moves_bn = transitions_yy[tags_bn[:, :-1], tags_bn[:, 1:]] * mask[:, 1:]
    last_b = tags_bn.gather(1, (lengths_b - 1)[:, None])[:, 0]
    gold_b = start_y[tags_bn[:, 0]] + scores_bn.sum(1) + moves_bn.sum(1) + end_y[last_b]

    alpha_by = start_y + emissions[:, 0]
    for step in range(1, emissions.shape[1]):
        moved_by = torch.logsumexp(alpha_by[:, :, None] + transitions_yy, dim=1)
        alpha_by = torch.where(mask_bn[:, step, None], moved_by + emissions[:, step], alpha_by)
    nll_b = torch.logsumexp(alpha_by + end_y, dim=1) - gold_b
    return nll_b.mean() if reduction == "mean" else nll_b.sum()
