"""NVIDIA's real TensorRT bindings without its libraries, to compare names with.

`python tests/doubles/bindings.py FOLDER` installs the bindings of TensorRT 10 and 11 (small wheels,
without dependencies) into FOLDER/10 and FOLDER/11 and compiles a stub of the nine C functions they
link to. With `AMLR_TENSORRT_BINDINGS=FOLDER` the tests then compare the committed table with them.
The stub only lets the bindings be imported: every factory returns null.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGE = "tensorrt-cu13-bindings"
VERSIONS = {"10": "10.16.1.11", "11": "11.4.0.106"}
_LIBRARIES = ("libnvinfer", "libnvonnxparser", "libnvinfer_plugin")
_FACTORIES = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
_STUB = "\n".join(
    [
        *(f"void* {name}(void) {{ return 0; }}" for name in _FACTORIES),
        "int getNvOnnxParserVersion(void) { return 0; }\n",
    ]
)
_DUMP = """
import json, sys
import tensorrt_bindings as trt
wanted = json.loads(sys.argv[1])
found = {"__version__": trt.__version__}
for name, members in wanted.items():
    owner = getattr(trt, name, None)
    found[name] = None if owner is None else [m for m in members if hasattr(owner, m)]
print(json.dumps(found))
"""


def install(folder: Path) -> None:
    """Fetch both bindings and compile their stubs."""
    for major, version in VERSIONS.items():
        target = folder / major
        target.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target)]
        subprocess.run([*pip, f"{PACKAGE}=={version}"], check=True)
        source = target / "stub.c"
        source.write_text(_STUB)
        for library in _LIBRARIES:
            name = f"{library}.so.{major}"
            subprocess.run(
                ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", target / name, source],
                check=True,
            )


def members(folder: Path, major: str, wanted: dict[str, list[str]]) -> dict[str, Any]:
    """Which of the wanted members the real bindings of one major version have."""
    target = folder / major
    path = os.pathsep.join([str(target), os.environ.get("LD_LIBRARY_PATH", "")])
    run = subprocess.run(
        [sys.executable, "-c", _DUMP, json.dumps(wanted)],
        env={**os.environ, "PYTHONPATH": str(target), "LD_LIBRARY_PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(run.stdout)
    return found


if __name__ == "__main__":
    install(Path(sys.argv[1]))
