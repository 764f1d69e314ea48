"""Bundles by address: fetched once, checked, never half."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from amlr.errors import BackendUnavailableError, BundleError
from amlr.runtime.bundle import read_manifest
from amlr.serving.ray import bundles
from amlr.serving.ray.bundles import fetch_bundle
from requirements import require


@pytest.fixture
def source(tiny_plan: Path, tmp_path: Path) -> Path:
    """A bundle to upload, which tests may damage."""
    found = importlib.util.find_spec("fsspec") is not None
    require("ray", found=found, reason='pip install "amlr[ray]"')
    return Path(shutil.copytree(tiny_plan, tmp_path / "source.plan"))


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "_PAUSE_S", 0.0)


def digest_of(folder: Path) -> str:
    return read_manifest(folder)[1]


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def entries(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if not path.name.endswith(".lock")}


def test_a_folder_is_used_where_it_lies(source: Path, tmp_path: Path) -> None:
    assert fetch_bundle(str(source), tmp_path / "cache") == source
    assert not (tmp_path / "cache").exists()
    with pytest.raises(BundleError, match="pinned"):
        fetch_bundle(str(source), tmp_path / "cache", "0" * 64)


def test_fetched_whole_under_its_hash(source: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    path = fetch_bundle(source.as_uri(), cache, digest_of(source).upper())
    assert path == cache / digest_of(source)
    assert content(path) == content(source)
    assert entries(cache) == {path.name}
    shutil.rmtree(source / "onnx")  # the copy is whole, so nothing is asked for again
    assert fetch_bundle(source.as_uri(), cache) == path


def test_from_an_object_store(source: Path, tmp_path: Path) -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    store.put(str(source), "/models/tiny.plan", recursive=True)
    try:
        path = fetch_bundle("memory://models/tiny.plan", tmp_path / "cache")
        assert content(path) == content(source)
    finally:
        store.rm("/models", recursive=True)


def test_another_bundle_than_the_pinned_one(source: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="pinned"):
        fetch_bundle(source.as_uri(), tmp_path / "cache", "0" * 64)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("damage", ["changed", "short", "long", "missing"])
def test_a_broken_download_never_becomes_a_bundle(
    source: Path, tmp_path: Path, damage: str
) -> None:
    cache, victim = tmp_path / "cache", source / "tokenizer.json"
    good = victim.read_bytes()
    if damage == "missing":
        victim.unlink()
    else:
        forms = {"changed": good[:-1] + b"?", "short": good[:-1], "long": good + b"x"}
        victim.write_bytes(forms[damage])
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        fetch_bundle(source.as_uri(), cache)
    assert entries(cache) == set()
    victim.write_bytes(good)
    assert content(fetch_bundle(source.as_uri(), cache)) == content(source)


def test_a_damaged_copy_is_fetched_again(source: Path, tmp_path: Path) -> None:
    path = fetch_bundle(source.as_uri(), tmp_path / "cache")
    (path / "tokenizer.json").write_bytes(b"rubbish")
    assert fetch_bundle(source.as_uri(), tmp_path / "cache") == path
    assert content(path) == content(source)


def test_what_a_killed_download_left_is_removed(source: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    stale = cache / f".part-{digest_of(source)}"
    stale.mkdir(parents=True)
    (stale / "half").write_bytes(b"half")
    path = fetch_bundle(source.as_uri(), cache)
    assert entries(cache) == {path.name}
    assert content(path) == content(source)


def test_storage_that_stumbles_is_asked_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.implementations.local import LocalFileSystem

    failures = iter([OSError("reset"), TimeoutError("slow")])
    plain = LocalFileSystem.open

    def stumbling(self: Any, path: str, *args: Any, **options: Any) -> Any:
        if path.endswith("tokenizer.json") and (failure := next(failures, None)):
            raise failure
        return plain(self, path, *args, **options)

    monkeypatch.setattr(LocalFileSystem, "open", stumbling)
    assert content(fetch_bundle(source.as_uri(), tmp_path / "cache")) == content(source)
    assert next(failures, None) is None


def test_several_processes_fetch_once(source: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from amlr.serving.ray import bundles\n"
        "copy, count = bundles._copy, []\n"
        "def counted(*rest): count.append(1); copy(*rest)\n"
        "bundles._copy = counted\n"
        "path = bundles.fetch_bundle(sys.argv[1], Path(sys.argv[2]))\n"
        "print(path.name, len(count))"
    )
    command = [sys.executable, "-c", code, source.as_uri(), str(tmp_path / "cache")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0].split() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    files = len(read_manifest(source)[0].files)
    assert {name for name, _ in said} == {digest_of(source)}
    assert sorted(int(count) for _, count in said) == [0, files]


def test_messages_name_what_is_missing_but_no_secret(source: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="check the address"):
        fetch_bundle((tmp_path / "none.plan").as_uri(), tmp_path / "cache")
    with pytest.raises((BundleError, BackendUnavailableError)) as failed:
        fetch_bundle("nosuch://user:secret@host/amlr.plan?sig=secret", tmp_path / "cache")
    assert "secret" not in str(failed.value)
    assert "nosuch" in str(failed.value)
