"""One builder for TensorRT 10.13+, TensorRT 11 and TensorRT-RTX: an ONNX file in, a plan out.

The network is strongly typed everywhere: the graph's own types decide, no precision flag exists.
"""

import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from amlr.errors import AmlrError, ExportError
from amlr.export.options import ExportOptions
from amlr.export.profiles import Shapes
from amlr.export.steps import show
from amlr.export.tensorrt.audit import Audit, audit_network, fused_attentions, require_precision
from amlr.export.tensorrt.messages import explain, parser_errors
from amlr.kernels.device import open_device
from amlr.runtime.tensorrt_library import TensorRT, last_errors
from amlr.whole import replacing


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One built engine.

    Attributes:
        data: Serialized plan.
        audit: Types of the network's layers, and its fused attentions.
        build_s: Seconds.
    """

    data: bytes
    audit: Audit
    build_s: float


def build_plan(
    library: TensorRT,
    onnx_path: Path,
    *,
    graph: str,
    shapes: Sequence[Shapes],
    precision: str,
    islands: Collection[str] = (),
    options: ExportOptions | None = None,
) -> Plan:
    """Parse, audit and build one graph.

    Args:
        library: From `load_tensorrt`.
        onnx_path: The graph; its weights lie beside it.
        graph: Its name, for messages.
        shapes: One set of input shapes per optimization profile.
        precision: `fp16` or `fp32`; checked, never requested.
        islands: Nodes that may be float32 in an fp16 graph.
        options: Choices.

    Raises:
        ExportError: The graph was not accepted, has another precision, or could not be built.
    """
    options = options or ExportOptions()
    started = time.monotonic()
    builder, logger = _builder(library)
    typed = 1 << int(library.api.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = library.api.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_path)):
        raise ExportError(parser_errors(graph, parser))
    audit = audit_network(graph, network)
    require_precision(audit, precision, islands)
    config = _config(library, builder, options, precision)
    for each in shapes:
        _add_profile(builder, config, graph, each)
    config.progress_monitor = _progress_monitor(library.api, graph)
    cache = _load_timing_cache(library, config, options)
    with last_errors(logger) as errors:
        data = builder.build_serialized_network(network, config)
    show("")
    if data is None:
        raise ExportError(
            f"graph {graph!r} could not be built by {library.name}: {explain(errors)}"
        )
    _save_timing_cache(cache, options)
    data = bytes(data)
    return Plan(
        data=data,
        audit=replace(audit, fused_attentions=fused_attentions(library, data, len(shapes))),
        build_s=time.monotonic() - started,
    )


def _builder(library: TensorRT) -> tuple[Any, Any]:
    logger = library.logger()
    try:
        return library.api.Builder(logger), logger
    except TypeError as error:
        # The bindings say no more than "factory function returned nullptr".
        raise ExportError(
            f"{library.name} cannot start a builder here; enterprise TensorRT needs an NVIDIA GPU "
            "and its driver to build; use --target tensorrt-rtx, which builds anywhere"
        ) from error


def _config(library: TensorRT, builder: Any, options: ExportOptions, precision: str) -> Any:
    api, config = library.api, builder.create_builder_config()
    config.profiling_verbosity = api.ProfilingVerbosity.DETAILED
    if precision == "fp32":
        # On by default, and three digits short of float32.
        config.clear_flag(api.BuilderFlag.TF32)
    if library.is_rtx:
        config.num_compute_capabilities = len(options.sms)
        for index, sm in enumerate(options.sms):
            config.set_compute_capability(_capability(api, sm), index)
    else:
        _set_enterprise(api, config, options)
    if options.version_compatible:
        config.set_flag(api.BuilderFlag.VERSION_COMPATIBLE)
    if options.strip_weights:
        config.set_flag(api.BuilderFlag.STRIP_PLAN)
    return config


def _set_enterprise(api: Any, config: Any, options: ExportOptions) -> None:
    if options.hardware != "none":
        level = options.hardware.upper().replace("-", "_")
        config.hardware_compatibility_level = getattr(api.HardwareCompatibilityLevel, level)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.aux_streams is not None:
        config.max_aux_streams = options.aux_streams


def _capability(api: Any, sm: int) -> Any:
    found = getattr(api.ComputeCapability, f"SM{sm}", None)
    if found is None:
        # An architecture without a name may still be built for where it is at hand.
        with suppress(ExportError):
            if device_sm() == sm:
                return api.ComputeCapability.CURRENT
        known = sorted(n for n in dir(api.ComputeCapability) if n.startswith("SM"))
        raise ExportError(
            f"this TensorRT-RTX cannot build for SM {sm / 10:.1f}; it knows {', '.join(known)} and "
            "the device at hand; data-centre devices such as SM 9.0 need --target tensorrt on the "
            "device"
        )
    return found


def device_sm() -> int:
    """Architecture of device 0.

    Raises:
        ExportError: There is none.
    """
    try:
        device = open_device()
    except AmlrError as error:
        raise ExportError(
            f"--target tensorrt builds on the device it is for: {error}; "
            "use --target tensorrt-rtx, which builds on any machine"
        ) from error
    try:
        return device.sm
    finally:
        device.close()


def _add_profile(builder: Any, config: Any, graph: str, shapes: Shapes) -> None:
    profile = builder.create_optimization_profile()
    for name, (low, usual, high) in shapes.items():
        profile.set_shape(name, low, usual, high)
    if config.add_optimization_profile(profile) < 0:
        raise ExportError(f"the profile of graph {graph!r} was refused: {dict(shapes)}")


def _load_timing_cache(library: TensorRT, config: Any, options: ExportOptions) -> Any:
    # TensorRT-RTX measures nothing while building, so there is nothing to keep.
    if options.timing_cache is None or library.is_rtx:
        return None
    old = options.timing_cache.read_bytes() if options.timing_cache.is_file() else b""
    cache = config.create_timing_cache(old)
    config.set_timing_cache(cache, False)  # False: measurements of another device are refused
    return cache


def _save_timing_cache(cache: Any, options: ExportOptions) -> None:
    if cache is not None and options.timing_cache is not None:
        with replacing(options.timing_cache) as aside:
            aside.write_bytes(bytes(cache.serialize()))


def _progress_monitor(api: Any, graph: str) -> Any:
    """An `IProgressMonitor` that shows the outermost phase of a build."""

    class Monitor(api.IProgressMonitor):  # type: ignore[misc,name-defined,unused-ignore]
        def __init__(self) -> None:
            api.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self.steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self.steps:
                show(f"  {graph}: {phase_name} {step + 1}/{self.steps[phase_name]}")
            return True  # False would cancel the build

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

    return Monitor()
