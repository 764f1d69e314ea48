"""From a specification to a running peer, inside its worker process."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from amlr.benchmarks.inputs import ModelShape
from amlr.benchmarks.peers.base import ESCALATION, Peer, PeerSpec, Whole
from amlr.benchmarks.peers.end_to_end import EndToEnd, PeerProvider
from amlr.errors import InputError
from amlr.runtime.bundle import Bundle
from amlr.runtime.manifest import Manifest
from amlr.runtime.providers.base import Provider, ProviderOptions


def model_shape(manifest: Manifest) -> ModelShape:
    """What a bundle says of its model's inputs."""
    return ModelShape(
        scales=manifest.scales,
        pad_id=manifest.token_ids.pad_id,
        image_size=manifest.image.size,
        shapes=manifest.shape_embedding,
        width=manifest.width,
        regions=manifest.regions,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A running system.

    Attributes:
        peer: Tensors to logits; None where there is no such path.
        end_to_end: Behind the engine's text and decoding path.
        close: Frees what it holds.
    """

    peer: Peer | None
    end_to_end: Whole
    close: Callable[[], None]


def load_peer(spec: PeerSpec, bundle_path: str, threads: int, exports: str | None) -> Loaded:
    """Import what the peer needs, nothing else, and load it.

    Raises:
        InputError: No such kind of peer.
        BundleError: The bundle cannot serve it.
    """
    bundle = Bundle.open(bundle_path)
    shape = model_shape(bundle.manifest)
    if spec.kind == "engine":
        return _engine(spec, bundle, shape, threads)
    if spec.kind == ESCALATION:
        from amlr.benchmarks.peers.escalating import EscalatingPeer

        climbing = EscalatingPeer(bundle_path, spec.option("provider"), threads)
        return Loaded(peer=None, end_to_end=climbing, close=climbing.close)
    peer = _peer(spec, bundle, shape, threads, Path(exports) if exports else None)

    def provider(keep: bool) -> Provider:
        return PeerProvider(peer, spec.name, keep=keep)

    return Loaded(peer=peer, end_to_end=EndToEnd(bundle, provider, threads), close=peer.close)


def _engine(spec: PeerSpec, bundle: Bundle, shape: ModelShape, threads: int) -> Loaded:
    from amlr.benchmarks.peers.engine import EnginePeer
    from amlr.runtime.providers.registry import open_provider

    variant = bundle.manifest.variants[spec.option("variant")]
    bundle.verify(variant)
    options = ProviderOptions(threads=threads)
    provider = open_provider(spec.option("provider"), bundle, variant, options)
    end_to_end = EndToEnd(bundle, lambda _: provider, threads)
    peer = EnginePeer(provider, shape)
    return Loaded(peer=peer, end_to_end=end_to_end, close=peer.close)


def _peer(
    spec: PeerSpec, bundle: Bundle, shape: ModelShape, threads: int, exports: Path | None
) -> Peer:
    if spec.kind == "onnxruntime-plain":
        from amlr.benchmarks.peers.onnx_plain import OnnxPlainPeer

        assert exports is not None, "this peer reads exports"
        return OnnxPlainPeer(exports, shape, threads)
    if spec.kind == "openvino":
        from amlr.benchmarks.peers.openvino_plain import OpenvinoPlainPeer

        assert exports is not None, "this peer reads exports"
        return OpenvinoPlainPeer(exports, shape, threads, spec.precision)
    return _torch_peer(spec, bundle, shape, threads)


def _torch_peer(spec: PeerSpec, bundle: Bundle, shape: ModelShape, threads: int) -> Peer:
    import torch

    from amlr.export.reference import load_reference

    torch.set_num_threads(threads)
    model = load_reference(bundle)
    if spec.kind == "research":
        from amlr.benchmarks.peers.eager import ResearchPeer

        return ResearchPeer(model, shape)
    if spec.kind in ("eager-exact", "eager-bf16"):
        from amlr.benchmarks.peers.eager import EagerPeer

        exact = spec.kind == "eager-exact"
        return EagerPeer(model, shape, exact=exact, autocast=not exact)
    if spec.kind == "torch-compile":
        from amlr.benchmarks.peers.compiled import CompiledPeer

        return CompiledPeer(model, shape)
    raise InputError(f"there is no peer of kind {spec.kind!r}")
