"""Every peer computes the same numbers: a fast baseline that is wrong would prove nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch

from amlr.benchmarks.inputs import ModelInput, ModelShape, Picture, build_inputs
from amlr.benchmarks.jobs import max_error
from amlr.benchmarks.peers.base import Peer, PeerSpec
from amlr.benchmarks.peers.build import load_peer, model_shape
from amlr.benchmarks.peers.eager import ConvUnits, EagerPeer
from amlr.benchmarks.peers.end_to_end import EndToEnd, PeerProvider
from amlr.benchmarks.peers.onnx_plain import OnnxPlainPeer
from amlr.benchmarks.peers.registry import PEERS, resolve
from amlr.benchmarks.peers.whole_model import whole_graphs
from amlr.benchmarks.workloads import stretch
from amlr.export.reference import load_reference
from amlr.export.samples import sample_image
from amlr.export.to_onnx import write_graphs
from amlr.runtime.bundle import Bundle
from amlr.runtime.engine import Engine
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
def shape(bundle: Bundle) -> ModelShape:
    return model_shape(bundle.manifest)


@pytest.fixture(scope="module")
def inputs(bundle: Bundle) -> list[ModelInput]:
    manifest = bundle.manifest
    return build_inputs(POSTS, bundle.encoder, manifest.scales, manifest.image, manifest.limits)


@pytest.fixture(scope="module")
def exports(model: AmlrModel, shape: ModelShape, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    write_graphs(whole_graphs(model, shape), folder)
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
    shape: ModelShape,
    inputs: list[ModelInput],
) -> None:
    options = (("provider", "onnxruntime-cpu"), ("variant", "fp32"))
    spec = PeerSpec(name=kind, kind=kind, options=options)
    loaded = load_peer(spec, str(tiny_plan), 1, str(exports))
    reference = EagerPeer(model, shape, exact=True)
    for picture in PICTURES:
        check(loaded.peer, reference, inputs, picture)
    loaded.peer.close()


def test_padding_does_not_change_the_eager_numbers(
    model: AmlrModel, shape: ModelShape, inputs: list[ModelInput]
) -> None:
    reference = EagerPeer(model, shape, exact=True)
    for picture in PICTURES:
        check(EagerPeer(model, shape, exact=False), reference, inputs, picture)


def test_autocast_is_close_and_not_equal(
    model: AmlrModel, shape: ModelShape, inputs: list[ModelInput]
) -> None:
    low, exact = (
        EagerPeer(model, shape, exact=False, autocast=True),
        EagerPeer(model, shape, exact=True),
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
    tiny_plan: Path, bundle: Bundle, exports: Path, shape: ModelShape
) -> None:
    posts = [*POSTS, Post("no picture in New York"), Post("")]
    with Engine.load(tiny_plan, "onnxruntime", "exact", threads=1) as engine:
        expected = [r.entities for r in engine.tag_batch(posts)]
    peer = OnnxPlainPeer(exports, shape, 1)
    whole = EndToEnd(bundle, lambda keep: PeerProvider(peer, "plain", keep=keep), 1)
    for picture in ("cold", "hit"):
        found = whole.entities(whole.prepare(posts, picture)())
        assert [[(e.start, e.end, e.label) for e in post] for post in found] == [
            [(e.start, e.end, e.label) for e in post] for post in expected
        ]


def test_stretched_posts_have_the_length_and_whole_words(inputs: list[ModelInput]) -> None:
    for steps in (8, 33):
        item = stretch(inputs[2], steps, 6)
        assert item.steps == steps
        assert item.window.first_n[0] == 1
        assert item.window.last_n[-1] == steps - 2
        assert (item.window.first_n[1:] == item.window.last_n[:-1] + 1).all()


def test_every_peer_resolves_or_says_why_not(tmp_path: Path) -> None:
    for name in PEERS:
        spec, reason = resolve(name, tmp_path)
        assert (spec is None) == bool(reason), name
