"""The runtime in a process where PyTorch and its company do not exist."""

import subprocess
import sys
from pathlib import Path

HEAVY = ("torch", "transformers", "onnx", "accelerate", "matplotlib")
LAZY = ("onnxruntime", "openvino", "tensorrt", "PIL", "tokenizers", "safetensors", "cuda")
BLOCK = f"""
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)

sys.meta_path.insert(0, Block())
"""


def run(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", BLOCK + code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_nothing_heavy_and_no_engine_library() -> None:
    code = f"""
import amlr.runtime
found = [name for name in {HEAVY + LAZY!r} if name in sys.modules]
assert not found, found
"""
    run(code)


def test_every_module_of_the_runtime_imports_alone() -> None:
    code = f"""
import importlib, pkgutil
import amlr.runtime
for module in pkgutil.walk_packages(amlr.runtime.__path__, "amlr.runtime."):
    importlib.import_module(module.name)
found = [name for name in {HEAVY + LAZY!r} if name in sys.modules]
assert not found, found
"""
    run(code)


def test_tagging_with_a_picture_needs_none_of_it(tiny_plan: Path, tmp_path: Path) -> None:
    from drawings import saved, smooth

    picture = tmp_path / "a.png"
    picture.write_bytes(saved(smooth()))
    code = f"""
from amlr.runtime import Engine
with Engine.load(sys.argv[1], provider="onnxruntime-cpu") as engine:
    result = engine.tag("Jordan in Paris", sys.argv[2])
assert result.image_used and not result.warnings
found = [name for name in {HEAVY!r} if name in sys.modules]
assert not found, found
print(len(result.entities))
"""
    assert int(run(code, str(tiny_plan), str(picture))) > 0
