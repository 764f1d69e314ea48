"""Whole runs on the tiny bundle, with real worker processes that are really killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from amlr.runtime import Engine
from amlr.serving.archive.cli import tag_command
from amlr.serving.archive.locations import Folder
from amlr.serving.archive.worker import Attempts, ChunkWorker
from drawings import saved, smooth

TEXTS = [f"Jordan {i} in Paris at New York" for i in range(12)]


def arguments(plan: Path, source: Path | str, out: Path, *more: str) -> list[str]:
    common = ["--engine", str(plan), "--provider", "onnxruntime-cpu", "--check", "off"]
    return [*common, "--input", str(source), "--output", str(out), "--chunk-rows", "5", *more]


def tag(plan: Path, source: Path | str, out: Path, *more: str) -> Result:
    return CliRunner().invoke(tag_command, arguments(plan, source, out, *more))


def good(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    summary: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return summary


def read(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for path in sorted(out.glob("part-*")):
        if path.suffix == ".parquet":
            rows += pq.read_table(path).to_pylist()
        else:
            rows += map(json.loads, path.read_text().splitlines())
    return rows


def spans(row: dict[str, Any]) -> list[tuple[int, int, str, str]]:
    return [(e["start"], e["end"], e["text"], e["label"]) for e in row["entities"]]


@pytest.fixture
def posts(tmp_path: Path) -> Path:
    """12 good rows, one of them with a picture, and two bad ones."""
    (tmp_path / "a.png").write_bytes(saved(smooth()))
    rows: list[dict[str, Any]] = [{"id": i, "text": text} for i, text in enumerate(TEXTS)]
    rows[2]["image"] = "a.png"
    rows[3]["image"] = "absent.png"
    lines = [*map(json.dumps, rows), "{broken", json.dumps({"id": "x", "text": None})]
    path = tmp_path / "posts.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_rows_appear_once_with_the_engines_entities(tiny_plan: Path, posts: Path) -> None:
    out = posts.parent / "out"
    root = ("--image-root", str(posts.parent), "--workers", "2")
    summary = good(tag(tiny_plan, posts, out, *root))
    assert (summary["rows"], summary["failed"], summary["warned"]) == (14, 2, 1)
    assert summary["tiers"] == {"onnxruntime-cpu fp32": 14}
    rows = read(out)
    assert [row["row"] for row in rows] == list(range(14))
    assert [row["id"] for row in rows] == [*map(str, range(12)), None, "x"]
    assert [bool(row["image_used"]) for row in rows[:4]] == [False, False, True, False]
    assert rows[3]["warnings"][0]["code"] == "image_missing"
    assert [row["error"]["code"] for row in rows[12:]] == ["line_invalid"] * 2
    with Engine.load(tiny_plan, provider="onnxruntime-cpu", threads=1) as engine:
        for i in (0, 1, 3, 11):
            expected = [entity.to_dict() for entity in engine.tag(TEXTS[i]).entities]
            assert expected
            assert spans(rows[i]) == spans({"entities": expected})
    metadata = pq.read_schema(out / "part-00000.parquet").metadata
    assert metadata[b"amlr.manifest_sha256"].decode() == summary["manifest_sha256"]
    assert sorted(p.name for p in (out / "_run").iterdir()) == ["done", "plan.json", "summary.json"]
    lines = posts.parent / "lines"
    good(tag(tiny_plan, posts, lines, *root, "--output-format", "jsonl"))
    assert [spans(row) for row in read(lines)] == [spans(row) for row in rows]


def test_csv_and_parquet_with_named_columns_and_picture_bytes(
    tiny_plan: Path, tmp_path: Path
) -> None:
    picture = saved(smooth())
    columns = {"key": [7, 8], "body": TEXTS[:2], "photo": [picture, None]}
    pq.write_table(pa.table(columns), tmp_path / "in.parquet")
    (tmp_path / "a.png").write_bytes(picture)
    path = str(tmp_path / "a.png")
    (tmp_path / "in.csv").write_text(f"key,body,path\n7,{TEXTS[0]},{path}\n8,{TEXTS[1]},\n")
    names = ("--id-column", "key", "--text-column", "body", "--workers", "1")
    first, second = tmp_path / "p", tmp_path / "c"
    good(tag(tiny_plan, tmp_path / "in.parquet", first, *names, "--image-bytes-column", "photo"))
    good(tag(tiny_plan, tmp_path / "in.csv", second, *names, "--image-column", "path"))
    assert [row["id"] for row in read(first)] == [7, 8]
    assert [row["id"] for row in read(second)] == ["7", "8"]
    for rows in (read(first), read(second)):
        assert [row["image_used"] for row in rows] == [True, False]
    assert [spans(row) for row in read(first)] == [spans(row) for row in read(second)]


def test_what_cannot_be_resumed_is_refused(tiny_plan: Path, posts: Path) -> None:
    out = posts.parent / "out"
    good(tag(tiny_plan, posts, out, "--workers", "1"))
    again = tag(tiny_plan, posts, out)
    assert again.exit_code == 2
    assert "--resume" in again.stderr
    other = tag(tiny_plan, posts, out, "--resume", "--text-column", "body")
    assert "columns" in other.stderr
    (out / "part-00001.parquet").unlink()
    kept = (out / "part-00000.parquet").stat().st_mtime_ns
    summary = good(tag(tiny_plan, posts, out, "--resume", "--workers", "1"))
    assert summary["resumed_rows"] == 9
    assert (out / "part-00000.parquet").stat().st_mtime_ns == kept
    assert [row["row"] for row in read(out)] == list(range(14))
    posts.write_text(posts.read_text().replace("Paris", "Rome!"))
    changed = tag(tiny_plan, posts, out, "--resume")
    assert changed.exit_code == 2
    assert "the input" in changed.stderr
    assert len(changed.stderr.strip().splitlines()) == 1


def test_killed_workers_and_a_killed_driver_lose_nothing(tiny_plan: Path, tmp_path: Path) -> None:
    count = 4000
    source = tmp_path / "in.jsonl"
    lines = [json.dumps({"id": i, "text": TEXTS[i % 12]}) for i in range(count)]
    source.write_text("\n".join(lines))
    out = tmp_path / "out"
    code = "from amlr.serving.archive.cli import tag_main; tag_main()"
    options = [*arguments(tiny_plan, source, out), "--chunk-rows", "100", "--workers", "2"]
    driver = subprocess.Popen([sys.executable, "-c", code, *options], stdout=subprocess.DEVNULL)
    try:
        for parts in (1, 4):
            wait_for(lambda parts=parts: len(list(out.glob("part-*"))) >= parts, driver)
            os.kill(workers_of(driver.pid)[0], signal.SIGKILL)
        wait_for(lambda: len(list(out.glob("part-*"))) >= 8, driver)
        orphans = workers_of(driver.pid)
    finally:
        driver.kill()
        driver.wait()
    end = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in orphans):
        assert time.monotonic() < end, "workers outlive their driver"
        time.sleep(0.05)
    assert len(list(out.glob("part-*"))) < count // 100
    for part in out.glob("part-*"):
        assert pq.read_metadata(part).num_rows == 100
    summary = good(tag(tiny_plan, source, out, "--chunk-rows", "100", "--resume"))
    assert summary["resumed_rows"] >= 700
    rows = read(out)
    assert [row["id"] for row in rows] == [str(i) for i in range(count)]
    assert all(spans(row) == spans(rows[row["row"] % 12]) for row in rows)


def test_an_interrupted_run_leaves_whole_parts_and_goes_on(tiny_plan: Path, tmp_path: Path) -> None:
    """Ctrl-C, which every process of a terminal gets, then SIGTERM, which the driver gets alone."""
    count, source, out = 5000, tmp_path / "in.jsonl", tmp_path / "out"
    source.write_text("\n".join(json.dumps({"id": i, "text": TEXTS[i % 12]}) for i in range(count)))
    # A shell that runs the tests in the background lets its children ignore Ctrl-C.
    hears = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{hears}; from amlr.serving.archive.cli import tag_main; tag_main()"
    chunks = ("--chunk-rows", "50", "--workers", "1", "--resume")
    options = arguments(tiny_plan, source, out, *chunks)
    kept: dict[Path, int] = {}
    for number, stop, exit_code in (
        (signal.SIGINT, os.killpg, 1),
        (signal.SIGTERM, os.kill, 128 + signal.SIGTERM),
    ):
        driver = subprocess.Popen(
            [sys.executable, "-c", code, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            more = len(kept) + 1
            wait_for(lambda more=more: len(list(out.glob("part-*"))) > more, driver)
            stop(driver.pid, number)
            stdout, stderr = driver.communicate(timeout=60)
        finally:
            driver.kill()
            driver.wait()
        assert (driver.returncode, stdout) == (exit_code, b"")
        assert b"Traceback" not in stderr
        assert not (out / "_run" / "aside").exists()
        assert {path.name for path in out.iterdir() if path.suffix != ".parquet"} == {"_run"}
        for path, written in kept.items():
            assert path.stat().st_mtime_ns == written
        assert all(pq.read_metadata(path).num_rows == 50 for path in out.glob("part-*"))
        # A part whose report was not yet written is made once more.
        reports = (out / "_run" / "done").iterdir()
        parts = [out / f"part-{report.stem}.parquet" for report in reports]
        kept = {path: path.stat().st_mtime_ns for path in parts}
    assert 0 < len(kept) < count // 50
    summary = good(tag(tiny_plan, source, out, *chunks))
    assert summary["resumed_rows"] == 50 * len(kept)
    assert [row["id"] for row in read(out)] == [str(i) for i in range(count)]


def family(pid: int) -> list[int]:
    """A process and all it started, directly or not."""
    found = [pid]
    for parent in found:
        for path in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += map(int, path.read_text().split())
    return found


def workers_of(pid: int) -> list[int]:
    """Spawned workers of a process, without Python's resource tracker."""
    return [child for child in family(pid)[1:] if b"spawn_main" in command_of(child)]


def wait_for(test: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + 90
    while not test():
        assert process.poll() is None, "the run ended too early"
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_row_that_kills_its_process_is_kept_with_an_error(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    starts = [Attempts(folder, 3) for _ in range(2)]
    assert not any(attempts.is_careful for attempts in starts)
    for _ in range(2):  # two deaths at row 41
        attempts = Attempts(folder, 3)
        assert attempts.is_careful
        assert not attempts.is_poison(41)
        attempts.begin(40)
        attempts.begin(41)
    attempts = Attempts(folder, 3)
    assert attempts.is_poison(41)
    assert not attempts.is_poison(40)
    attempts.finish()
    assert not Attempts(folder, 3).is_careful


def test_one_broken_row_does_not_spoil_its_batch(
    tiny_plan: Path, posts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine raises whenever row 1 is in the batch."""
    from amlr.serving.archive import job as jobs

    real = Engine.tag_batch

    def broken(self: Engine, made: list[Any]) -> Any:
        if any(post.text == TEXTS[1] for post in made):
            raise RuntimeError("out of luck")
        return real(self, made)

    def here(work: Any, chunks: Any) -> Any:
        worker = ChunkWorker(work)
        yield from map(worker.run, chunks)
        worker.close()

    monkeypatch.setattr(Engine, "tag_batch", broken)
    monkeypatch.setattr(jobs, "run_local", here)
    out = posts.parent / "out"
    assert good(tag(tiny_plan, posts, out))["failed"] == 3
    rows = read(out)
    assert rows[1]["error"] == {"code": "failed", "message": "RuntimeError: out of luck"}
    assert all(row["error"] is None and row["entities"] for row in [rows[0], *rows[2:12]])


def test_ray_gives_the_same_parts_though_an_actor_is_killed(
    tiny_plan: Path, tmp_path: Path
) -> None:
    source, plain, ray = (tmp_path / name for name in ("in.jsonl", "plain", "ray"))
    source.write_text("\n".join(json.dumps({"id": i, "text": TEXTS[i % 12]}) for i in range(2000)))
    code = "from amlr.serving.archive.cli import tag_main; tag_main()"
    chunks = ("--chunk-rows", "100", "--workers", "1")
    auto = [*arguments(tiny_plan, source, ray), *chunks, "--provider", "auto", "--ray"]
    driver = subprocess.Popen([sys.executable, "-c", code, *auto], stdout=subprocess.PIPE)
    try:
        wait_for(lambda: bool(list(ray.glob("part-*"))), driver)
        (actor,) = (pid for pid in family(driver.pid)[1:] if b"::MapWorker" in command_of(pid))
        os.kill(actor, signal.SIGKILL)
        stdout, _ = driver.communicate(timeout=240)
    finally:
        driver.kill()
        driver.wait()
    assert driver.returncode == 0
    assert json.loads(stdout.splitlines()[-1])["ray"] is True
    tier = Folder(str(ray)).read_json("_run/tier.json")
    good(tag(tiny_plan, source, plain, *chunks, "--provider", tier["provider"]))
    assert [row["id"] for row in read(ray)] == [str(i) for i in range(2000)]
    assert read(ray) == read(plain)


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_options_that_do_not_go_together(tiny_plan: Path, posts: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    base = ["--engine", str(tiny_plan)]
    for more, message in [
        (["--resume"], "go with --input"),
        (["--input", str(posts)], "--input needs --output"),
        (["--input", "-"], "to tag JSON lines from stdin"),
        (["--input", str(posts), "--output", str(tmp_path / "o"), "--text", "x"], "exclude"),
    ]:
        result = runner.invoke(tag_command, [*base, *more])
        assert result.exit_code == 2
        assert message in result.stderr
    assert "--ray" in runner.invoke(tag_command, ["--help"]).output
