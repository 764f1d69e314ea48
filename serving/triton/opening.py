"""What the ensemble's two Python models open: a bundle without graphs, and limits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amlr.errors import InputError
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
