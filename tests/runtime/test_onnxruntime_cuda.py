"""onnxruntime under the device session, on its CPU engine and a double of the driver."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amlr.errors import AmlrError, BackendUnavailableError, PlanMismatchError
from amlr.export.samples import sample_posts
from amlr.kernels.device import DeviceError, DeviceMemoryError
from amlr.runtime import Engine, tier_choice
from amlr.runtime.batching import Scores
from amlr.runtime.bundle import Bundle
from amlr.runtime.device import onnxruntime as cuda
from amlr.runtime.device.preflight import HostTools
from amlr.runtime.device.provider import DeviceProvider
from amlr.runtime.manifest import Manifest
from amlr.runtime.providers import registry
from amlr.runtime.providers.base import ProviderOptions
from amlr.runtime.results import Post
from amlr.runtime.tier_timing import TierTime
from doubles.device import DoubleDevice
from doubles.onnxruntime import OnnxRuntimeDouble
from shims.host_build import HostBuilder
from shims.shim_device import ShimDevice

POSTS = sample_posts(500, images=6)
Machine = tuple[DoubleDevice, HostTools, OnnxRuntimeDouble]


def tools_of(device: DoubleDevice) -> tuple[HostTools, OnnxRuntimeDouble]:
    """A machine made of doubles."""
    module = OnnxRuntimeDouble(device)
    compile_with = {} if device.kernels is None else {"compile_with": device.kernels.compile}
    tools = HostTools(
        probe=lambda: None,
        open_device=lambda: device,  # type: ignore[arg-type,return-value,unused-ignore]
        free_bytes=lambda opened: device.free_bytes,
        module=module,
        **compile_with,
    )
    return tools, module


def assert_nothing_left(device: DoubleDevice, module: OnnxRuntimeDouble) -> None:
    assert device.closed
    assert device.live_allocations == 0
    assert device.streams == {}
    assert device.graphs == 0
    assert module.sessions == 0


@pytest.fixture
def machine() -> Iterator[Machine]:
    device = DoubleDevice()
    tools, module = tools_of(device)
    yield device, tools, module
    assert_nothing_left(device, module)


@pytest.fixture
def decoding_machine(host_builder: HostBuilder) -> Iterator[Machine]:
    device = DoubleDevice(kernels=ShimDevice(host_builder))
    tools, module = tools_of(device)
    yield device, tools, module
    assert_nothing_left(device, module)


@pytest.fixture(scope="module")
def bundle(tiny_plan: Path) -> Bundle:
    return Bundle.open(tiny_plan)


@pytest.fixture(scope="module")
def expected(tiny_plan: Path) -> tuple[Any, Any]:
    with Engine.load(tiny_plan, provider="onnxruntime-cpu") as engine:
        return engine.tag_batch(POSTS), engine.raw(POSTS[:60])


def opened(bundle: Bundle, tools: HostTools) -> DeviceProvider:
    return cuda.open_cuda(bundle, bundle.manifest.variants["fp32"], ProviderOptions(), tools)


def spans(results: Any) -> list[list[tuple[int, int, str]]]:
    return [[(e.start, e.end, e.label) for e in result.entities] for result in results]


def test_same_answers_as_the_plain_provider_on_500_posts(
    bundle: Bundle, decoding_machine: Machine, expected: tuple[Any, Any]
) -> None:
    device, tools, module = decoding_machine
    provider = opened(bundle, tools)
    with Engine(bundle, provider) as engine:
        results, raws = engine.tag_batch(POSTS), engine.raw(POSTS[:60])
        again = engine.tag_batch(POSTS)
        assert provider.captured_graphs > 5
        assert device.graph_launches > provider.captured_graphs
    for run in (results, again):
        assert spans(run) == spans(expected[0])
        for result, wanted in zip(run, expected[0], strict=True):
            scores = [e.score for e in result.entities]
            np.testing.assert_allclose(
                scores, [e.score for e in wanted.entities], rtol=0, atol=2e-5
            )
    assert sum(map(len, spans(results))) > 300
    assert {result.provider for result in results} == {"onnxruntime-cuda"}
    assert sum(result.image_used for result in results) > 300
    for raw, wanted in zip(raws, expected[1], strict=True):
        np.testing.assert_allclose(raw.unit_logits, wanted.unit_logits, atol=2e-5)
        np.testing.assert_allclose(raw.emissions, wanted.emissions, atol=2e-5)
    # Float32 is float32, and nothing is searched again for every shape.
    assert {options["use_tf32"] for options in module.provider_options} == {"0"}
    assert {o["cudnn_conv_algo_search"] for o in module.provider_options} == {"HEURISTIC"}


def test_one_copy_each_way_for_a_batch(
    bundle: Bundle, decoding_machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, tools, _ = decoding_machine
    downloads: list[int] = []
    download = DoubleDevice.download

    def counted(self: DoubleDevice, array: Any, *rest: Any) -> None:
        downloads.append(array.nbytes)
        download(self, array, *rest)

    monkeypatch.setattr(DoubleDevice, "download", counted)
    with Engine(bundle, opened(bundle, tools)) as engine:
        posts = [Post(post.text, None, post.words) for post in POSTS[:16]]
        uploads = device.uploads
        downloads.clear()
        engine.tag_batch(posts)
        assert device.uploads - uploads == len(downloads) > 0
        logits = 16 * 32 * len(bundle.manifest.classes) * 4
        assert all(size < 64 * logits for size in downloads)
        launches, uploads = device.graph_launches, device.uploads
        for _ in range(3):
            engine.tag_batch(posts)
        # The second time captures, the third and fourth only launch.
        assert device.graph_launches > launches


@pytest.mark.parametrize("graph", ["text", "fusion"])
def test_what_cannot_be_captured_is_enqueued(
    bundle: Bundle,
    machine: Machine,
    expected: tuple[Any, Any],
    graph: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    _, tools, module = machine
    module.faults.active.add("capture")
    module.faults.graph = graph
    with Engine(bundle, opened(bundle, tools)) as engine:
        for _ in range(3):
            assert spans(engine.tag_batch(POSTS[:20])) == spans(expected[0][:20])
        assert engine.pipeline.provider.captured_graphs == 0  # type: ignore[attr-defined]
    refusals = [record for record in caplog.records if "is not captured" in record.message]
    assert refusals
    assert "operation not permitted" in refusals[0].message


def test_graphs_that_copy_from_the_host_are_never_captured(
    bundle: Bundle, machine: Machine, expected: tuple[Any, Any]
) -> None:
    """Replayed, such a copy would read whatever the host has there by then."""
    device, tools, module = machine
    module.faults.active.add("memcpy")
    module.faults.graph = "fusion"
    with Engine(bundle, opened(bundle, tools)) as engine:
        for _ in range(3):
            assert spans(engine.tag_batch(POSTS[:20])) == spans(expected[0][:20])
    assert device.graph_launches == 0
    assert sorted(o["enable_cuda_graph"] for o in module.provider_options) == ["0", "1", "1"]


LOAD_FAULTS = [
    ("session", PlanMismatchError, "cannot load graph .* for CUDA: CUDNN failure 1001$"),
    ("fallback", BackendUnavailableError, "instead of CUDA"),
    ("bind", DeviceError, "refuses '.*' of shape"),
    ("run", DeviceError, "could not be run: CUDA failure 700"),
]


@pytest.mark.parametrize(("fault", "error", "message"), LOAD_FAULTS)
@pytest.mark.parametrize("graph", ["text", "image", "fusion"])
def test_faults_at_load_are_named_and_leave_nothing(
    bundle: Bundle, machine: Machine, fault: str, error: type[Exception], message: str, graph: str
) -> None:
    _, tools, module = machine
    module.faults.active.add(fault)
    module.faults.graph = graph
    with pytest.raises(error, match=message):
        opened(bundle, tools)


def test_memory_may_run_out_at_any_allocation(bundle: Bundle) -> None:
    device = DoubleDevice()
    opened(bundle, tools_of(device)[0]).close()
    needed = device.allocations
    assert needed > 3
    for limit in range(needed):
        device = DoubleDevice()
        device.alloc_limit = limit
        tools, module = tools_of(device)
        with pytest.raises(DeviceMemoryError):
            opened(bundle, tools)
        assert_nothing_left(device, module)


@pytest.mark.parametrize("fault", ["run", "bind"])
def test_a_fault_in_service_fails_one_call_and_not_the_next(
    bundle: Bundle, machine: Machine, expected: tuple[Any, Any], fault: str
) -> None:
    _, tools, module = machine
    with Engine(bundle, opened(bundle, tools)) as engine:
        module.faults.active.add(fault)
        with pytest.raises(AmlrError):
            engine.tag("one two three four five six seven eight nine " * 3)
        module.faults.active.clear()
        assert spans(engine.tag_batch(POSTS[:20])) == spans(expected[0][:20])


def test_too_little_memory_is_refused(bundle: Bundle) -> None:
    device = DoubleDevice(free_bytes=1 << 30)
    tools, module = tools_of(device)
    with pytest.raises(DeviceMemoryError, match="leave no room for one picture"):
        opened(bundle, tools)
    assert_nothing_left(device, module)


def test_certified_fp16_gives_float32s_entities_on_500_posts(
    tiny_plan: Path,
    tmp_path: Path,
    machine: Machine,
    expected: tuple[Any, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    _, tools, _ = machine
    other = DoubleDevice()
    radii = {"units": 2e-2, "tokens": 2e-2, "posts": 200, "steps": 60, "blocks": [0]}
    parity = {
        "calibration": {"given": True},
        "radii": dict.fromkeys(("text", "picture", "picture-only"), radii),
        "certificates": {kind: {"posts": 200, "certified": 0.9} for kind in ("text", "picture")},
    }
    plan = Path(shutil.copytree(tiny_plan, tmp_path / "fp16.plan"))
    manifest = json.loads((plan / "manifest.json").read_text())
    fp16 = {"precision": "fp16", "provider": "onnxruntime-cuda", "parity": parity}
    manifest["variants"]["fp16"] = manifest["variants"]["fp32"] | fp16
    (plan / "manifest.json").write_text(Manifest.from_json(json.dumps(manifest)).to_json())

    def open_double(bundle: Bundle, variant: Any, options: ProviderOptions) -> DeviceProvider:
        is_half = variant.precision == "fp16"
        own_tools = tools_of(other)[0] if is_half else tools
        provider = cuda.open_cuda(bundle, variant, options, own_tools)
        if is_half:
            score = provider.score

            def rounded(*arguments: Any) -> Scores:
                scores = score(*arguments)
                half = scores.unit_logits_mc.astype(np.float16).astype(np.float32)
                return replace(scores, unit_logits_mc=half)

            monkeypatch.setattr(provider, "score", rounded)
        return provider

    slow = TierTime(
        provider="onnxruntime-cuda", precision="fp32", alone_ms=1.0, batch_ms=1.0, picture_ms=1.0
    )
    fast = replace(slow, precision="fp16", batch_ms=0.1)
    monkeypatch.setattr(cuda, "open_double", open_double, raising=False)
    place = f"{cuda.__name__}:open_double"
    monkeypatch.setitem(registry.PROVIDERS, "onnxruntime-cuda", place)
    # A double's times mean nothing.
    monkeypatch.setattr(tier_choice, "time_tiers", lambda contestants, *_, **__: [slow, fast])
    monkeypatch.setattr(tier_choice, "BATCH_POSTS", 1)
    with Engine.load(plan, provider="onnxruntime-cuda", sentinel=0.1) as engine:
        assert engine.precision == "fp16+fp32"
        results = engine.tag_batch(POSTS)
        assert spans(results) == spans(expected[0])
        assert {result.provider for result in results} == {"onnxruntime-cuda"}
        stats = engine.certificates
        assert stats is not None
        # A picture on the device stays there: no post climbs with it.
        assert stats.low > 100
        assert stats.picture == 0
        assert (stats.low + stats.exact, stats.changed) == (len(POSTS), 0)
        assert stats.checked > 10
        assert "out of service" not in caplog.text
    assert other.closed
    assert other.live_allocations == 0
