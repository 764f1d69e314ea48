"""What a GPU run of the kernels carries along, and the driver double for its dry run.

`python -m shims.kernel_kit FOLDER` writes the kit; with `--double` before the folder it builds the
double there and prints its environment as JSON.
"""

import json
import os
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from amlr.benchmarks.gpu.kernel_times import TIMED_SPECS
from amlr.kernels.images import compile_image
from shims.corpus import SPECS, record_corpus
from shims.host_build import HERE, HostBuilder

ARCHITECTURE = "sm_90"
_SOURCES = ("replay_device.cpp", "recording.h")


def write_kernel_kit(folder: Path, builder: HostBuilder) -> None:
    """Write recorded launches, the replay program's source and cubins into a folder.

    Args:
        folder: What it held before goes.
        builder: Builds the kernels that are recorded.
    """
    shutil.rmtree(folder, ignore_errors=True)
    cubins = folder / "cubins"
    cubins.mkdir(parents=True)
    record_corpus(builder, folder / "corpus.bin")
    record_corpus(builder, folder / "small.bin", small=True)
    for name in _SOURCES:
        shutil.copyfile(HERE / name, folder / name)
    for spec in SPECS:
        image = compile_image(spec, ARCHITECTURE)
        (cubins / f"{spec.function(spec.source)}.cubin").write_bytes(image)
    # Last: its presence says that the kit is whole.
    listed = json.dumps([asdict(spec) for spec in SPECS], indent=1)
    (folder / "specs.json").write_text(listed + "\n", encoding="utf-8")


def double_environment(builder: HostBuilder) -> dict[str, str]:
    """Build the driver double and what runs on it; the environment that puts it in place."""
    specs = dict.fromkeys((*SPECS, *TIMED_SPECS))
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        list(pool.map(builder.library, specs))  # g++ is a process of its own
    return {
        "LD_LIBRARY_PATH": str(builder.driver_double()),
        "AMLR_DOUBLE_KERNELS": str(builder.folder),
    }


def main(arguments: list[str]) -> None:
    """Entry point."""
    if arguments[0] == "--double":
        folder = Path(arguments[1]).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        print(json.dumps(double_environment(HostBuilder(folder))))
        return
    with tempfile.TemporaryDirectory() as built:
        write_kernel_kit(Path(arguments[0]), HostBuilder(Path(built)))


if __name__ == "__main__":
    main(sys.argv[1:])
