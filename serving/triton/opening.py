"""What the ensemble's two Python models share: a bundle without graphs, limits, one answer each."""

import importlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amlr.errors import AmlrError, InputError
from amlr.runtime.bundle import Bundle
from amlr.serving.triton.ensemble import Limits
from amlr.serving.triton.parameters import BUNDLE


def open_half(config: Mapping[str, Any], version_folder: Path) -> tuple[Bundle, Limits]:
    """Bundle and limits of a model.

    Raises:
        BundleError: The bundle cannot be read, or is another than the configuration pins.
        InputError: A parameter is missing or no number.
    """
    values = {name: value["string_value"] for name, value in config["parameters"].items()}
    try:
        limits = Limits(**{name: int(values[name]) for name in Limits.__dataclass_fields__})
        pinned = values["manifest_sha256"]
    except (KeyError, ValueError) as error:
        raise InputError(f"a parameter of config.pbtxt is missing or wrong: {error}") from error
    return Bundle.open(version_folder / BUNDLE, pinned), limits


class HalfModel(ABC):
    """A model of Triton's python backend that runs the engine up to the graphs, or from them on."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the bundle.

        Raises:
            TritonModelException: It cannot be read.
        """
        # This module exists only where Triton runs Python.
        self._pb: Any = importlib.import_module("triton_python_backend_utils")
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"]
        try:
            bundle, limits = open_half(config, folder)
        except AmlrError as error:
            raise self._pb.TritonModelException(str(error)) from error
        self._begin(bundle, limits)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response a request."""
        return [self._respond(request) for request in requests]

    @abstractmethod
    def _begin(self, bundle: Bundle, limits: Limits) -> None:
        """Make what serves requests."""

    @abstractmethod
    def _respond(self, request: Any) -> Any:
        """Answer one request."""
