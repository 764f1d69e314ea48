"""The peers by name: what each is, what it needs, and whether this machine can run it."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from amlr.benchmarks.peers.base import PeerSpec
from amlr.benchmarks.peers.mkl import build_preload

BASELINE = "research"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A peer that can be asked for.

    Attributes:
        about: One line for reports.
        kind: Implementation in `amlr.benchmarks.peers.build`.
        precision: What it computes in.
        packages: Import names it needs.
        exports: Whether it reads the one-graph ONNX exports.
        quick: Whether `--quick` runs it.
        mkl: Whether it needs the MKL preload.
    """

    about: str
    kind: str
    precision: str = "fp32"
    packages: tuple[str, ...] = ("torch",)
    exports: bool = False
    quick: bool = True
    mkl: bool = False


PEERS = {
    "research": Entry(
        about="eager PyTorch as released: padded to 50, all units as Conv1d, plain attention",
        kind="research",
    ),
    "research-mkl": Entry(
        about="the same, with MKL taking its full-speed path on AMD processors",
        kind="research",
        mkl=True,
    ),
    "eager-exact": Entry(
        about="eager PyTorch, each post at its own length", kind="eager-exact", quick=False
    ),
    "eager-bf16": Entry(
        about="eager PyTorch under bf16 autocast, padded to the batch's longest post",
        kind="eager-bf16",
        precision="bf16",
        quick=False,
    ),
    "torch-compile": Entry(
        about="torch.compile, dynamic shapes, frozen weights, padded to the batch's longest post",
        kind="torch-compile",
        quick=False,
    ),
    "onnxruntime-plain": Entry(
        about="one-graph ONNX export in onnxruntime, padded to the batch's longest post",
        kind="onnxruntime-plain",
        packages=("onnxruntime",),
        exports=True,
    ),
    "openvino": Entry(
        about="plain OpenVINO conversion, each post at its own length",
        kind="openvino",
        packages=("openvino",),
        exports=True,
    ),
    "openvino-bf16": Entry(
        about="plain OpenVINO conversion with the bf16 hint, each post at its own length",
        kind="openvino",
        precision="bf16",
        packages=("openvino",),
        exports=True,
        quick=False,
    ),
    "openvino-int8": Entry(
        about="that conversion quantized by NNCF, rest in bf16, each post at its own length",
        kind="openvino",
        precision="int8",
        packages=("openvino", "nncf"),
        exports=True,
        quick=False,
    ),
}


def resolve(name: str, folder: Path) -> tuple[PeerSpec | None, str]:
    """Make a peer runnable here.

    Args:
        name: Key of `PEERS`.
        folder: Where files may be built.

    Returns:
        Its specification and "", or None and why this machine cannot run it.
    """
    entry = PEERS[name]
    missing = [package for package in entry.packages if importlib.util.find_spec(package) is None]
    if missing:
        return None, f"needs the package {missing[0]!r}, which is not installed"
    preload = None
    if entry.mkl:
        preload, reason = build_preload(folder)
        if preload is None:
            return None, reason
    # The precision has its own column, so all OpenVINO rows carry the same name.
    return (
        PeerSpec(
            name=entry.kind if entry.kind == "openvino" else name,
            kind=entry.kind,
            precision=entry.precision,
            preload=preload,
        ),
        "",
    )
