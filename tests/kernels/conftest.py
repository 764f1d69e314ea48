"""Where the CUDA decoders run: the host shim, or (marker `gpu`) a device or the driver double."""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from amlr.errors import BackendUnavailableError
from amlr.kernels.device import Device, open_device
from amlr.kernels.images import KernelSpec, compile_image
from amlr.kernels.launch import Compile, KernelLibrary
from requirements import require
from shims.full_decoders import FullDecoders
from shims.host_build import HostBuilder
from shims.shim_device import ShimDevice


@pytest.fixture
def shim(host_builder: HostBuilder) -> Iterator[ShimDevice]:
    device = ShimDevice(host_builder)
    yield device
    assert device.live_allocations == 0, "device memory was not freed"


@pytest.fixture(scope="session")
def opened_device() -> Iterator[Device]:
    """The GPU of this machine, or the driver double where the environment puts one in its place."""
    try:
        device = open_device(os.environ.get("AMLR_TEST_BINDING", "auto"))
    except BackendUnavailableError as error:
        require("gpu", found=False, reason=str(error).split(";")[0])
        raise AssertionError from error
    yield device
    device.close()


@pytest.fixture(scope="session")
def compile_once() -> Compile:
    """NVRTC, asked once for each image."""
    double = os.environ.get("AMLR_DOUBLE_KERNELS")

    @cache
    def compile_for(spec: KernelSpec, architecture: str) -> bytes:
        if double:  # it runs the host build of whatever cubin it is given
            HostBuilder(Path(double)).library(spec)
        return compile_image(spec, architecture)

    return compile_for


@pytest.fixture
def gpu(opened_device: Device, compile_once: Compile) -> KernelLibrary:
    return KernelLibrary(opened_device, compile_with=compile_once)


@pytest.fixture(params=["shim", pytest.param("gpu", marks=pytest.mark.gpu)])
def library(request: pytest.FixtureRequest) -> KernelLibrary:
    if request.param == "gpu":
        on_device: KernelLibrary = request.getfixturevalue("gpu")
        return on_device
    device: ShimDevice = request.getfixturevalue("shim")
    return device.library()


@pytest.fixture
def decoders(library: KernelLibrary) -> FullDecoders:
    return FullDecoders(library)
