"""The TensorRT provider on doubles of the driver and the engine: plumbing, refusals, no leaks."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amlr.errors import PlanMismatchError
from amlr.export.profiles import Extent, Profile
from amlr.export.samples import sample_posts
from amlr.runtime import Engine
from amlr.runtime.bundle import Bundle
from amlr.runtime.device import session
from amlr.runtime.device.pool import HostImage, ImagePool
from amlr.runtime.device.shapes import Bucket
from doubles.bundle import PROFILE, double_bundle, double_tools, entities, open_double
from doubles.device import DoubleDevice

POSTS = sample_posts(500, images=6)


@pytest.fixture(scope="module")
def bundle(tiny_plan: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return double_bundle(tiny_plan, tmp_path_factory.mktemp("double") / "d.plan")


@pytest.fixture(scope="module")
def rtx_bundle(tiny_plan: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("double") / "rtx.plan"
    return double_bundle(tiny_plan, out, library="tensorrt-rtx", version="1.7.1.116")


@pytest.fixture(scope="module")
def expected(tiny_plan: Path) -> tuple[Any, Any]:
    with Engine.load(tiny_plan, provider="onnxruntime") as engine:
        return engine.tag_batch(POSTS), engine.raw(POSTS[:60])


def test_same_entities_as_onnxruntime_on_500_posts(
    bundle: Bundle, machine: Any, expected: tuple[Any, Any]
) -> None:
    device, tools, _ = machine
    with Engine(bundle, open_double(bundle, tools)) as engine:
        results, raws = engine.tag_batch(POSTS), engine.raw(POSTS[:60])
        assert device.graph_launches > 10
    assert entities(results) == entities(expected[0])
    assert sum(len(found) for found in entities(results)) > 300
    assert {result.provider for result in results} == {"tensorrt"}
    assert sum(result.image_used for result in results) > 300
    for a, b in zip(raws, expected[1], strict=True):
        np.testing.assert_allclose(a.unit_logits, b.unit_logits, atol=2e-5)
        np.testing.assert_allclose(a.emissions, b.emissions, atol=2e-5)


def test_rtx_uses_its_own_graphs_and_keeps_its_cache(
    rtx_bundle: Bundle, expected: tuple[Any, Any], tmp_path: Path
) -> None:
    for start in range(2):
        device = DoubleDevice()
        tools, module = double_tools(device, "1.7.1.116")
        provider = open_double(rtx_bundle, tools, "tensorrt-rtx", tmp_path)
        if start:
            assert provider._engines._cache.loaded == b"kernels"  # type: ignore[attr-defined]
        with Engine(rtx_bundle, provider) as engine:
            assert entities(engine.tag_batch(POSTS[:40])) == entities(expected[0][:40])
        assert device.graph_launches == 0
        assert device.live_allocations == 0
        assert module.contexts == 0
    (file,) = tmp_path.iterdir()
    assert file.name == "tensorrt-rtx-1.7.1.116-sm89.runtime-cache"


def test_buckets_come_and_go_without_leaks(
    bundle: Bundle, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, tools, module = machine
    monkeypatch.setattr(session, "RUNS_KEPT", 2)
    provider = open_double(bundle, tools)
    with Engine(bundle, provider) as engine:
        for length in (3, 30, 9, 60, 3, 30, 9, 60, 3, 3):
            engine.tag(" ".join(["word"] * length))
            assert module.contexts <= 2 * 2 + 1  # text and fusion per bucket, and the image engine
            assert device.graphs <= 2
    assert module.contexts == 0


def test_windows_beyond_the_profile_are_split_or_refused(
    tiny_plan: Path, tmp_path: Path, machine: Any, expected: tuple[Any, Any]
) -> None:
    _, tools, _ = machine
    small = Profile(
        posts=Extent(1, 2, 3), tokens=Extent(6, 16, 64), units=Extent(1, 32, 60),
        pool=Extent(1, 2, 2), pictures=Extent(1, 1, 2),
    )  # fmt: skip
    bundle = double_bundle(tiny_plan, tmp_path / "small.plan", profiles=(small,))
    short = [i for i, post in enumerate(POSTS[:60]) if len(post.text) < 40]
    with Engine(bundle, open_double(bundle, tools)) as engine:
        found = engine.tag_batch([POSTS[i] for i in short])
        assert entities(found) == entities([expected[0][i] for i in short])
        with pytest.raises(PlanMismatchError, match="units, the tensorrt graphs end at 60") as no:
            engine.tag("a b c d e f g h i j k l m n o p q r s t u v w x y z")
        assert "amlr-export --from" in str(no.value)


def test_two_profiles_are_chosen_by_shape(
    tiny_plan: Path, tmp_path: Path, machine: Any, expected: tuple[Any, Any]
) -> None:
    _, tools, _ = machine
    short = Profile(
        posts=Extent(1, 2, 4), tokens=Extent(6, 8, 16), units=Extent(1, 32, 64),
        pool=Extent(1, 8, 40), pictures=Extent(1, 1, 4),
    )  # fmt: skip
    bundle = double_bundle(tiny_plan, tmp_path / "two.plan", profiles=(short, PROFILE))
    with Engine(bundle, open_double(bundle, tools)) as engine:
        assert entities(engine.tag_batch(POSTS[:80])) == entities(expected[0][:80])


def test_each_call_takes_the_profile_of_its_batch(
    tiny_plan: Path, tmp_path: Path, machine: Any, expected: tuple[Any, Any]
) -> None:
    _, tools, _ = machine
    profiles = PROFILE.split([1, 4, 16])
    bundle = double_bundle(tiny_plan, tmp_path / "batches.plan", profiles=profiles)
    provider = open_double(bundle, tools)
    # The usual shape of each profile is ready before the first call.
    assert provider.limits.usual == ((1, 16), (4, 16), (16, 16))
    assert provider.captured_graphs == 3
    with Engine(bundle, provider) as engine:
        for stop in (1, 2, 4, 5, 60):
            found = engine.tag_batch(POSTS[:stop])
            assert entities(found) == entities(expected[0][:stop])
        taken = {
            (shape.bucket.posts, graph._context.profile)
            for session in provider._sessions
            for shape, run in session._ready.items()
            for graph in run.graphs
        }
        pictures = {
            (rows, graph._context.profile)
            for session in provider._sessions
            for rows, (graph, _) in session._pictures.items()
        }
    assert taken >= {(1, 0), (2, 1), (4, 1), (8, 2), (16, 2)}
    assert all(p.posts.min <= rows <= p.posts.max for rows, at in taken for p in [profiles[at]])
    # Four pictures at most, so the image engine's last two profiles are the same.
    assert pictures <= {(1, 0), (2, 1), (4, 1)}


def test_planned_buckets_are_the_captured_shapes(
    tiny_plan: Path, tmp_path: Path, machine: Any, expected: tuple[Any, Any]
) -> None:
    _, tools, _ = machine
    planned = ((12, 40), (36, 150))
    bundle = double_bundle(tiny_plan, tmp_path / "planned.plan", buckets=planned)
    provider = open_double(bundle, tools)
    limits = provider.limits
    assert limits.bucket(3, 9, 30) == Bucket(4, 12, 40)
    assert limits.bucket(1, 9, 41) == Bucket(1, 36, 150)
    assert limits.bucket(1, 40, 100) == Bucket(1, 40, 128)  # the grid, for what was not planned
    with Engine(bundle, provider) as engine:
        assert entities(engine.tag_batch(POSTS[:40])) == entities(expected[0][:40])


def test_full_pool_spills_to_the_host(
    bundle: Bundle, machine: Any, expected: tuple[Any, Any]
) -> None:
    _, tools, _ = machine
    provider = open_double(bundle, tools)
    assert provider._pool is not None
    held = provider._pool.reserve(len(provider._pool._free))
    pixels = np.zeros((2, 3, 64, 64), np.float32)
    assert all(isinstance(image, HostImage) for image in provider.encode_images(pixels))
    with Engine(bundle, provider) as engine:
        assert entities(engine.tag_batch(POSTS[:30])) == entities(expected[0][:30])
        provider._pool.release(held)


def test_slots_return_when_their_pictures_are_gone() -> None:
    device = DoubleDevice()
    with device.current():
        pool = ImagePool(device, 2, 3, 4)  # type: ignore[arg-type]
        first, second = pool.take(), pool.take()
        assert first is not None
        assert second is not None
        assert pool.take() is None
        assert {first.slot, second.slot} == {0, 1}
        del first
        assert len(pool._free) == 1
        again = pool.take()
        assert again is not None
        assert again.slot == 0
        pool.close()
    assert device.live_allocations == 0


def test_threads_get_sessions_of_their_own(
    bundle: Bundle, machine: Any, expected: tuple[Any, Any]
) -> None:
    _, tools, _ = machine
    provider = open_double(bundle, tools)
    found: dict[int, Any] = {}
    with Engine(bundle, provider) as engine:

        def work(number: int) -> None:
            found[number] = engine.tag_batch(POSTS[number * 30 : number * 30 + 30])

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 1 <= len(provider._sessions) <= 2
    for number in range(4):
        part = expected[0][number * 30 : number * 30 + 30]
        assert entities(found[number]) == entities(part)
