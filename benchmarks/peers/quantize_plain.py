"""Post-training quantization as NNCF does it by default: `... MODEL.onnx FEEDS.npz OUT.xml`."""

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np


def quantize_plain(source: Path, feeds: Path, target: Path) -> None:
    """Convert an export and quantize it on recorded inputs, the transformer way."""
    import openvino

    # It ships no types.
    nncf: Any = importlib.import_module("nncf")

    rows: dict[str, dict[str, np.ndarray]] = {}
    with np.load(feeds) as arrays:
        for key in arrays.files:
            number, _, name = key.partition(":")
            rows.setdefault(number, {})[name] = arrays[key]
    model = nncf.quantize(
        openvino.convert_model(str(source)),
        nncf.Dataset(list(rows.values())),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(rows),
    )
    # The weights first, the name that is looked for last.
    aside = target.with_name(f"partial-{target.name}")
    openvino.save_model(model, aside, compress_to_fp16=False)
    aside.with_suffix(".bin").replace(target.with_suffix(".bin"))
    aside.replace(target)


if __name__ == "__main__":
    quantize_plain(*map(Path, sys.argv[1:4]))
