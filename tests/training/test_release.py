"""The published release's state_dict: recognised, mapped without loss, same numbers."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from amlr.errors import CheckpointError
from amlr.training.checkpoint import Checkpoint, save_checkpoint
from amlr.training.release import ReleaseOptions, load_any_checkpoint
from release_model import random_release, release_forward
from tiny import tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as transformers writes it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "tokenizer.json").write_text(tiny_tokenizer().to_str())
    settings = {
        "tokenizer_class": "BertTokenizer",
        "unk_token": "[UNK]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    return folder


def _load(path: Path, weights: Any, tokenizer: Path, **options: Any) -> Checkpoint:
    torch.save(weights, path)
    return load_any_checkpoint(path, ReleaseOptions(tokenizer=str(tokenizer), **options))


def test_numbers_equal_a_plainly_written_forward_pass(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    weights = random_release()
    checkpoint = _load(tmp_path / "release.pt", weights, tokenizer_folder)
    model = checkpoint.build_model()
    ids = torch.tensor([2, 10, 17, 300, 41, 9, 88, 3])
    pixels = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(1))
    unit_logits, emissions = release_forward(weights, ids, pixels)
    # In a padded batch beside another post, as the runtime would.
    batch = torch.zeros(2, 11, dtype=torch.long)
    batch[0, : len(ids)] = ids
    batch[1] = torch.arange(11) + 2
    mask = (torch.arange(11)[None] < torch.tensor([[8], [11]])).long()
    with torch.no_grad():
        output = model(batch, mask, pixels[None], torch.tensor([0, 0]))
    rows = [
        scale * 11 - scale * (scale - 1) // 2 + start
        for scale in range(6)
        for start in range(len(ids) - scale)
    ]
    ours, theirs = (
        torch.softmax(logits, -1) for logits in (output.unit_logits[0, rows], unit_logits)
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    torch.testing.assert_close(output.emissions[0, : len(ids)], emissions, rtol=1e-4, atol=1e-4)


def test_sizes_come_from_the_tensors_and_the_rest_from_the_release(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    weights = random_release(width=64, layers=3, heads=5, scales=4)
    checkpoint = _load(tmp_path / "release.pt", weights, tokenizer_folder)
    config = checkpoint.config
    assert (config.width, config.scales, config.heads, config.head_width) == (64, 4, 5, 64)
    assert config.text_encoder["num_hidden_layers"] == 3
    assert config.image_encoder["image_size"] == 32
    assert config.classes == ("none", "PER", "LOC", "ORG", "OTHER")
    assert config.tags[9:] == ("X", "[CLS]", "[SEP]", "PAD")
    assert config.layer_norm_eps == 1e-6
    assert (checkpoint.decoder.kind, checkpoint.decoder.weight) == ("segmental", 0.0)
    assert checkpoint.decoder.bias == pytest.approx(math.log(10))
    assert checkpoint.image.mean[0] == pytest.approx(0.48145466)
    assert (checkpoint.image.size, checkpoint.image.resize) == (32, "squash")


def test_every_number_of_the_release_arrives(tmp_path: Path, tokenizer_folder: Path) -> None:
    weights = random_release(width=64, layers=1)
    checkpoint = _load(tmp_path / "release.pt", weights, tokenizer_folder)

    def total(tensors: dict[str, Tensor]) -> float:
        return float(sum(value.double().abs().sum() for value in tensors.values()))

    unused = ("text_encoder.pooler", "vit.vit.head")
    used = {name: value for name, value in weights.items() if not name.startswith(unused)}
    assert total(dict(checkpoint.weights)) == pytest.approx(total(used), rel=1e-12)


def test_options_override_what_the_state_dict_lacks(tmp_path: Path, tokenizer_folder: Path) -> None:
    labels = ("person", "place", "company", "misc")
    checkpoint = _load(
        tmp_path / "release.pt",
        random_release(width=64, layers=1),
        tokenizer_folder,
        labels=labels,
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
    )
    assert checkpoint.config.labels == labels
    assert checkpoint.config.tags[1] == "B-person"
    assert checkpoint.image.std == (0.5, 0.5, 0.5)
    with pytest.raises(CheckpointError, match="--labels"):
        _load(
            tmp_path / "release.pt",
            random_release(width=64, layers=1),
            tokenizer_folder,
            labels=("one",),
        )


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("span_3.weight", None, "Missing"),
        ("vit.vit.blocks.0.attn.proj.weight", torch.zeros(3, 3), "shape"),
        ("optimizer.step", torch.zeros(1), "unknown tensor"),
        ("vit.vit.pos_embed", torch.zeros(1, 4, 64), "no square"),
    ],
)
def test_damage_is_named(
    tmp_path: Path, tokenizer_folder: Path, name: str, value: Tensor | None, message: str
) -> None:
    weights = random_release(width=64, layers=1)
    if value is None:
        del weights[name]
    else:
        weights[name] = value
    with pytest.raises(CheckpointError, match=message):
        _load(tmp_path / "release.pt", weights, tokenizer_folder)


def test_the_converted_release_is_an_ordinary_checkpoint(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    checkpoint = _load(
        tmp_path / "release.pt", random_release(width=64, layers=1), tokenizer_folder
    )
    save_checkpoint(tmp_path / "best.pt", checkpoint)
    again = load_any_checkpoint(tmp_path / "best.pt")
    assert again.config == checkpoint.config
    assert again.decoder == checkpoint.decoder
    assert again.token_ids == checkpoint.token_ids
