"""Write a model repository from a bundle, and read back what its `config.pbtxt` says."""

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self, get_args

from amlr import __version__
from amlr.errors import ExportError, InputError
from amlr.runtime.batching import CPU_BATCHES
from amlr.runtime.bundle import Bundle
from amlr.runtime.engine import Engine
from amlr.runtime.engine_record import EngineRecord
from amlr.runtime.manifest import MANIFEST, Manifest
from amlr.runtime.options import EngineOptions
from amlr.runtime.pipeline import CHUNK_POSTS
from amlr.serving.settings import BatchSettings, QueueSettings
from amlr.whole import check_place, is_empty, staged_folder

BUNDLE = "amlr.plan"
AUTO = "auto"
_OPTIONS = {option.name: option for option in fields(EngineOptions)}
_NAMES = ("bundle", "manifest_sha256", *_OPTIONS)
MODELS = "models"
# Says that a folder is one of ours and may be replaced.
MARKER = "amlr-triton.json"
VERSION = "1"
_ENTRY = '''"""For Triton; the code is in the package amlr, installed beside this server."""

from amlr.serving.triton.model import TritonPythonModel as TritonPythonModel
'''
_README = """\
# {bundle} for Triton Inference Server

Written by amlr {version} from the bundle `{bundle}`, manifest sha256 `{manifest_sha256}`.
The folder `models` is a model repository. Serve it:

    tritonserver --model-repository={{this folder}}/models

The interpreter that Triton's python backend starts must have the package `amlr` {version} (`pip
install amlr`; no PyTorch is needed). Inputs are `text` and `image` (optional; empty means none),
both BYTES [B, 1]; the output `result` is JSON, as `/v2` of `amlr-serve` gives it. What can be
changed in `models/amlr/config.pbtxt` is in docs/howto/triton.md of amlr.
"""
MODEL = "amlr"
_MICROSECONDS = 1_000_000
# Field by field as Triton's proto names them; `%` stands before what a bundle decides.
_CONFIG = """\
name: "amlr"
backend: "python"
max_batch_size: %(max_batch)d
input { name: "text" data_type: TYPE_STRING dims: 1 }
input { name: "image" data_type: TYPE_STRING dims: 1 optional: true }
output { name: "result" data_type: TYPE_STRING dims: 1 }
instance_group { count: 1 kind: %(kind)s }
dynamic_batching {
  preferred_batch_size: [ %(sizes)s ]
  max_queue_delay_microseconds: %(delay)d
  default_queue_policy {
    timeout_action: REJECT
    default_timeout_microseconds: %(timeout)d
    allow_timeout_override: true
    max_queue_size: %(max_queue)d
  }
}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineParameters:
    """Arguments of `Engine.load`, under their own names in `config.pbtxt`.

    Attributes:
        bundle: Folder of the bundle, relative to the version's folder or absolute.
        manifest_sha256: Hash of its manifest, which pins every file.
        options: The engine's options; memory and threads are those of one instance.
    """

    bundle: str = BUNDLE
    manifest_sha256: str
    options: EngineOptions = field(default_factory=EngineOptions)

    def to_strings(self) -> dict[str, str]:
        """The values as `config.pbtxt` holds them: strings only."""
        values = {"bundle": self.bundle, "manifest_sha256": self.manifest_sha256}
        values |= asdict(self.options)
        return {name: AUTO if value is None else str(value) for name, value in values.items()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Read them out of the model configuration that Triton passes on.

        Raises:
            InputError: A parameter is missing, unknown or wrong.
        """
        texts = {
            str(name): str(value["string_value"])
            for name, value in config.get("parameters", {}).items()
        }
        unknown = sorted(set(texts) - set(_NAMES))
        if unknown or "manifest_sha256" not in texts:
            wrong = f"unknown {', '.join(unknown)}" if unknown else "manifest_sha256 is missing"
            raise InputError(f"parameters of config.pbtxt: {wrong}; they are {', '.join(_NAMES)}")
        values = {name: _value(_OPTIONS[name], texts[name]) for name in _OPTIONS if name in texts}
        return cls(
            bundle=texts.get("bundle", BUNDLE),
            manifest_sha256=texts["manifest_sha256"],
            options=EngineOptions(**values),
        )

    def load(self, version_folder: Path) -> Engine:
        """Open the engine.

        Raises:
            AmlrError: As `Engine.load`.
        """
        return Engine.load(
            version_folder / self.bundle,
            manifest_sha256=self.manifest_sha256,
            **asdict(self.options),
        )


def _value(option: "Field[Any]", text: str) -> Any:
    """The value of an option by its type; `auto` stands for None."""
    kinds = get_args(option.type) or (option.type,)
    if text == AUTO and type(None) in kinds:
        return None
    kind = next(kind for kind in kinds if kind is not type(None))
    where = f"parameter {option.name} of config.pbtxt must be"
    try:
        value = {"True": True, "False": False}[text] if kind is bool else kind(text)
    except (KeyError, ValueError):
        raise InputError(f"{where} of type {kind.__name__}, got {text!r}") from None
    if kind in (int, float) and not 0 <= value < math.inf:
        raise InputError(f"{where} a number from 0 on, got {text!r}")
    return value


def write_repository(source: Path, out: Path) -> Path:
    """Write `out/models`, which runs the engine, and `out/README.md`.

    Args:
        source: A bundle; copied, so that the repository can be moved on its own.
        out: Folder to write; an older one of this kind is replaced when the new one is whole.

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
        _write(bundle, staging)
    return out


def _write(bundle: Bundle, folder: Path) -> None:
    about = {"bundle": bundle.manifest.name, "manifest_sha256": bundle.manifest_sha256}
    version = folder / MODELS / MODEL / VERSION
    version.mkdir(parents=True)
    (version.parent / "config.pbtxt").write_text(model_config(bundle), encoding="ascii")
    (version / "model.py").write_text(_ENTRY, encoding="utf-8")
    for name in (MANIFEST, *bundle.manifest.files):
        target = version / BUNDLE / name
        target.parent.mkdir(parents=True, exist_ok=True)
        # Copied, not linked: ONNX libraries refuse weights with a second hard link, and the
        # original may be replaced while a server maps these.
        shutil.copyfile(bundle.path / name, target)
    readme = _README.format(version=__version__, **about)
    (folder / "README.md").write_text(readme, encoding="utf-8")
    marker = json.dumps({"amlr": __version__, **about}, indent=1)
    (folder / MARKER).write_text(marker + "\n", encoding="utf-8")


def batch_sizes(manifest: Manifest) -> list[int]:
    """Batches worth waiting for: the engines' own, else those at which a CPU is at full speed."""
    for values in manifest.engines:
        _, usual, high = EngineRecord.from_dict(values).graphs["text"].shapes[0]["input_ids"]
        return sorted({usual[0], high[0]})
    return [CPU_BATCHES.windows // 2, CPU_BATCHES.windows]


def model_config(bundle: Bundle) -> str:
    """The configuration: the engine's options at their defaults, for whoever edits them."""
    queue, sizes = QueueSettings(), batch_sizes(bundle.manifest)
    values: dict[str, Any] = {
        "max_batch": CHUNK_POSTS,
        "kind": "KIND_GPU" if bundle.manifest.engines else "KIND_CPU",
        "sizes": ", ".join(map(str, sizes)),
        "delay": round(BatchSettings().max_wait_s * _MICROSECONDS),
        "timeout": round(queue.deadline_s * _MICROSECONDS),
        "max_queue": queue.max_posts,
    }
    parameters = EngineParameters(manifest_sha256=bundle.manifest_sha256).to_strings()
    return _CONFIG % values + "".join(
        f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}\n'
        for name, value in parameters.items()
    )
