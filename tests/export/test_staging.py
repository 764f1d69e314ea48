"""A bundle appears whole or not at all."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from amlr.errors import BundleError, ExportError, InputError
from amlr.export import staging
from amlr.export.staging import StagedBundle, staged
from amlr.runtime import Engine
from amlr.runtime.bundle import Bundle
from amlr.runtime.manifest import MANIFEST, FileEntry


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


def test_a_link_stays_and_its_folder_is_replaced(tmp_path: Path) -> None:
    with staged(tmp_path / "v1") as folder:
        write_bundle(folder, "old")
    (tmp_path / "current").symlink_to("v1")
    with staged(tmp_path / "current") as folder:
        write_bundle(folder, "new")
    assert (tmp_path / "current").readlink() == Path("v1")
    assert (tmp_path / "v1" / MANIFEST).read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["current", "v1"]


def test_a_link_to_nothing_yet_gets_its_folder(tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to("v2")
    with staged(tmp_path / "current") as folder:
        write_bundle(folder, "new")
    assert (tmp_path / "v2" / MANIFEST).read_text() == "new"
    assert (tmp_path / "current").is_symlink()


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "a" / "lost+found").mkdir(parents=True)
    with staged(tmp_path / "a") as folder:
        write_bundle(folder, "new")
    assert (tmp_path / "a" / MANIFEST).read_text() == "new"


@pytest.mark.parametrize("name", ["/", ".", "..", "file/below", "loop", "x" * 300, "/proc/new"])
def test_places_that_cannot_be_are_refused_before_any_work(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    (work / "file").write_text("")
    (work / "loop").symlink_to("loop")
    with pytest.raises(InputError, match="cannot"), staged(Path(name)):
        pytest.fail("work began")
    assert sorted(path.name for path in work.iterdir()) == ["file", "loop"]


_ON_A_MOUNT = """
import os, sys
from pathlib import Path
from amlr.errors import InputError
from amlr.export.staging import staged
from amlr.runtime.manifest import MANIFEST

volume = Path(sys.argv[1])
with staged(volume) as folder:
    (folder / MANIFEST).write_text("new")
assert os.listdir(volume) == [MANIFEST], os.listdir(volume)
try:
    with staged(volume):
        raise AssertionError("work began")
except InputError as error:
    assert "mount point" in str(error)
"""


@pytest.mark.parametrize("mount", ["-t tmpfs none", '--bind "$2"'])
def test_an_empty_volume_is_filled_and_a_full_one_refused(tmp_path: Path, mount: str) -> None:
    volume = tmp_path / "a volume"
    volume.mkdir()
    shell = f'mount {mount} "$2" || exit 77; exec "$0" -c "$1" "$2"'
    done = subprocess.run(
        [*("unshare", "-m", "-r", "sh", "-c", shell), sys.executable, _ON_A_MOUNT, volume],
        capture_output=True,
        text=True,
    )
    if done.returncode in (1, 77) and "AssertionError" not in done.stderr:
        pytest.skip(f"this user may not mount: {done.stderr.strip()[-100:]}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_leave_nothing(tmp_path: Path, number: int) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; from amlr.export.staging import staged\n"
        # A shell that starts the tests in the background leaves SIGINT ignored.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "with staged(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'half').write_text('x')\n"
        f"    os.kill(os.getpid(), {int(number)}); time.sleep(10)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.plan")], capture_output=True
    )
    assert done.returncode in (128 + number, -number)
    assert list(tmp_path.iterdir()) == []


def test_a_handler_of_the_program_is_kept(tmp_path: Path) -> None:
    old = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        mine = signal.getsignal(signal.SIGTERM)
        with staged(tmp_path / "a.plan") as folder:
            assert signal.getsignal(signal.SIGTERM) is mine
            write_bundle(folder, "new")
    finally:
        signal.signal(signal.SIGTERM, old)


def test_a_file_is_hashed_once_and_again_after_it_changed(
    tiny_plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    real = staging.file_entry

    def count(path: Path) -> FileEntry:
        hashed.append(path.name)
        return real(path)

    monkeypatch.setattr(staging, "file_entry", count)
    source = Bundle.open(tiny_plan)
    bundle = StagedBundle(tmp_path, source.manifest)
    bundle.copy(source)
    assert hashed == []
    assert list(bundle.manifest.files) == list(source.manifest.files)
    (tmp_path / "onnx" / "a.bin").write_bytes(b"abc")
    bundle.save()
    bundle.save(name="other")
    assert hashed == ["a.bin"]
    entry = bundle.manifest.files["onnx/a.bin"]
    assert (entry.bytes, entry.sha256[:8]) == (3, "ba7816bf")
    assert bundle.open().manifest.name == "other"
    (tmp_path / "onnx" / "a.bin").write_bytes(b"abcd")
    bundle.save()
    assert hashed == ["a.bin", "a.bin"]
    assert bundle.manifest.files["onnx/a.bin"].bytes == 4
    (tmp_path / "onnx" / "a.bin").unlink()
    bundle.save()
    assert "onnx/a.bin" not in bundle.manifest.files


def test_a_damaged_source_stays_damaged(tiny_plan: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_plan, tmp_path / "a.plan")
    weights = tmp_path / "a.plan" / "onnx" / "fp32" / "weights.bin"
    content = bytearray(weights.read_bytes())
    content[100] ^= 1
    weights.write_bytes(content)
    source = Bundle.open(tmp_path / "a.plan")
    with staged(tmp_path / "b.plan") as folder:
        StagedBundle(folder, source.manifest).copy(source)
    with pytest.raises(BundleError, match=r"weights\.bin is damaged"):
        Engine.load(tmp_path / "b.plan", provider="onnxruntime")
