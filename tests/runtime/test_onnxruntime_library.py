"""What pip leaves of onnxruntime is one line with the fix, whatever is left."""

import sys
import sysconfig
from pathlib import Path

import pytest

from amlr.errors import BackendUnavailableError
from amlr.runtime import Engine
from amlr.runtime.providers.onnxruntime_library import import_onnxruntime

# Content of the package's __init__.py, or None for a folder without one.
LEFTOVERS = {
    "an empty folder": None,
    "no names": "",
    "some names": "class InferenceSession: pass\n",
    "a missing part": "from onnxruntime.capi import onnxruntime_pybind11_state\n",
    "a missing name": "from os import InferenceSession\n",
    "another library": "raise OSError('libcudart.so.12: cannot open shared object file\\nmore')\n",
    "an attribute": "import os\nos.get_all_providers\n",
}


@pytest.mark.parametrize("kind", LEFTOVERS)
def test_leftovers_are_one_line(
    kind: str, tiny_plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = LEFTOVERS[kind]
    package = tmp_path / "onnxruntime"
    (package / "tools").mkdir(parents=True)
    if content is not None:
        (package / "__init__.py").write_text(content)
    # Where the library itself lies must not be seen, else it hides a folder without __init__.
    site = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(p for p in sys.path if p not in site)])
    for name in [name for name in sys.modules if name.partition(".")[0] == "onnxruntime"]:
        monkeypatch.delitem(sys.modules, name)
    try:
        for provider in ("onnxruntime", "onnxruntime-cpu"):
            with pytest.raises(BackendUnavailableError) as caught:
                Engine.load(tiny_plan, provider=provider, check="off")
            message = str(caught.value)
            assert "\n" not in message
            assert "pip uninstall -y onnxruntime onnxruntime-gpu && pip install" in message
    finally:
        # Only what this test imported; monkeypatch puts the library back.
        for name in [name for name in sys.modules if name.partition(".")[0] == "onnxruntime"]:
            del sys.modules[name]


def test_an_absent_library_is_another_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install onnxruntime$"):
        import_onnxruntime()


def test_a_whole_library_is_returned() -> None:
    assert import_onnxruntime().InferenceSession is not None
