"""Losses against plain enumeration and against pytorch-crf."""

import itertools
import math
from typing import Any

import pytest
import torch

from amlr.training.losses import crf_nll, segmental_nll, span_cross_entropy


def test_crf_nll_equals_pytorch_crf() -> None:
    torchcrf: Any = pytest.importorskip("torchcrf")
    generator = torch.Generator().manual_seed(3)
    emissions = torch.randn(4, 7, 5, generator=generator)
    tags = torch.randint(0, 5, (4, 7), generator=generator)
    mask = torch.arange(7)[None] < torch.tensor([7, 1, 4, 6])[:, None]
    crf = torchcrf.CRF(5, batch_first=True)
    for reduction in ("mean", "sum"):
        ours = crf_nll(
            emissions,
            tags,
            mask,
            start_y=crf.start_transitions,
            transitions_yy=crf.transitions,
            end_y=crf.end_transitions,
            reduction=reduction,
        )
        theirs = -crf(emissions, tags, mask=mask, reduction=reduction)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def _every_segmentation(words: int, units: dict[tuple[int, int], int]) -> Any:
    """All sets of non-overlapping units, as lists of unit numbers."""
    numbers = list(units.items())
    for size in range(len(numbers) + 1):
        for chosen in itertools.combinations(numbers, size):
            covered = [word for (start, end), _ in chosen for word in range(start, end + 1)]
            if len(covered) == len(set(covered)) and all(word < words for word in covered):
                yield [number for _, number in chosen]


def test_segmental_nll_equals_enumeration() -> None:
    generator = torch.Generator().manual_seed(5)
    longest, classes = 2, 2
    posts = [
        (3, {(0, 0): 0, (1, 1): 1, (2, 2): 2, (0, 1): 3, (1, 2): 4}, {4: 2}),
        (2, {(0, 0): 0, (0, 1): 1}, {0: 1}),
    ]
    logits = torch.randn(2, 6, 1 + classes, generator=generator)
    cells = torch.full((2, 6), -1)
    target = torch.zeros(2, 6, dtype=torch.long)
    expected = []
    for row, (words, units, gold) in enumerate(posts):
        for (start, end), number in units.items():
            cells[row, number] = end * longest + end - start
        for number, label in gold.items():
            target[row, number] = label
        odds = (logits[row, :, 1:] - logits[row, :, :1]).tolist()
        total = sum(
            math.exp(sum(odds[number][label] for number, label in zip(chosen, picked, strict=True)))
            for chosen in _every_segmentation(words, units)
            for picked in itertools.product(range(classes), repeat=len(chosen))
        )
        expected.append(math.log(total) - sum(odds[n][label - 1] for n, label in gold.items()))
    lengths = torch.tensor([3, 2])
    for reduction, value in (("mean", sum(expected) / 2), ("sum", sum(expected))):
        loss = segmental_nll(
            logits,
            target,
            cells,
            lengths,
            chart_size=(3, longest),
            reduction=reduction,  # type: ignore[arg-type]
        )
        assert float(loss) == pytest.approx(value, rel=1e-5)


def test_span_cross_entropy_weights_entities_as_the_release() -> None:
    logits = torch.tensor([[[2.0, 0.0], [0.0, 1.0], [9.0, 9.0]]])
    target = torch.tensor([[0, 1, 1]])
    mask = torch.tensor([[True, True, False]])
    none, entity = math.log(1 + math.exp(-2)), math.log(1 + math.exp(-1))
    total = span_cross_entropy(logits, target, mask, entity_weight=10.0, reduction="sum")
    assert float(total) == pytest.approx(none + 10 * entity, rel=1e-6)
    mean = span_cross_entropy(logits, target, mask, entity_weight=10.0)
    assert float(mean) == pytest.approx((none + 10 * entity) / 11, rel=1e-6)
