"""Write a model repository from a bundle: whole under its name, or not at all."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from amlr import __version__
from amlr.errors import ExportError
from amlr.runtime.bundle import Bundle, GoldenPost
from amlr.runtime.manifest import MANIFEST
from amlr.serving.encoding import encode_bytes
from amlr.serving.triton.config import MODEL, Config, model_config
from amlr.serving.triton.ensemble import ensemble_models
from amlr.serving.triton.parameters import AUTO, BUNDLE, EngineParameters
from amlr.serving.triton.pbtxt import to_text
from amlr.serving.triton.readme import readme
from amlr.whole import check_place, is_empty, staged_folder

MODELS, ENSEMBLE = "models", "ensemble"
# Says that a folder is one of ours and may be replaced.
MARKER = "amlr-triton.json"
VERSION = "1"
_ENTRY = '''"""For Triton; the code is in the package amlr, installed beside this server."""

from {module} import TritonPythonModel as TritonPythonModel
'''


def write_repository(
    source: Path,
    out: Path,
    *,
    provider: str = AUTO,
    threads: int | None = None,
    instances: int = 1,
) -> Path:
    """Write `out/models`, which runs the engine, `out/ensemble`, and `out/README.md`.

    Args:
        source: A bundle; copied, so that the repository can be moved on its own.
        out: Folder to write; an older one of this kind is replaced when the new one is whole.
        provider: As in `Engine.load`.
        threads: As in `Engine.load`.
        instances: Processes with an engine each.

    Raises:
        BundleError: The bundle cannot be read, or a file of it is damaged.
        ExportError: `out` exists and is something else.
    """
    check_place(out)
    if out.exists() and not (out / MARKER).is_file() and not is_empty(out):
        raise ExportError(
            f"{out} exists and was not written by amlr-export --triton; choose another folder"
        )
    bundle = Bundle.open(source)
    for name in bundle.manifest.files:
        bundle.verified(name)
    with staged_folder(out) as staging:
        parameters = EngineParameters(
            manifest_sha256=bundle.manifest_sha256, provider=provider, threads=threads
        )
        _write(bundle, staging, parameters, instances)
    return out


def _write(bundle: Bundle, folder: Path, parameters: EngineParameters, instances: int) -> None:
    _write_model(bundle, folder / MODELS / MODEL, parameters, instances)
    models = ensemble_models(bundle)
    for model in models:
        place = folder / ENSEMBLE / str(model.config["name"])
        _write_config(place, model.config)
        version = place / VERSION
        version.mkdir()
        if model.module is not None:
            _write_entry(version, model.module)
        for name, file in model.files.items():
            _copy(bundle.path / file, version / name)
    (folder / "README.md").write_text(readme(bundle, models), encoding="utf-8")
    marker = {
        "amlr": __version__,
        "bundle": bundle.manifest.name,
        "manifest_sha256": bundle.manifest_sha256,
    }
    (folder / MARKER).write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")


def _write_model(bundle: Bundle, place: Path, parameters: EngineParameters, instances: int) -> None:
    samples = _samples(bundle.golden)
    warmup = {name: post.image is not None for name, post in samples.items()}
    _write_config(place, model_config(bundle.manifest, parameters, warmup, instances))
    version = place / VERSION
    version.mkdir()
    _write_entry(version, "amlr.serving.triton.model")
    for name in (MANIFEST, *bundle.manifest.files):
        _copy(bundle.path / name, version / BUNDLE / name)
    # Triton looks for warm-up data in a folder of this name.
    (place / "warmup").mkdir()
    for name, post in samples.items():
        (place / "warmup" / f"{name}.text").write_bytes(encode_bytes([post.text.encode()]))
        if post.image is not None:
            (place / "warmup" / f"{name}.image").write_bytes(encode_bytes([post.image]))


def _samples(golden: Iterable[GoldenPost]) -> dict[str, GoldenPost]:
    """A golden post without a picture and one with, where there are."""
    samples: dict[str, GoldenPost] = {}
    for post in golden:
        if post.text.strip():
            samples.setdefault("text_only" if post.image is None else "with_picture", post)
    return samples


def _write_config(place: Path, config: Config) -> None:
    place.mkdir(parents=True)
    (place / "config.pbtxt").write_text(to_text(config), encoding="ascii")


def _write_entry(version: Path, module: str) -> None:
    (version / "model.py").write_text(_ENTRY.format(module=module), encoding="utf-8")


def _copy(source: Path, target: Path) -> None:
    # Copied, not linked: ONNX libraries refuse weights with a second hard link, and the original
    # may be replaced while a server maps these.
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
