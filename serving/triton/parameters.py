"""How the model inside Triton loads its engine: `parameters` of `config.pbtxt`, checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from amlr.errors import InputError
from amlr.runtime.engine import Engine

BUNDLE = "amlr.plan"
AUTO = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineParameters:
    """What `Engine.load` is called with; the names are those in `config.pbtxt`.

    Attributes:
        bundle: Folder of the bundle, relative to the version's folder or absolute.
        manifest_sha256: Hash of its manifest, which pins every file.
        provider: As in `Engine.load`.
        precision: As in `Engine.load`.
        threads: CPU threads of one instance; None takes the physical cores.
        image_cache_mb: Budget of each instance for encoded pictures.
        answer_cache: Answers each instance keeps for posts that come again.
        image: `always` or `when-needed`.
    """

    bundle: str = BUNDLE
    manifest_sha256: str
    provider: str = AUTO
    precision: str = AUTO
    threads: int | None = None
    image_cache_mb: int = 256
    answer_cache: int = 0
    image: str = "always"

    def to_strings(self) -> dict[str, str]:
        """The values as `config.pbtxt` holds them: strings only."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: AUTO if value is None else str(value) for name, value in values.items()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Read them out of the model configuration that Triton passes on.

        Raises:
            InputError: A parameter is missing, unknown or no number.
        """
        given = {
            str(name): str(value["string_value"])
            for name, value in config.get("parameters", {}).items()
        }
        unknown = sorted(set(given) - set(cls.__dataclass_fields__))
        if unknown or "manifest_sha256" not in given:
            wrong = f"unknown {', '.join(unknown)}" if unknown else "manifest_sha256 is missing"
            raise InputError(
                f"parameters of config.pbtxt: {wrong}; "
                f"they are {', '.join(cls.__dataclass_fields__)}"
            )
        values: dict[str, Any] = dict(given)
        if values.get("threads") == AUTO:
            del values["threads"]
        for name in ("threads", "image_cache_mb", "answer_cache"):
            if name in values:
                values[name] = _whole_number(name, values[name])
        return cls(**values)

    def folder(self, version_folder: Path) -> Path:
        """Where the bundle is."""
        return version_folder / self.bundle

    def load(self, version_folder: Path) -> Engine:
        """Open the engine.

        Raises:
            AmlrError: As `Engine.load`.
        """
        return Engine.load(
            self.folder(version_folder),
            provider=self.provider,
            precision=self.precision,
            threads=self.threads,
            image_cache_mb=self.image_cache_mb,
            manifest_sha256=self.manifest_sha256,
            answer_cache=self.answer_cache,
            image=self.image,
        )


def _whole_number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise InputError(f"parameter {name} of config.pbtxt must be a whole number, got {text!r}")
    return int(text)
