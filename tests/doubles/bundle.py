"""Bundles with plans of the engine double in them."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx

from amlr.export.profiles import Extent, Profile, input_dims, shapes_for
from amlr.export.staging import StagedBundle
from amlr.runtime.bundle import Bundle
from amlr.runtime.device.preflight import HostTools
from amlr.runtime.device.provider import DeviceProvider
from amlr.runtime.device.tensorrt import open_family
from amlr.runtime.engine_record import (
    GRAPHS,
    EngineRecord,
    GraphEngine,
    host_platform,
)
from amlr.runtime.providers.base import ProviderOptions
from doubles.device import DoubleDevice
from doubles.tensorrt import TensorRtDouble, plan_bytes

PROFILE = Profile(
    posts=Extent(1, 4, 16),
    tokens=Extent(6, 16, 64),
    units=Extent(1, 32, 400),
    pool=Extent(1, 8, 40),
    pictures=Extent(1, 1, 4),
)


def double_bundle(
    source: Path,
    out: Path,
    *,
    library: str = "tensorrt",
    version: str = "10.13.0.35",
    sm: int = 89,
    profiles: tuple[Profile, ...] = (PROFILE,),
    buckets: tuple[tuple[int, int], ...] = (),
) -> Bundle:
    """Copy a bundle and put plans of the double beside its fp32 graphs."""
    shutil.copytree(source, out)
    bundle = Bundle.open(out)
    place = f"engines/{library}-{version}-sm{sm}/fp32"
    (out / place).mkdir(parents=True)
    engines = {}
    for graph in GRAPHS:
        path = bundle.graph_path(bundle.manifest.variants["fp32"], graph)
        dims = input_dims(onnx.load(str(path), load_external_data=False))
        shapes = [dict(shapes_for(graph, dims, profile)) for profile in profiles]
        data = plan_bytes(path, graph, shapes)
        (out / place / f"{graph}.engine").write_bytes(data)
        engines[graph] = GraphEngine(
            file=f"{place}/{graph}.engine",
            key="double",
            bytes=len(data),
            build_s=0.0,
            shapes=tuple(shapes),
        )
    record = EngineRecord(
        library=library,
        version=version,
        sms=(sm,),
        precision="fp32",
        variant="fp32",
        platform=host_platform(),
        options={},
        graphs=engines,
        buckets=buckets,
    )
    StagedBundle(out, bundle.manifest).save(engines=(asdict(record),))
    return Bundle.open(out)


def double_tools(
    device: DoubleDevice, version: str = "10.13.0.35"
) -> tuple[HostTools, TensorRtDouble]:
    """A machine made of doubles."""
    module = TensorRtDouble(device, version)
    compile_with = {} if device.kernels is None else {"compile_with": device.kernels.compile}
    tools = HostTools(
        probe=lambda: None,
        open_device=lambda: device,  # type: ignore[arg-type,return-value,unused-ignore]
        free_bytes=lambda opened: device.free_bytes,
        module=module,
        **compile_with,
    )
    return tools, module


def open_double(
    bundle: Bundle, tools: Any, family: str = "tensorrt", cache: Path | None = None
) -> DeviceProvider:
    """A provider on the doubles' machine."""
    variant = bundle.manifest.variants["fp32"]
    return open_family(family, bundle, variant, ProviderOptions(cache_dir=cache), tools)


def entities(results: Any) -> list[list[tuple[int, int, str]]]:
    """Offsets and labels of each result."""
    return [[(e.start, e.end, e.label) for e in result.entities] for result in results]
