"""What must hold before a TensorRT library is touched, checked in an order that cannot crash.

A Runtime that is constructed without a driver, or given a plan of another version or device, can
end the whole process. So: driver, device, library, the manifest's record, the files, and memory are
looked at first, each refusal naming what was found, what is needed and what to do.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from amlr.errors import BackendUnavailableError, PlanMismatchError
from amlr.kernels.device import Device, open_device, probe_driver
from amlr.kernels.driver import load_driver
from amlr.kernels.images import compile_image
from amlr.kernels.launch import Compile
from amlr.runtime.bundle import Bundle
from amlr.runtime.engine_record import EngineRecord, choose_engine, rebuild_command
from amlr.runtime.tensorrt_library import TensorRT, last_errors, load_tensorrt

# Kept free for the library's own allocations and for neighbours.
RESERVED_BYTES = 256 << 20


def free_device_bytes(device: Device) -> int:
    """Free memory of the device whose context is current."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    code = load_driver()["cuMemGetInfo_v2"](ctypes.byref(free), ctypes.byref(total))
    if code:
        raise BackendUnavailableError(
            f"the driver does not tell the memory of {device.name} (code {code}); update the driver"
        )
    return free.value


@dataclass(frozen=True, slots=True, eq=False)
class HostTools:
    """How the machine is reached; tests put doubles here.

    Attributes:
        probe: Raises where there is no driver or device.
        open_device: Opens device 0.
        free_bytes: Free memory of an open device.
        module: The TensorRT module; None imports it.
        compile_with: Compiles decoder kernels that the bundle holds no image of.
    """

    probe: Callable[[], Any] = probe_driver
    open_device: Callable[[], Device] = open_device
    free_bytes: Callable[[Device], int] = free_device_bytes
    module: Any = None
    compile_with: Compile = compile_image


@dataclass(frozen=True, slots=True, eq=False)
class Host:
    """A machine that can run a bundle's engines.

    Attributes:
        device: Open device.
        library: Imported library.
        record: The engines that fit.
        free_bytes: Free device memory before anything is loaded.
        compile_with: From the tools.
    """

    device: Device
    library: TensorRT
    record: EngineRecord
    free_bytes: int
    compile_with: Compile = compile_image


def check_host(bundle: Bundle, family: str, precision: str, tools: HostTools | None = None) -> Host:
    """Look at everything that could stop an engine.

    Args:
        bundle: The bundle.
        family: `tensorrt` or `tensorrt-rtx`.
        precision: Of the variant to serve.
        tools: How the machine is reached.

    Raises:
        BackendUnavailableError: No driver, device, binding or library, or too little memory.
        PlanMismatchError: The bundle's engines are for another library, version or device.
        BundleError: An engine file is missing or damaged.
    """
    tools = tools or HostTools()
    tools.probe()
    library = load_tensorrt(family, tools.module)
    device = tools.open_device()
    try:
        records = [EngineRecord.from_dict(values) for values in bundle.manifest.engines]
        record = choose_engine(
            records,
            library=family,
            version=library.version,
            precision=precision,
            sm=device.sm,
            bundle=str(bundle.path),
        )
        _check_graphs(bundle, record)
        for engine in record.graphs.values():
            bundle.verified(engine.file)
        with device.current():
            free = tools.free_bytes(device)
        needed = sum(engine.bytes for engine in record.graphs.values()) + RESERVED_BYTES
        if free < needed:
            raise BackendUnavailableError(
                f"{device.name} has {free / 1e6:.0f} MB free, the engines need at least "
                f"{needed / 1e6:.0f} MB; free memory on the device, or use another provider"
            )
    except BaseException:
        device.close()
        raise
    return Host(device, library, record, free, tools.compile_with)


def _check_graphs(bundle: Bundle, record: EngineRecord) -> None:
    """Refuse plans of a variant that the bundle no longer holds."""
    variant = bundle.manifest.variants.get(record.variant)
    if variant is None or variant.precision != record.precision:
        raise PlanMismatchError(
            f"the engines were built from variant {record.variant!r}, which the bundle does not "
            f"hold; rebuild with: {rebuild_command(str(bundle.path), record.library)}"
        )


def open_runtime(library: TensorRT) -> Any:
    """Construct the library's Runtime; the driver was probed before."""
    try:
        runtime = library.api.Runtime(library.logger())
    except (TypeError, RuntimeError) as error:
        raise BackendUnavailableError(
            f"{library.name} could not start ({error}); its CUDA version may be newer than the "
            "driver: update the driver, or install the library's build for an older CUDA"
        ) from error
    if not library.is_rtx:
        # Version-compatible plans bring host code, which the library runs only if told to.
        runtime.engine_host_code_allowed = True
    return runtime


def deserialize(host: Host, runtime: Any, data: bytes, graph: str, bundle: str) -> Any:
    """Turn a plan into an engine.

    Raises:
        PlanMismatchError: The library refuses the plan; holds its reason and the rebuild command.
    """
    library, logger = host.library, host.library.logger()
    fix = f"rebuild with: {rebuild_command(bundle, library.family)}"
    if library.is_rtx:
        validity, diagnostics = runtime.get_engine_validity(data)
        if validity == library.api.EngineValidity.INVALID:
            raise PlanMismatchError(
                f"{library.name} calls the {graph} plan invalid on {host.device.name} "
                f"(diagnostics {diagnostics}); found {host.record.target}; {fix}"
            )
    with last_errors(logger) as errors:
        engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        reason = "; ".join(errors)[:300] or "no reason given"
        raise PlanMismatchError(
            f"{library.name} cannot load the {graph} plan on {host.device.name}: {reason}; found "
            f"{host.record.target}; {fix}"
        )
    return engine
