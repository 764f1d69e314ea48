"""Posts out of files, and the sample of them that is timed."""

import json
from pathlib import Path

import pytest

from amlr.benchmarks.data import SAMPLE, load_data
from amlr.benchmarks.harness.workloads import ALL, QUICK, make_pool, plan
from amlr.errors import InputError
from amlr.export.samples import sample_image
from amlr.runtime.bundle import Bundle


def test_json_lines(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(sample_image(0))
    lines = [
        {"id": "x", "text": "Jordan in Paris", "image": "a.png"},
        {"id": "y", "text": "gone", "image": "lost.png"},
        {"text": "no picture"},
    ]
    path = tmp_path / "posts.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    data = load_data(str(path), None, None, 0)
    assert [p.id for p in data.posts] == ["x", "y", "3"]
    assert [p.post.image is not None for p in data.posts] == [True, False, False]
    assert (data.pictures, data.missing_pictures) == (1, 1)
    assert len(load_data(str(path), None, 2, 0).posts) == 2


@pytest.mark.parametrize("line", ["{", '{"id": "x"}', "[1]"])
def test_bad_json_lines_name_the_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "posts.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(InputError, match=r"posts\.jsonl: line 2 "):
        load_data(str(path), None, None, 0)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r"])
def test_json_lines_in_other_encodings(tmp_path: Path, encoding: str, end: str) -> None:
    path = tmp_path / "posts.jsonl"
    line = json.dumps({"text": "Zoë\u2028here"}, ensure_ascii=False) + end
    path.write_bytes((2 * line).encode(encoding))
    assert [item.post.text for item in load_data(str(path), None, None, 0).posts] == [
        "Zoë\u2028here"
    ] * 2
    path.write_bytes('{"text": "Zoë"}\n'.encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8"):
        load_data(str(path), None, None, 0)


def test_conll_keeps_words_and_gold_spans(tmp_path: Path) -> None:
    (tmp_path / "7.png").write_bytes(sample_image(0))
    path = tmp_path / "valid.txt"
    path.write_text("IMGID:7\nin\tO\nNew\tB-LOC\nYork\tI-LOC\n\nIMGID:8\nJordan\tB-PER\n")
    data = load_data(str(path), tmp_path, None, 0)
    first, second = data.posts
    assert first.post.text == "in New York"
    assert first.gold == ((3, 11, "LOC"),)
    assert first.post.text[3:11] == "New York"
    assert (data.pictures, data.missing_pictures) == (1, 1)
    assert second.gold == ((0, 6, "PER"),)


def test_sample_is_labelled_odd_and_in_memory() -> None:
    data = load_data(SAMPLE, None, 12, 99)
    assert len(data.posts) == 12
    assert sum(p.gold is not None for p in data.posts) == 8
    assert all(isinstance(p.post.image, bytes | None) for p in data.posts)
    again = load_data(SAMPLE, None, 12, 99)
    assert [p.post.text for p in again.posts] == [p.post.text for p in data.posts]
    with pytest.raises(InputError, match="--limit"):
        load_data(SAMPLE, None, 0, 99)


def test_pool_fills_what_is_missing_and_counts_it(tiny_plan: Path) -> None:
    bundle = Bundle.open(tiny_plan)
    data = load_data(SAMPLE, None, 6, 0)
    pool = make_pool(data.posts, bundle, 16)
    assert len(pool.posts) == len(pool.inputs) == 16
    assert all(item.pixels_chw is not None for item in pool.inputs)
    assert pool.generated_posts >= 10
    assert pool.generated_pictures >= pool.generated_posts


def test_plan_covers_every_workload(tiny_plan: Path) -> None:
    bundle = Bundle.open(tiny_plan)
    pool = make_pool(load_data(SAMPLE, None, 6, 0).posts, bundle, 16)
    workloads = plan(pool, ALL, quick=False)
    assert [(w.name, w.batch) for w in workloads] == [(n, b) for b in (16, 1) for n in ALL]
    for workload in workloads:
        assert all(len(call) == workload.batch for call in workload.calls), workload.name
    assert {w.name for w in plan(pool, QUICK, quick=True)} == set(QUICK)
