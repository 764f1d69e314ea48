import io
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from amlr.runtime.cli import inspect_command, tag_command
from amlr.runtime.jsonl import parse_line, read_chunks
from drawings import saved, smooth


def tag(plan: Path, *arguments: str, stdin: str | bytes | None = None) -> Result:
    options = ["--engine", str(plan), "--provider", "onnxruntime-cpu", *arguments]
    return CliRunner().invoke(tag_command, options, input=stdin)


def rows(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_one_text(tiny_plan: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(saved(smooth()))
    (row,) = rows(tag(tiny_plan, "--text", "Jordan", "--image", str(tmp_path / "a.png")))
    assert list(row) == ["id", "entities", "image_used", "certified", "warnings", "error"]
    assert row["image_used"]
    assert list(row["entities"][0]) == ["start", "end", "text", "label", "score"]


def test_lines_keep_their_order_and_bad_ones_are_answered(tiny_plan: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(saved(smooth()))
    lines: list[Any] = [
        {"id": "first", "text": "Jordan in Paris", "image": "a.png"},
        {"text": "no id, words given", "words": [[0, 2], [3, 5]]},
        {"id": 3, "text": "Paris", "image": "absent.png"},
        "no object",
        {"id": 5},
        {"id": 6, "text": 7},
        {"id": 7, "text": "x", "image": 9},
        {"id": 8, "text": "x", "words": [[0, 50]]},
        {"id": None, "text": ""},
    ]
    text = "\n".join([json.dumps(line) for line in lines] + ["{broken", "", "  "])
    content = text.encode() + b'\n{"text": "\xff"}\n{"id": 14, "text": "half \\ud83d"}'
    result = tag(tiny_plan, "--image-root", str(tmp_path), "--batch", "2", stdin=content)
    found = rows(result)
    assert [row["id"] for row in found] == ["first", 2, 3, 4, 5, 6, 7, 8, None, 10, 13, 14]
    codes = [row["error"] and row["error"]["code"] for row in found]
    bad = "line_invalid"
    assert codes == [None, None, None, bad, bad, bad, bad, "words_invalid", None, bad, bad, None]
    assert found[0]["image_used"]
    assert found[2]["warnings"][0]["code"] == "image_missing"


@pytest.mark.parametrize(
    "content",
    [
        b'\xef\xbb\xbf{"text": "a"}\r\n{"text": "b"}\r\n',
        b'{"text": "a"}\r{"text": "b"}\r',
        b'\xef\xbb\xbf\n \n{"text": "a"}\n[1]\n{"text": "b"}',
    ],
)
def test_lines_from_stdin_have_any_ends_and_a_mark(content: bytes) -> None:
    lines = [line for chunk in read_chunks(io.BytesIO(content), 4, None) for line in chunk]
    assert [line.post.text for line in lines if line.post is not None] == ["a", "b"]
    assert len(lines) == 2 + content.count(b"[")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"text": "Paris"}, {"text": "x"}]', "stdin holds a JSON array"),
        (b'\xef\xbb\xbf\r\n[\r\n{"text": "Paris"}\r\n]', "jq -c '.[]'"),
        ('\ufeff{"text": "Paris"}\n'.encode("utf-16-le"), "iconv -f UTF-16"),
        ('\ufeff{"text": "Paris"}\n'.encode("utf-16-be"), "iconv -f UTF-16"),
        ('\ufeff{"text": "Paris"}\n'.encode("utf-32-le"), "iconv -f UTF-32"),
        ('{"text": "Paris"}\n'.encode("utf-16-le"), "without a byte order mark"),
    ],
)
def test_stdin_of_another_form_is_one_line_with_the_fix(
    tiny_plan: Path, content: bytes, message: str
) -> None:
    result = tag(tiny_plan, "--check", "off", stdin=content)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_equal_lines_are_answered_from_the_cache(tiny_plan: Path) -> None:
    lines = "\n".join(json.dumps({"text": text}) for text in ("Jordan in Paris", "x") * 3)
    plain, cached = tag(tiny_plan, stdin=lines), tag(tiny_plan, "--answer-cache", "8", stdin=lines)
    assert rows(plain) == rows(cached)


def test_escalation_answers_as_float32(ladder_plan: Path) -> None:
    lines = "\n".join(json.dumps({"text": f"Jordan in Paris {i}"}) for i in range(6))
    exact, climbing = (
        [
            [(e["start"], e["end"], e["label"]) for e in row["entities"]]
            for row in rows(tag(ladder_plan, "--precision", precision, stdin=lines))
        ]
        for precision in ("exact", "escalate")
    )
    assert exact == climbing


def test_pictures_when_needed(ladder_plan: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(saved(smooth()))
    manifest = json.loads((ladder_plan / "manifest.json").read_text())
    manifest["variants"]["fp32"]["parity"]["when_needed"]["margin"] = 0.0
    sure = shutil.copytree(ladder_plan, tmp_path / "sure.plan")
    (sure / "manifest.json").write_text(json.dumps(manifest))
    asked = ("--text", "Jordan", "--image", str(tmp_path / "a.png"), "--precision", "exact")
    (row,) = rows(tag(sure, *asked, "--image-mode", "when-needed"))
    assert not row["image_used"]
    assert [warning["code"] for warning in row["warnings"]] == ["image_not_needed"]
    (row,) = rows(tag(sure, *asked))
    assert row["image_used"]


def test_pretty(tiny_plan: Path) -> None:
    result = tag(tiny_plan, "--pretty", "--text", "Jordan in Paris", "--image", "/absent.jpg")
    assert "warning: no picture at" in result.stdout
    assert "Jordan" in result.stdout.splitlines()[1]
    lines = '{"id": 4, "text": "Paris \\ud83d"}\nx\n'
    result = tag(tiny_plan, "--pretty", stdin=lines)
    assert result.exit_code == 0
    assert result.stdout.startswith("4: Paris ?")
    assert "error: line 2 is not JSON" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "a.png"], "--image goes with --text"),
        (["--text", "x" * 100_001], "at most 100000"),
        (["--text", "x", "--precision", "int3"], "no int3 variant"),
        (
            ["--text", "x", "--precision", "escalate"],
            "no variant of this bundle has measured radii",
        ),
        (["--text", "x", "--image-mode", "when-needed"], "no margin"),
        (["--text", "x", "--manifest-sha256", "00"], "was pinned"),
    ],
)
def test_expected_errors_are_one_line(tiny_plan: Path, arguments: list[str], message: str) -> None:
    result = tag(tiny_plan, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


def test_no_bundle() -> None:
    result = CliRunner().invoke(tag_command, ["--engine", "/absent.plan", "--text", "x"])
    assert result.exit_code == 2
    assert "amlr-export" in result.stderr


def test_help_has_examples() -> None:
    for command in (tag_command, inspect_command):
        text = CliRunner().invoke(command, ["--help"]).output
        assert "Examples:" in text
        assert f"amlr-{command.name} " in text
    text = CliRunner().invoke(tag_command, ["--help"]).output
    for example in ("--precision escalate", "--answer-cache 10000", "--image-mode when-needed"):
        assert example in text


def test_inspect(tiny_plan: Path) -> None:
    text = CliRunner().invoke(inspect_command, [str(tiny_plan)])
    assert text.exit_code == 0
    for expected in ("fp32", "PER, LOC, ORG, OTHER", "joint", "files verified", "0 of "):
        assert expected in text.output
    values = json.loads(
        CliRunner().invoke(inspect_command, [str(tiny_plan), "--json", "--no-verify"]).output
    )
    assert values["schema"] == 1
    assert len(values["manifest_sha256"]) == 64
    assert values["verified"] is False


def test_answers_come_as_soon_as_the_lines(tiny_plan: Path) -> None:
    code = "from amlr.runtime.cli import tag_command as c; c()"
    options = ["--engine", str(tiny_plan), "--provider", "onnxruntime-cpu"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        for number in (1, 2):
            process.stdin.write(b'{"text": "Paris"}\n')
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["id"] == number
        process.stdin.close()
        assert process.stdout.read() == b""
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_a_reader_that_leaves_is_no_error(tiny_plan: Path) -> None:
    command = (
        f'for i in $(seq 3000); do echo \'{{"text": "Jordan in Paris"}}\'; done | '
        f"{sys.executable} -c 'from amlr.runtime.cli import tag_command as c; c()' "
        f"--engine {tiny_plan} --provider onnxruntime-cpu | head -n 1"
    )
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=120
    )
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1


def test_reader_takes_what_has_arrived() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stream, os.fdopen(writing, "wb", buffering=0) as pipe:
        chunks = read_chunks(stream, 4, None)
        pipe.write(b'{"text": "a"}\n')
        assert [line.id for line in next(chunks)] == [1]
        pipe.write(b'{"text": "b"}\n' * 10)
        threading.Timer(0.1, pipe.close).start()
        rest = [[line.id for line in chunk] for chunk in chunks]
    assert max(map(len, rest)) <= 4
    assert [number for chunk in rest for number in chunk] == list(range(2, 12))


def test_a_broken_stream_is_reported() -> None:
    class Broken(io.BytesIO):
        def __next__(self) -> bytes:
            raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        list(read_chunks(Broken(), 4, None))


def test_image_paths_start_from_the_root() -> None:
    line = parse_line(1, b'{"text": "a", "image": "b.png"}', Path("/photos"))
    assert line.post
    assert line.post.image == Path("/photos/b.png")
