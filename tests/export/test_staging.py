"""A bundle appears whole or not at all."""

import os
from pathlib import Path

import pytest

from amlr.errors import ExportError
from amlr.export.staging import list_files, staged
from amlr.runtime.manifest import MANIFEST


def write_bundle(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text)
    (folder / "onnx").mkdir()
    (folder / "onnx" / "a.bin").write_bytes(b"abc")


def test_success_renames(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "amlr.plan"
    with staged(out) as folder:
        write_bundle(folder, "one")
        assert not out.exists()
    assert (out / MANIFEST).read_text() == "one"
    assert [p.name for p in out.parent.iterdir()] == ["amlr.plan"]


def test_files_are_readable_by_others(tmp_path: Path) -> None:
    out = tmp_path / "amlr.plan"
    with staged(out) as folder:
        write_bundle(folder, "one")
        (folder / MANIFEST).chmod(0o600)
    modes = {path.stat().st_mode & 0o777 for path in out.rglob("*") if path.is_file()}
    umask = os.umask(0)
    os.umask(umask)
    assert modes == {0o666 & ~umask}


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "amlr.plan"
    with pytest.raises(KeyboardInterrupt), staged(out) as folder:
        write_bundle(folder, "half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_failure_keeps_the_old_bundle(tmp_path: Path) -> None:
    out = tmp_path / "amlr.plan"
    with staged(out) as folder:
        write_bundle(folder, "old")
    with pytest.raises(ZeroDivisionError), staged(out) as folder:
        write_bundle(folder, "new")
        _ = 1 // 0
    assert (out / MANIFEST).read_text() == "old"
    with staged(out) as folder:
        write_bundle(folder, "new")
    assert (out / MANIFEST).read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["amlr.plan"]


def test_other_folders_are_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "photos"
    out.mkdir()
    (out / "cat.jpg").write_bytes(b"x")
    with pytest.raises(ExportError, match="not a bundle"), staged(out):
        pass
    assert (out / "cat.jpg").exists()


def test_listed_files_have_hashes(tmp_path: Path) -> None:
    write_bundle(tmp_path, "m")
    entries = list_files(tmp_path)
    assert list(entries) == ["onnx/a.bin"]
    assert entries["onnx/a.bin"].bytes == 3
    assert entries["onnx/a.bin"].sha256.startswith("ba7816bf")
