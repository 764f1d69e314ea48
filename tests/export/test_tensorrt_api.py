"""The TensorRT names we call exist in 10.16, in 11.4 and in TensorRT-RTX.

`tensorrt_api.json` was read out of NVIDIA's real bindings (tests/doubles/bindings.py fetches them).
"""

import ast
import json
import os
from pathlib import Path
from typing import Any

import pytest

import amlr
from doubles import tensorrt as double
from doubles.bindings import VERSIONS, members
from requirements import require

ROOT = Path(amlr.__file__).parent
TABLE: dict[str, Any] = json.loads((Path(__file__).parent / "tensorrt_api.json").read_text())
USED: dict[str, list[str]] = TABLE["used"]
RTX_ONLY = {tuple(name.split(".")) for name in TABLE["rtx_only"]}
SOURCES = [
    *sorted((ROOT / "export" / "tensorrt").glob("*.py")),
    ROOT / "runtime" / "device" / "tensorrt.py",
    ROOT / "runtime" / "device" / "preflight.py",
    ROOT / "runtime" / "tensorrt_library.py",
]


def _attributes() -> set[str]:
    found: set[str] = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                found.add(node.attr)
    return found


def test_every_name_we_use_is_in_the_table() -> None:
    """Names of the libraries that appear in our sources, but in no row, would go unchecked."""
    listed = {member for names in USED.values() for member in names} | set(USED)
    foreign = set(TABLE["all_names"]) & _attributes()
    # Ordinary words that our own classes use too.
    assert foreign - listed - set(TABLE["also_ours"]) == set()


def test_every_listed_name_is_used() -> None:
    used = _attributes() | set(TABLE["by_string"])
    assert {m for names in USED.values() for m in names} - used == set()


@pytest.mark.parametrize("version", ["10.16.1.11", "11.4.0.106"])
def test_enterprise_has_all_but_the_rtx_names(version: str) -> None:
    for owner, names in USED.items():
        for name in names:
            if (owner, name) not in RTX_ONLY:
                assert name in (TABLE[version][owner] or ()), f"{owner}.{name}"


def test_rtx_has_all_names() -> None:
    rtx = pytest.importorskip("tensorrt_rtx")
    for owner, names in USED.items():
        for name in names:
            assert hasattr(getattr(rtx, owner), name), f"{owner}.{name}"


@pytest.mark.parametrize("major", ["10", "11"])
def test_table_equals_the_real_bindings(major: str) -> None:
    folder = os.environ.get("AMLR_TENSORRT_BINDINGS")
    require(
        "tensorrt-bindings",
        found=bool(folder),
        reason="AMLR_TENSORRT_BINDINGS=FOLDER, filled by: python tests/doubles/bindings.py FOLDER",
    )
    found = members(Path(str(folder)), major, USED)
    version = VERSIONS[major]
    assert found.pop("__version__") == version
    assert found == TABLE[version]


def test_the_double_has_only_names_of_the_library() -> None:
    rtx = pytest.importorskip("tensorrt_rtx")
    pairs = {
        double.RuntimeDouble: rtx.Runtime,
        double.EngineDouble: rtx.ICudaEngine,
        double.ContextDouble: rtx.IExecutionContext,
        double.RuntimeConfigDouble: rtx.IRuntimeConfig,
        double.RuntimeCacheDouble: rtx.IRuntimeCache,
    }
    for stand_in, real in pairs.items():
        for name in vars(stand_in):
            if not name.startswith("_"):
                assert hasattr(real, name), f"{stand_in.__name__}.{name}"
    for kind in ("EngineValidity", "CudaGraphStrategy", "ExecutionContextAllocationStrategy"):
        names = {member.name for member in getattr(double, kind)}
        assert names <= set(getattr(rtx, kind).__members__)
