"""Every peer computes the same numbers: a fast baseline must not be a wrong one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from amlr.benchmarks.process import Remote
from amlr.benchmarks.systems import exported
from amlr.benchmarks.systems.base import (
    ModelInput,
    Peer,
    PeerSpec,
    Picture,
    build_inputs,
    max_error,
)
from amlr.benchmarks.systems.eager import ConvUnits, EagerPeer, plain_graphs
from amlr.benchmarks.systems.engine import EndToEnd, EnginePeer, PeerProvider
from amlr.benchmarks.systems.exported import OnnxPlainPeer, OpenvinoPlainPeer
from amlr.benchmarks.systems.registry import PEERS, load_peer, resolve
from amlr.errors import BackendUnavailableError, ExportError
from amlr.export.eager import load_reference
from amlr.export.samples import sample_image
from amlr.export.to_onnx import write_graphs
from amlr.runtime.bundle import Bundle
from amlr.runtime.engine import Engine
from amlr.runtime.manifest import Manifest
from amlr.runtime.results import Post
from amlr.training.model import AmlrModel, Units

TEXTS = ("Jordan at Paris tonight", "ok", "new york , new york is where Apple met St. James !")
POSTS = tuple(Post(text, sample_image(i)) for i, text in enumerate(TEXTS))
PICTURES: tuple[Picture, ...] = ("cold", "hit", "none", "block", "block-none")
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def bundle(tiny_plan: Path) -> Bundle:
    return Bundle.open(tiny_plan)


@pytest.fixture(scope="module")
def model(bundle: Bundle) -> AmlrModel:
    return load_reference(bundle)


@pytest.fixture(scope="module")
def manifest(bundle: Bundle) -> Manifest:
    return bundle.manifest


@pytest.fixture(scope="module")
def inputs(bundle: Bundle) -> list[ModelInput]:
    return build_inputs(POSTS, bundle)


@pytest.fixture(scope="module")
def exports(model: AmlrModel, manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    write_graphs(plain_graphs(model, manifest), folder)
    return folder


def check(peer: Peer, reference: Peer, inputs: list[ModelInput], picture: Picture) -> None:
    expected = reference.scores(reference.prepare(inputs, picture)(), inputs)
    found = peer.scores(peer.prepare(inputs, picture)(), inputs)
    assert max_error([expected], [found]) <= TOLERANCE


@pytest.mark.parametrize("kind", ["research", "onnxruntime-plain", "openvino", "engine"])
def test_peers_give_the_eager_numbers(
    kind: str,
    tiny_plan: Path,
    exports: Path,
    model: AmlrModel,
    manifest: Manifest,
    inputs: list[ModelInput],
) -> None:
    spec = PeerSpec(name=kind, kind=kind, provider="onnxruntime-cpu", variant="fp32")
    peer = load_peer(spec, tiny_plan, 1, exports).peer
    assert peer is not None
    reference = EagerPeer(model, manifest, exact=True)
    for picture in PICTURES:
        check(peer, reference, inputs, picture)


def test_openvino_in_lower_precisions_is_close(
    tiny_plan: Path,
    exports: Path,
    model: AmlrModel,
    manifest: Manifest,
    inputs: list[ModelInput],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Quantizing is NNCF's; what is ours is what it is given, and that its result is run and kept.
    calls: list[tuple[str, list[list[str]]]] = []

    def quantize(
        self: Remote, method: str, source: Path, feeds: list[dict[str, Any]], target: Path
    ) -> None:
        calls.append((method, [list(feed) for feed in feeds]))
        library = pytest.importorskip("openvino")
        library.save_model(library.convert_model(source), target)

    monkeypatch.setattr(Remote, "call", quantize)
    reference = EagerPeer(model, manifest, exact=True)
    expected = reference.scores(reference.prepare(inputs, "block")(), inputs)
    for precision in ("bf16", "int8"):
        spec = PeerSpec(name="openvino", kind="openvino", precision=precision)
        for _ in range(2):
            peer = load_peer(spec, tiny_plan, 1, exports).peer
            assert peer is not None
            found = peer.scores(peer.prepare(inputs, "block")(), inputs)
            assert max_error([expected], [found]) < 0.5
    assert calls == [("quantize", 3 * [["hidden", "seen"]])]


def test_a_failed_quantization_says_why(exports: Path, tmp_path: Path) -> None:
    broken = tmp_path / "block.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(ExportError, match=r"could not quantize block\.onnx: .+"):
        exported.quantized(broken, [{"hidden": np.zeros((1, 2, 3), np.float32)}])
    assert list(tmp_path.iterdir()) == [broken]


def test_nncf_quantizes_a_real_export(
    exports: Path, manifest: Manifest, inputs: list[ModelInput]
) -> None:
    peer = OpenvinoPlainPeer(exports, manifest, 1, "int8")
    found = peer.scores(peer.prepare(inputs, "block-none")(), inputs)
    exact = OpenvinoPlainPeer(exports, manifest, 1, "fp32")
    expected = exact.scores(exact.prepare(inputs, "block-none")(), inputs)
    assert 0 < max_error([expected], [found]) < 1
    assert "FakeQuantize" in (exports / "block-none.int8.xml").read_text()


def test_the_block_needs_a_provider_that_fuses_alone(
    manifest: Manifest, inputs: list[ModelInput]
) -> None:
    peer = EnginePeer(PeerProvider(NoPeer(), "plain", keep=True), manifest)  # type: ignore[arg-type]
    with pytest.raises(BackendUnavailableError, match="leave `block` out"):
        peer.prepare(inputs, "block")


class NoPeer:
    """Never called."""


def test_padding_does_not_change_the_eager_numbers(
    model: AmlrModel, manifest: Manifest, inputs: list[ModelInput]
) -> None:
    reference = EagerPeer(model, manifest, exact=True)
    for picture in PICTURES:
        check(EagerPeer(model, manifest, exact=False), reference, inputs, picture)


def test_autocast_is_close_and_not_equal(
    model: AmlrModel, manifest: Manifest, inputs: list[ModelInput]
) -> None:
    low, exact = (
        EagerPeer(model, manifest, exact=False, autocast=True),
        EagerPeer(model, manifest, exact=True),
    )
    a = exact.scores(exact.prepare(inputs, "cold")(), inputs)
    b = low.scores(low.prepare(inputs, "cold")(), inputs)
    assert 0 < max_error([a], [b]) < 0.5


def test_convolutions_are_the_units() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        units, hidden = Units(8, 4), torch.randn(2, 9, 8)
    with torch.no_grad():
        np.testing.assert_allclose(ConvUnits(units)(hidden), units(hidden), atol=1e-6)


def test_a_peer_behind_the_engine_gives_the_engines_entities(
    tiny_plan: Path, bundle: Bundle, exports: Path, manifest: Manifest
) -> None:
    posts = [*POSTS, Post("no picture in New York"), Post("")]
    with Engine.load(tiny_plan, "onnxruntime", "exact", threads=1) as engine:
        expected = [r.entities for r in engine.tag_batch(posts)]
    peer = OnnxPlainPeer(exports, manifest, 1)

    def load(cache_mb: int) -> Engine:
        provider = PeerProvider(peer, "plain", keep=cache_mb > 0)
        return Engine(bundle, provider, threads=1, image_cache_mb=cache_mb)

    whole = EndToEnd(load, peer)
    for picture in ("cold", "hit"):
        found = [result.entities for result in whole.prepare(posts, picture)()]
        assert [[(e.start, e.end, e.label) for e in post] for post in found] == [
            [(e.start, e.end, e.label) for e in post] for post in expected
        ]
    whole.close()


def test_every_peer_resolves_or_says_why_not(tmp_path: Path) -> None:
    for name, peer in PEERS.items():
        spec, reason = resolve(peer, tmp_path)
        assert reason or bool(spec.preload) == peer.mkl, name
    _, reason = resolve(replace(PEERS["research"], packages=("no_such",)), tmp_path)
    assert "'no_such', which is not installed" in reason
