"""Arguments of the engine inside Triton: `parameters` of `config.pbtxt`, checked."""

import math
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self, get_args

from amlr.errors import InputError
from amlr.runtime.engine import Engine
from amlr.runtime.options import EngineOptions

BUNDLE = "amlr.plan"
AUTO = "auto"
_OPTIONS = {option.name: option for option in fields(EngineOptions)}
_NAMES = ("bundle", "manifest_sha256", *_OPTIONS)


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
