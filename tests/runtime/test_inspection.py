"""What is said about a bundle's calibration."""

from dataclasses import replace
from pathlib import Path

import pytest

from amlr.runtime.bundle import read_manifest
from amlr.runtime.inspection import describe

RECORD = {
    "ece_before": 0.0712,
    "ece_after": 0.0201,
    "temperature": 2.25,
    "entities": 40,
    "posts": 30,
}


@pytest.mark.parametrize(
    ("training", "said"),
    [
        (
            {"calibration": RECORD},
            "expected error 0.0712 at temperature 1, 0.0201 at 2.25, on 40 entities of 30 held-out",
        ),
        ({"calibration": {**RECORD, "ece_after": None}}, "not measured"),
        ({}, "not measured"),
        (None, "not measured"),
    ],
)
def test_calibration_is_shown_where_it_was_measured(
    tiny_plan: Path, training: object, said: str
) -> None:
    manifest, digest = read_manifest(tiny_plan)
    manifest = replace(manifest, provenance={**manifest.provenance, "training": training})
    (line,) = [line for line in describe(manifest, digest) if line.startswith("calibration")]
    assert said in line
