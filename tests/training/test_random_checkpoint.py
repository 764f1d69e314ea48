"""`amlr-train --random`: weights that only the configuration and the seed decide."""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from amlr.runtime.image import ImageSpec
from amlr.training.checkpoint import Checkpoint, save_checkpoint
from amlr.training.cli import train_command
from amlr.training.random_checkpoint import is_random, random_checkpoint, random_weights
from amlr.training.release import load_any_checkpoint
from tiny import TOKEN_IDS, tiny_tokenizer
from tiny_model import tiny_config


def _make(seed: int = 0, image: str = "vit") -> Checkpoint:
    config = tiny_config(image=image)
    tokenizer = tiny_tokenizer().to_str()
    return random_checkpoint(config, tokenizer, TOKEN_IDS, image=ImageSpec(size=64), seed=seed)


def test_the_seed_decides_every_weight_whatever_was_drawn_before() -> None:
    torch.manual_seed(1)
    first = _make()
    torch.manual_seed(2)
    again, other = _make(), _make(seed=1)
    names = {name for name, _ in first.build_model().named_parameters()}
    for name, value in first.weights.items():
        assert torch.equal(value, again.weights[name]), name
        if name in names:
            assert not torch.equal(value, other.weights[name]), name


def test_weights_have_the_wanted_spread_and_repeat_themselves() -> None:
    model = _make().build_model()
    weights = random_weights(model, 3)
    for name, value in weights.items():
        if value.dim() == 2 and ".encoder." in name and value.numel() > 2000:
            assert 0.01 < float(value.std()) < 0.04, name
    name = next(name for name, value in weights.items() if value.dim() == 2)
    matrix = weights[name].numpy()
    side = min(matrix.shape)
    assert np.array_equal(matrix[1, : side - 1], matrix[0, 1:side])
    # An export's products of matrices repeat themselves as well.
    product = matrix[:side, :side].astype(np.float64) @ matrix[:side, :side]
    assert len(np.unique(product.astype(np.float32))) <= side


@pytest.mark.parametrize("image", ["vit", "mobilenet"])
def test_it_is_a_whole_checkpoint_with_sane_activations(tmp_path: Path, image: str) -> None:
    path = tmp_path / "random.pt"
    save_checkpoint(path, _make(image=image))
    checkpoint = load_any_checkpoint(path)
    assert is_random(checkpoint.provenance)
    model = checkpoint.build_model()
    ids = torch.arange(4, 24).reshape(2, 10)
    with torch.no_grad():
        output = model(
            ids,
            torch.ones_like(ids),
            torch.rand(2, 3, 64, 64),
            torch.tensor([0, 1]),
            shape_ids=torch.ones_like(ids),
        )
    for values in (output.unit_logits, output.emissions):
        assert torch.isfinite(values).all()
        assert 0.01 < float(values.std()) < 10
        assert not torch.allclose(values[0], values[1])


def test_what_it_cannot_do_is_refused(tmp_path: Path) -> None:
    out = ["--random", "--out", str(tmp_path / "x.pt")]
    small = CliRunner().invoke(train_command, out)
    assert small.exit_code == 2
    assert "--random is for --preset paper, got small" in small.output
    data = CliRunner().invoke(train_command, [*out, "--preset", "paper", "--sample"])
    assert data.exit_code == 2
    assert "--random trains nothing" in data.output
    shown = CliRunner().invoke(train_command, ["--help"]).output
    assert "amlr-train --preset paper --random --out paper.pt" in shown


def test_the_command_writes_it_without_further_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # At its full size it takes minutes; the encoder's vocabulary comes from the cache folder.
    asked: list[Path] = []
    monkeypatch.setenv("AMLR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "amlr.training.wheels.encoder_folder", lambda name, cache, wheels: asked.append(cache)
    )
    monkeypatch.setattr(
        "amlr.training.random_checkpoint.paper_checkpoint", lambda packaged, seed: _make(seed)
    )
    out = tmp_path / "x.pt"
    done = CliRunner().invoke(train_command, ["--random", "--preset", "paper", "--out", str(out)])
    assert (done.exit_code, done.output) == (0, f"wrote {out}\n")
    assert asked == [tmp_path / "cache"]
    assert is_random(load_any_checkpoint(out).provenance)
