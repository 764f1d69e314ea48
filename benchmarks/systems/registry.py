"""The systems by name: what each is, whether this machine can run it, and how a worker loads it."""

import importlib.util
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

from amlr.benchmarks.systems.base import ESCALATION, Peer, PeerSpec
from amlr.benchmarks.systems.engine import EndToEnd, EnginePeer, PeerProvider
from amlr.errors import InputError
from amlr.runtime.bundle import Bundle
from amlr.runtime.cpu import cpu_fields
from amlr.runtime.engine import Engine
from amlr.runtime.providers.base import Provider, ProviderOptions

BASELINE = "research"


# The precision has its own column, so all OpenVINO rows carry the same name.
PEERS = {
    "research": PeerSpec(
        name="research",
        about="eager PyTorch as released: padded to 50, all units as Conv1d, plain attention",
        kind="research",
    ),
    "research-mkl": PeerSpec(
        name="research-mkl",
        about="the same, with MKL taking its full-speed path on AMD processors",
        kind="research",
        mkl=True,
    ),
    "eager-exact": PeerSpec(
        name="eager-exact",
        about="eager PyTorch, each post at its own length",
        kind="eager-exact",
        quick=False,
    ),
    "eager-bf16": PeerSpec(
        name="eager-bf16",
        about="eager PyTorch under bf16 autocast, padded to the batch's longest post",
        kind="eager-bf16",
        precision="bf16",
        quick=False,
    ),
    "torch-compile": PeerSpec(
        name="torch-compile",
        about="torch.compile, dynamic shapes, frozen weights, padded to the batch's longest post",
        kind="torch-compile",
        quick=False,
    ),
    "onnxruntime-plain": PeerSpec(
        name="onnxruntime-plain",
        about="one-graph ONNX export in onnxruntime, padded to the batch's longest post",
        kind="onnxruntime-plain",
        packages=("onnxruntime",),
        exports=True,
    ),
    "openvino": PeerSpec(
        name="openvino",
        about="plain OpenVINO conversion, each post at its own length",
        kind="openvino",
        packages=("openvino",),
        exports=True,
    ),
    "openvino-bf16": PeerSpec(
        name="openvino",
        about="plain OpenVINO conversion with the bf16 hint, each post at its own length",
        kind="openvino",
        precision="bf16",
        packages=("openvino",),
        exports=True,
        quick=False,
    ),
    "openvino-int8": PeerSpec(
        name="openvino",
        about="that conversion quantized by NNCF, rest in bf16, each post at its own length",
        kind="openvino",
        precision="int8",
        packages=("openvino", "nncf"),
        exports=True,
        quick=False,
    ),
}


def resolve(spec: PeerSpec, folder: Path) -> tuple[PeerSpec, str]:
    """Make a peer runnable here; files may be built in a folder.

    Returns:
        Its specification, and why this machine cannot run it; "" where it can.
    """
    for package in spec.packages:
        if importlib.util.find_spec(package) is None:
            return spec, f"needs the package {package!r}, which is not installed"
    if not spec.mkl:
        return spec, ""
    preload, reason = build_preload(folder)
    return replace(spec, preload=preload), reason


_MKL_STUB = """
int mkl_serv_intel_cpu_true(void) { return 1; }
int mkl_serv_intel_cpu(void) { return 1; }
"""


def build_preload(folder: Path) -> tuple[str | None, str]:
    """Compile a loader stub that lets Intel's MKL use its fast kernels on other makers' processors.

    MKL asks `mkl_serv_intel_cpu_true` before it takes its AVX-512 and AVX2 kernels, and answers no
    on AMD, which costs half the speed on some of its processors and a tenth on others. The stub
    answers yes. It is loaded only into the worker process of the peer that shows this difference.

    Returns:
        Path of the library and "", or None and the reason.
    """
    vendor = cpu_fields().get("vendor_id")
    if vendor == "GenuineIntel":
        return None, "this is an Intel processor: MKL already takes its full-speed path"
    if vendor is None:
        return None, "only for x86 processors under Linux"
    compiler = next((path for name in ("gcc", "g++", "cc") if (path := shutil.which(name))), None)
    if compiler is None:
        return None, "needs a C compiler (gcc or g++) for the loader stub; none is installed"
    library, source = folder / "libmkl_full_speed.so", folder / "mkl_full_speed.c"
    source.write_text(_MKL_STUB)
    command = [compiler, "-x", "c", "-shared", "-fPIC", "-O1", "-o", str(library), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return None, f"the loader stub did not compile: {done.stderr.strip().splitlines()[-1]}"
    return str(library), ""


def load_peer(spec: PeerSpec, path: Path, threads: int, exports: Path) -> EndToEnd:
    """Import what the system needs, nothing else, and load it.

    Args:
        spec: The system.
        path: The bundle.
        threads: CPU threads.
        exports: Folder of the plain exports.

    Raises:
        InputError: No such kind of system.
        BundleError: The bundle cannot serve it.
    """
    if spec.kind == ESCALATION:
        return _escalating(spec, path, threads)
    bundle = Bundle.open(path)
    if spec.kind == "engine":
        engine_provider = _open_provider(spec, bundle, threads)
        peer: Peer = EnginePeer(engine_provider, bundle.manifest)
    else:
        engine_provider = None
        peer = _plain_peer(spec, bundle, threads, exports)

    def load(cache_mb: int) -> Engine:
        provider = engine_provider or PeerProvider(peer, spec.name, keep=cache_mb > 0)
        return Engine(bundle, provider, threads=threads, image_cache_mb=cache_mb)

    return EndToEnd(load, peer)


def _escalating(spec: PeerSpec, path: Path, threads: int) -> EndToEnd:
    """Low precision first, float32 where an answer is not certain: both tiers in one engine."""

    def load(cache_mb: int) -> Engine:
        return Engine.load(
            path,
            spec.provider,
            spec.precision,
            threads=threads,
            image_cache_mb=cache_mb,
            check="off",
        )

    whole = EndToEnd(load)
    whole.prepare((), "hit")  # loading counts as loading, not as the first post
    return whole


def _open_provider(spec: PeerSpec, bundle: Bundle, threads: int) -> Provider:
    from amlr.runtime.providers.registry import open_provider

    variant = bundle.manifest.variants[spec.variant]
    bundle.verify(variant)
    options = ProviderOptions(threads=threads)
    return open_provider(spec.provider, bundle, variant, options)


def _plain_peer(spec: PeerSpec, bundle: Bundle, threads: int, exports: Path) -> Peer:
    manifest = bundle.manifest
    if spec.kind in ("onnxruntime-plain", "openvino"):
        from amlr.benchmarks.systems.exported import OnnxPlainPeer, OpenvinoPlainPeer

        if spec.kind == "openvino":
            return OpenvinoPlainPeer(exports, manifest, threads, spec.precision)
        return OnnxPlainPeer(exports, manifest, threads)
    import torch

    from amlr.benchmarks.systems.eager import CompiledPeer, EagerPeer, ResearchPeer
    from amlr.export.eager import load_reference

    torch.set_num_threads(threads)
    model = load_reference(bundle)
    if spec.kind == "research":
        return ResearchPeer(model, manifest)
    if spec.kind in ("eager-exact", "eager-bf16"):
        exact = spec.kind == "eager-exact"
        return EagerPeer(model, manifest, exact=exact, autocast=not exact)
    if spec.kind == "torch-compile":
        return CompiledPeer(model, manifest)
    raise InputError(f"there is no peer of kind {spec.kind!r}")
