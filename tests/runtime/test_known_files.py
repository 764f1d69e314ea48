"""Picture files recognised by their times: what must be read again is, what need not is not."""

import io
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from amlr.errors import AmlrError, InputError
from amlr.runtime import Engine, Post, known_files
from amlr.runtime.answer_cache import AnswerCache
from amlr.runtime.image import ImageLimits
from amlr.runtime.image_cache import ImageCache
from amlr.runtime.known_files import KnownFiles, file_stamp
from amlr.runtime.results import Result


def bmp(seed: int) -> bytes:
    """A picture whose file has the same size whatever it shows."""
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="BMP")
    return file.getvalue()


def age(path: Path, seconds: float = 10.0) -> None:
    """Set the modification time back; the change time stays now."""
    os.utime(path, times=(time.time() - seconds,) * 2)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds by which this module's clock is ahead, so that new files count as old."""
    ahead = [10.0]
    now = time.time_ns
    monkeypatch.setattr(known_files.time, "time_ns", lambda: now() + int(ahead[0] * 1e9))
    return ahead


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every picture that is read."""
    sources: list[Any] = []
    read = known_files.read_source

    def counted(source: Any, limits: Any) -> Any:
        sources.append(source)
        return read(source, limits)

    monkeypatch.setattr(known_files, "read_source", counted)
    return sources


@pytest.fixture
def trusting(tiny_plan: Path) -> Iterator[Engine]:
    with Engine.load(
        tiny_plan, provider="onnxruntime", threads=1, check="off", trust_file_times=True
    ) as engine:
        yield engine


def features(engine: Engine, path: Any) -> Any:
    (found,) = engine.pipeline.encode_images([path])
    return found


@pytest.mark.usefixtures("clock")
def test_a_known_file_is_not_read_again(trusting: Engine, reads: list[Any], tmp_path: Path) -> None:
    path = tmp_path / "a.bmp"
    path.write_bytes(bmp(1))
    first = features(trusting, path)
    assert features(trusting, str(path)) is first
    linked = tmp_path / "linked.bmp"
    linked.hardlink_to(path)  # another change time: read once more, found by its content
    assert features(trusting, linked) is first
    assert features(trusting, path) is first
    assert reads == [path, linked]
    stats = trusting.image_cache
    assert (stats.hits, stats.misses) == (3, 1)


@pytest.mark.usefixtures("clock")
def test_a_changed_file_of_the_same_size_is_read(
    trusting: Engine, reads: list[Any], tmp_path: Path
) -> None:
    path = tmp_path / "a.bmp"
    path.write_bytes(bmp(1))
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    first = features(trusting, path)
    time.sleep(0.02)  # longer than a tick of the file system's clock
    path.write_bytes(bmp(200))
    os.utime(path, ns=times)  # even where somebody sets the modification time back
    second = features(trusting, path)
    assert reads == [path, path]
    assert second is not first
    assert features(trusting, bmp(200)) is second


@pytest.mark.usefixtures("clock")
def test_a_replaced_file_is_read(trusting: Engine, reads: list[Any], tmp_path: Path) -> None:
    path, other = tmp_path / "a.bmp", tmp_path / "b.bmp"
    path.write_bytes(bmp(1))
    other.write_bytes(bmp(200))
    first = features(trusting, path)
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    os.utime(other, ns=times)
    other.replace(path)
    second = features(trusting, path)
    assert second is not first
    assert reads == [path, path]
    assert features(trusting, bmp(200)) is second


def test_a_young_file_is_always_read(trusting: Engine, reads: list[Any], tmp_path: Path) -> None:
    path = tmp_path / "a.bmp"
    path.write_bytes(bmp(1))
    age(path)  # its change time is now
    for _ in range(3):
        features(trusting, path)
    assert reads == [path] * 3


def test_a_file_that_grows_old_is_recognised(
    trusting: Engine, reads: list[Any], tmp_path: Path, clock: list[float]
) -> None:
    path = tmp_path / "a.bmp"
    path.write_bytes(bmp(1))
    for ahead in (0.0, 1.0, 3.0, 3.0, 60.0):
        clock[0] = ahead
        features(trusting, path)
    assert reads == [path] * 3


@pytest.mark.usefixtures("clock")
def test_a_file_that_changes_while_it_is_read_is_not_remembered(
    trusting: Engine, reads: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bmp"
    path.write_bytes(bmp(1))
    read = known_files.read_source

    def changing(source: Any, limits: Any) -> Any:
        content = read(source, limits)
        time.sleep(0.02)
        path.write_bytes(bmp(200))
        return content

    monkeypatch.setattr(known_files, "read_source", changing)
    first = features(trusting, path)
    monkeypatch.setattr(known_files, "read_source", read)
    second = features(trusting, path)
    assert second is not first
    assert reads == [path, path]
    assert features(trusting, bmp(200)) is second


@pytest.mark.usefixtures("clock")
def test_regions_that_left_the_cache_are_computed_from_the_file_again(
    trusting: Engine, reads: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bmp"
    path.write_bytes(bmp(1))
    first = features(trusting, path)
    trusting.pipeline.images.reset()
    np.testing.assert_array_equal(features(trusting, path), first)
    # Another thread may drop them between the look-up of the key and that of the regions.
    trusting.pipeline.images.reset()
    monkeypatch.setattr(ImageCache, "holds", lambda *_: True)
    np.testing.assert_array_equal(features(trusting, path), first)
    assert reads == [path] * 3
    # If the file changes just then, other regions must not pass for these.
    trusting.pipeline.images.reset()
    stamp, get = file_stamp(path), KnownFiles.get
    assert stamp is not None
    key = get(trusting.pipeline.images.files or KnownFiles(), stamp)
    path.write_bytes(bmp(200))
    monkeypatch.setattr(KnownFiles, "get", lambda *_: key)
    result = trusting.tag("Paris", path)
    assert [warning["code"] for warning in result.warnings] == ["image_unreadable"]
    assert not result.image_used


def test_what_cannot_be_stamped(tmp_path: Path) -> None:
    folder: list[Any] = [tmp_path, tmp_path / "absent", "\0", b"bytes", None]
    assert [file_stamp(source) for source in folder] == [None] * 5


@pytest.mark.usefixtures("clock")
def test_errors_stay_as_they_are(trusting: Engine, tmp_path: Path) -> None:
    path = tmp_path / "a.bmp"
    for source, code in ((path, "image_missing"), (tmp_path, "image_unreadable")):
        for _ in range(2):
            assert [w["code"] for w in trusting.tag("Paris", source).warnings] == [code]
    path.write_bytes(b"no picture")
    for _ in range(2):  # an error is not kept
        (found,) = trusting.pipeline.encode_images([path])
        assert isinstance(found, InputError)
    path.write_bytes(bmp(1))
    assert not isinstance(features(trusting, path), AmlrError)


@pytest.mark.usefixtures("clock")
def test_by_default_every_file_is_read(tiny_plan: Path, reads: list[Any], tmp_path: Path) -> None:
    path = tmp_path / "a.bmp"
    path.write_bytes(bmp(1))
    with Engine.load(tiny_plan, provider="onnxruntime", threads=1, check="off") as engine:
        engine.tag_batch([Post("Paris", path), Post("Rome", path)])
        engine.tag_batch([Post("Paris", path)])
    assert reads == [path] * 3


@pytest.mark.usefixtures("clock")
def test_the_number_of_files_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_files, "MOST_FILES", 3)
    files = KnownFiles()
    for number in range(8):
        path = tmp_path / str(number)
        path.write_bytes(b"x")
        stamp = file_stamp(path)
        assert stamp is not None
        files.keep(path, stamp, str(number))
        assert files.get(stamp) == str(number)
        assert len(files._keys) <= 3


@pytest.mark.usefixtures("clock")
def test_kept_answers_are_found_without_reading_the_picture(
    tiny_plan: Path, reads: list[Any], tmp_path: Path
) -> None:
    path = tmp_path / "a.bmp"
    path.write_bytes(bmp(1))
    post, other = Post("Paris", path), Post("Rome", path)
    with Engine.load(
        tiny_plan,
        provider="onnxruntime",
        threads=1,
        check="off",
        answer_cache=8,
        trust_file_times=True,
    ) as engine:
        first = engine.tag_batch([post])
        del reads[1:]  # the content, handed on to the pipeline
        assert engine.tag_batch([post, other]) == [*first, *engine.tag_batch([other])]
        assert reads == [path]
        time.sleep(0.02)
        path.write_bytes(bmp(200))
        engine.tag_batch([post])
        assert engine.answer_cache is not None
        assert (engine.answer_cache.hits, engine.answer_cache.entries) == (2, 3)


@pytest.mark.usefixtures("clock")
def test_an_answer_to_a_file_that_changed_meanwhile_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.bmp"
    path.write_bytes(bmp(1))
    cache = AnswerCache(8, ImageLimits(), KnownFiles())

    def tag(posts: list[Post]) -> list[Result]:
        return [Result(image_used=True, provider="double", precision="fp32") for _ in posts]

    def tag_late(posts: list[Post]) -> list[Result]:
        assert posts == [Post("new", path)]
        time.sleep(0.02)
        path.write_bytes(bmp(200))
        return tag(posts)

    cache.tag_batch([Post("old", path)], "engine", tag)
    cache.tag_batch([Post("new", path)], "engine", tag_late)
    assert cache.stats().entries == 1
