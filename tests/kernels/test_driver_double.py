"""Every test of the device layer, through the installed bindings, on the driver double."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from shims.host_build import HERE, HostBuilder

TESTS = Path(__file__).parents[1]


def missing_driver_functions(binding: str) -> set[str]:
    """What a binding that is linked to the driver wants from it, beyond what the double has."""
    if binding != "pycuda":
        return set()
    package = importlib.util.find_spec("pycuda")
    assert package is not None
    assert package.submodule_search_locations
    extension = next(Path(package.submodule_search_locations[0]).glob("_driver*.so"))
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", str(extension)], capture_output=True, text=True, check=True
    ).stdout
    source = (HERE / "driver_double.cpp").read_text()
    return set(re.findall(r"\b(cu[A-Z]\w+)", listed)) - set(
        re.findall(r"^int (cu\w+)\(", source, re.MULTILINE)
    )


@pytest.mark.parametrize("binding", ["cuda-bindings", "pycuda"])
def test_device_layer_on_the_double(binding: str, host_builder: HostBuilder) -> None:
    package = {"cuda-bindings": "cuda", "pycuda": "pycuda"}[binding]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{binding} is not installed")
    driver = host_builder.driver_double(missing_driver_functions(binding))
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(driver),
        "AMLR_DOUBLE_KERNELS": str(host_builder.folder),
        "AMLR_DOUBLE_SEED": "3",
        "AMLR_TEST_BINDING": binding,
        "AMLR_REQUIRE": "gpu",
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent / "src"), *sys.path]),
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "-q",
         str(TESTS / "kernels" / "test_device.py")],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=TESTS.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"\d+ passed", done.stdout)
    assert "skipped" not in done.stdout
