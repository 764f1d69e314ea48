"""Chunks that are prepared and scored while the caller still decodes the one before."""

import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from amlr.errors import AmlrError
from amlr.runtime import Engine, Post, pipeline
from amlr.runtime.pipeline import ahead

POSTS = [Post(f"Paris and Rome number {i}") for i in range(30)]


def helpers() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("amlr-ahead")]


@pytest.fixture
def chunked(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """An engine whose calls consist of several chunks."""
    monkeypatch.setattr(pipeline, "CHUNK_POSTS", 4)
    monkeypatch.setattr(engine.pipeline, "overlaps", True)
    return engine


def test_the_next_item_is_made_while_one_is_used() -> None:
    begun = [threading.Event() for _ in range(4)]
    makers: set[str] = set()

    def make() -> Generator[int]:
        for number in range(3):
            begun[number].set()
            makers.add(threading.current_thread().name)
            yield number
        begun[3].set()

    items = ahead(make())
    for number in range(3):
        assert next(items) == number
        assert begun[number + 1].wait(5), "nothing went on while this item was in use"
        if number < 2:
            time.sleep(0.01)
            assert not begun[min(number + 2, 3)].is_set(), "more than one item waits"
    assert list(items) == []
    assert threading.current_thread().name not in makers
    assert helpers() == []


def test_an_error_comes_in_its_place_and_ends_the_items() -> None:
    def make() -> Generator[int]:
        yield 1
        yield 2
        raise AmlrError("broken")

    items = ahead(make())
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(AmlrError, match="broken"):
        next(items)
    assert list(items) == []
    assert helpers() == []


def test_who_leaves_early_leaves_no_thread() -> None:
    made: list[int] = []

    def make() -> Generator[int]:
        for number in range(100):
            made.append(number)
            yield number

    items = ahead(make())
    assert next(items) == 0
    items.close()
    assert made == [0, 1]
    assert helpers() == []


def test_answers_are_those_of_a_call_without_overlap(
    chunked: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    posts: list[Any] = [*POSTS, None, Post("x", image="/absent.jpg"), Post("", None)]
    found = chunked.tag_batch(posts)
    assert [result.error is not None for result in found[30:]] == [True, False, False]
    monkeypatch.setattr(chunked.pipeline, "overlaps", False)
    assert chunked.tag_batch(posts) == found
    assert helpers() == []


def test_three_stages_work_at_a_time_and_no_more_is_in_work(
    chunked: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[int] = []
    threads: set[str] = set()
    encode = chunked.pipeline._encode_texts

    def counted(posts: Any) -> Any:
        prepared.append(len(posts))
        threads.add(threading.current_thread().name)
        return encode(posts)

    monkeypatch.setattr(chunked.pipeline, "_encode_texts", counted)
    chunks = chunked.pipeline.score_chunks(POSTS)
    for number, chunk in enumerate(chunks):
        time.sleep(0.02)
        assert len(prepared) <= number + 4
        assert len(chunk) == (4 if number < 7 else 2)
    assert prepared == [4] * 7 + [2]
    assert threading.current_thread().name not in threads


def test_an_engine_that_fails_fails_the_call(
    chunked: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    score, calls = chunked.pipeline.provider.score, []

    def failing(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise AmlrError("out of memory")
        return score(*arguments)

    monkeypatch.setattr(chunked.pipeline.provider, "score", failing)
    with pytest.raises(AmlrError, match="out of memory"):
        chunked.tag_batch(POSTS)
    assert helpers() == []
    assert len(chunked.tag_batch(POSTS)) == 30


def test_a_call_of_one_chunk_needs_no_thread(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.pipeline, "overlaps", True)
    monkeypatch.setattr(pipeline, "ahead", None)
    assert len(engine.tag_batch(POSTS)) == 30


@pytest.mark.parametrize(
    ("cores", "threads", "overlaps"), [(1, 1, False), (4, 4, False), (4, 3, True)]
)
def test_cpus_overlap_where_a_core_is_spare(
    tiny_plan: Path, monkeypatch: pytest.MonkeyPatch, cores: int, threads: int, overlaps: bool
) -> None:
    monkeypatch.setattr(pipeline, "usable_cores", lambda: cores)
    with Engine.load(tiny_plan, provider="onnxruntime", threads=threads, check="off") as engine:
        assert engine.pipeline.overlaps == overlaps
