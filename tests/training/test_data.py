"""Examples, batches and pictures."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from amlr.errors import InputError
from amlr.runtime.image import ImageSpec
from amlr.training.conll import ImageFolder, LabelledPost
from amlr.training.data import (
    Batch,
    Example,
    Pictures,
    Scope,
    collate,
    length_batches,
    make_corpus,
)
from amlr.training.scorer import Scorer
from corpora import first_posts
from tiny import tiny_checkpoint


def _examples(posts: list[LabelledPost], scope: Scope) -> Sequence[Example]:
    return make_corpus(posts, tiny_checkpoint(), None, scope).examples


@pytest.mark.parametrize("scope", ["all", "aligned"])
def test_gold_units_are_the_corpus_entities(scope: Scope) -> None:
    posts = first_posts(4)
    labels = tiny_checkpoint().config.labels
    for post, example in zip(posts, _examples(posts, scope), strict=True):
        units = example.units
        rows = np.flatnonzero(example.target_s).tolist()
        entities = {
            (
                int(units.start_word_u[row]),
                int(units.end_word_u[row]) + 1,
                labels[example.target_s[row] - 1],
            )
            for row in rows
        }
        assert entities == set(post.entities)
        # Words and steps of an aligned unit belong together.
        aligned = units.start_word_u >= 0
        window = example.window
        first = window.first_n[units.start_word_u[aligned]]
        last = window.last_n[units.end_word_u[aligned]]
        assert units.start_step_u[aligned].tolist() == first.tolist()
        assert units.end_step_u[aligned].tolist() == last.tolist()
        assert scope == "all" or aligned.all()


def test_cells_are_places_in_the_chart() -> None:
    examples = _examples(first_posts(4), "all")
    batch = collate(examples, 6, 0, [None] * 4)
    for row, example in enumerate(examples):
        units = example.units
        for cell, start, end in zip(
            batch.cell_bs[row].tolist(), units.start_word_u, units.end_word_u, strict=False
        ):
            assert cell == (-1 if start < 0 else end * 6 + end - start)
        assert (batch.cell_bs[row, len(units) :] == -1).all()


def test_all_units_leave_special_tokens_out() -> None:
    (example,) = _examples(first_posts(1), "all")
    inner = len(example) - 2
    units = example.units
    assert len(units) == sum(max(0, inner - k) for k in range(6))
    assert units.start_step_u.min() == 1
    assert units.end_step_u.max() == len(example) - 2


def test_stray_continuations_are_read_as_beginnings() -> None:
    (example,) = _examples([first_posts(4)[3]], "aligned")
    tags = tiny_checkpoint().config.tags
    assert [tags[tag] for tag in example.tags_n] == ["B-LOC", "I-LOC", "O"]


def test_types_are_renamed_or_refused() -> None:
    post = LabelledPost(words=("a",), tags=("B-MISC",))
    (example,) = _examples([post], "aligned")
    assert example.target_s.max() == 4
    with pytest.raises(InputError, match="food"):
        _examples([LabelledPost(words=("a",), tags=("B-food",))], "aligned")


def test_batches_cover_everything_once_and_group_lengths() -> None:
    rng = np.random.default_rng(4)
    lengths = rng.integers(3, 60, 500).tolist()
    batches = length_batches(lengths, 8, np.random.default_rng(1))
    assert Counter(i for batch in batches for i in batch) == Counter(range(500))
    assert batches == length_batches(lengths, 8, np.random.default_rng(1))
    assert batches != length_batches(lengths, 8, np.random.default_rng(2))
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    assert padded < 1.15 * sum(lengths)


def test_a_batch_scores_the_same_units_as_each_post_alone() -> None:
    checkpoint = tiny_checkpoint()
    scorer = Scorer(checkpoint.build_model()).eval()
    examples = _examples(first_posts(4), "all")
    picture = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(2))

    def score(chosen: Sequence[Example]) -> tuple[Batch, list[torch.Tensor]]:
        batch = collate(chosen, 6, 0, [picture if e.post % 2 else None for e in chosen])
        with torch.no_grad():
            output = scorer(batch)
        return batch, [output.unit_logits, output.emissions]

    batch, (logits, emissions) = score(examples)
    assert batch.images is not None
    assert len(batch.images) == 1
    assert batch.image_index_b.tolist() == [-1, 0, -1, 0]
    for row, example in enumerate(examples):
        _, (alone, alone_emissions) = score([example])
        kept = len(example.units)
        torch.testing.assert_close(logits[row, :kept], alone[0], rtol=0, atol=1e-5)
        words = len(example.tags_n)
        torch.testing.assert_close(emissions[row, :words], alone_emissions[0], rtol=0, atol=1e-5)


def test_features_give_the_same_scores_as_pixels() -> None:
    checkpoint = tiny_checkpoint()
    scorer = Scorer(checkpoint.build_model()).eval()
    examples = _examples(first_posts(2), "aligned")
    pixels = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        features = scorer.model.image.features(pixels[None])[0]
        outputs = [
            scorer(collate(examples, 6, 0, [picture, picture])).unit_logits
            for picture in (pixels, features)
        ]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-6)


def test_broken_pictures_are_counted_and_left_out(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (200, 10, 10)).save(tmp_path / "good.jpg")
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8 no picture")
    posts = [
        LabelledPost(words=("a",), tags=("O",), image_id=name) for name in ("good", "bad", "gone")
    ]
    pictures = Pictures(ImageFolder(root=tmp_path), ImageSpec(size=16), posts)
    pixels = pictures.get("good")
    assert pixels is not None
    assert pixels.shape == (3, 16, 16)
    backbone = tiny_checkpoint().build_model().image
    pictures.precompute(backbone, batch_size=1)
    features = pictures.get("good")
    assert features is not None
    with torch.no_grad():
        assert torch.equal(features, backbone.features(pixels[None])[0])
    assert pictures.get("bad") is None
    assert pictures.get(None) is None
    report = pictures.folder.report()
    assert (report["found"], report["missing"], report["unreadable_ids"]) == (1, 1, ["bad"])
    assert (
        pictures.folder.summary()
        == "pictures: 1 found, 1 missing, 1 unreadable (unreadable: bad ...)"
    )
