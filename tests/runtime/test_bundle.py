import hashlib
import json
import os
import pickle
import shutil
import time
import zipfile
from pathlib import Path

import pytest

from amlr.errors import BundleError
from amlr.runtime import Engine, bundle, known_files
from amlr.runtime.bundle import Bundle, read_manifest
from amlr.runtime.inspection import describe
from bundles import relist


@pytest.fixture
def plan(tiny_plan: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(tiny_plan, tmp_path / "copy.plan"))


def test_every_file_is_checked_before_use(tiny_plan: Path, tmp_path: Path) -> None:
    names = [
        path.relative_to(tiny_plan).as_posix()
        for path in sorted(tiny_plan.rglob("*"))
        if path.is_file() and path.name not in ("manifest.json", "reference.safetensors")
    ]
    assert len(names) >= 8
    for name in names:
        plan = Path(shutil.copytree(tiny_plan, tmp_path / name.replace("/", "-")))
        content = (plan / name).read_bytes()
        (plan / name).write_bytes(content[:-1])
        with pytest.raises(BundleError, match="instead of"):
            Engine.load(plan)
        middle = len(content) // 2
        flipped = bytes([content[middle] ^ 1])
        (plan / name).write_bytes(content[:middle] + flipped + content[middle + 1 :])
        with pytest.raises(BundleError, match="damaged"):
            Engine.load(plan)
        (plan / name).unlink()
        with pytest.raises(BundleError, match="cannot read"):
            Engine.load(plan)
        shutil.rmtree(plan)


def test_weights_of_several_tiers_are_read_once_while_they_stay_as_they_are(
    plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, read = time.time_ns, bundle.check_file
    monkeypatch.setattr(known_files.time, "time_ns", lambda: now() + 10_000_000_000)
    names: list[str] = []
    monkeypatch.setattr(bundle, "check_file", lambda *a: (names.append(a[1]), read(*a)))
    opened = Bundle.open(plan)
    variant = opened.manifest.variants["fp32"]
    opened.verify(variant)
    opened.verify(variant)
    assert len(names) == len(set(names)) > 3
    weights = plan / next(name for name in names if name.endswith(".bin"))
    times = (weights.stat().st_atime_ns, weights.stat().st_mtime_ns)
    time.sleep(0.02)  # longer than a tick of the file system's clock
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(weights, ns=times)
    with pytest.raises(BundleError, match="damaged"):
        opened.verify(variant)


def test_the_reference_is_not_needed_to_serve(plan: Path) -> None:
    (plan / "reference.safetensors").unlink()
    Engine.load(plan, provider="onnxruntime-cpu").close()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"\xff\xff"),
        ("decoder.safetensors", b""),
        ("decoder.safetensors", b"\xff" * 64),
        ("golden.safetensors", b"\x02\0\0\0\0\0\0\0{}"),
        ("golden.safetensors", b"\xff" * 7),
    ],
)
def test_files_that_are_not_what_they_should_be(plan: Path, name: str, content: bytes) -> None:
    (plan / name).write_bytes(content)
    relist(plan, name)
    with pytest.raises(BundleError, match=name):
        Engine.load(plan)


def test_decoder_tensors_of_another_shape(plan: Path, tiny_plan: Path) -> None:
    shutil.copy(tiny_plan / "golden.safetensors", plan / "decoder.safetensors")
    relist(plan, "decoder.safetensors")
    with pytest.raises(BundleError, match="must hold 'start'"):
        Engine.load(plan)


def test_a_graph_that_onnxruntime_refuses(plan: Path) -> None:
    (plan / "onnx/fp32/text_packed.onnx").write_bytes(b"no graph")
    relist(plan, "onnx/fp32/text_packed.onnx")
    with pytest.raises(Exception, match="cannot load graph 'text_packed'"):
        Engine.load(plan, provider="onnxruntime-cpu")


def test_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle at"):
        Bundle.open(tmp_path / "absent.plan")
    with pytest.raises(BundleError, match=r"manifest\.json"):
        Bundle.open(tmp_path)
    pickled = tmp_path / "best.pt"
    pickled.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(BundleError, match="pickle, which is never opened"):
        Bundle.open(pickled)
    with zipfile.ZipFile(tmp_path / "zip.plan", "w") as archive:
        archive.writestr("manifest.json", "{}")
    with pytest.raises(BundleError, match="amlr-export --ckpt"):
        Bundle.open(tmp_path / "zip.plan")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(BundleError, match="is a folder"):
        Bundle.open(tmp_path / "text")


def test_a_pickle_in_place_of_a_file_is_not_run(plan: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    for name in ("decoder.safetensors", "golden.safetensors", "tokenizer.json", "manifest.json"):
        before = (plan / name).read_bytes()
        (plan / name).write_bytes(pickle.dumps(Trap()))
        if name != "manifest.json":
            relist(plan, name)
        with pytest.raises(BundleError):
            Engine.load(plan)
        (plan / name).write_bytes(before)
        if name != "manifest.json":
            relist(plan, name)
    assert not (tmp_path / "sprung").exists()


def test_pin(plan: Path) -> None:
    digest = hashlib.sha256((plan / "manifest.json").read_bytes()).hexdigest()
    Engine.load(plan, "onnxruntime-cpu", manifest_sha256=digest.upper()).close()
    (plan / "manifest.json").write_bytes((plan / "manifest.json").read_bytes() + b" ")
    with pytest.raises(BundleError, match="was pinned"):
        Engine.load(plan, manifest_sha256=digest)


def test_graph_hash_names_the_graph_and_its_weights(tiny_plan: Path, plan: Path) -> None:
    bundle = Bundle.open(tiny_plan)
    variant = bundle.manifest.variants["fp32"]
    hashes = {bundle.graph_hash(variant, graph) for graph in variant.graphs}
    assert len(hashes) == len(variant.graphs)
    (plan / "onnx/fp32/weights.bin").write_bytes(b"other")
    relist(plan, "onnx/fp32/weights.bin")
    other = Bundle.open(plan)
    assert other.graph_hash(variant, "image") != bundle.graph_hash(variant, "image")
    with pytest.raises(BundleError, match="no graph 'absent'"):
        bundle.graph_path(variant, "absent")


def test_loading_writes_nothing(plan: Path) -> None:
    def state() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in plan.rglob("*")}

    before = state()
    with Engine.load(plan, provider="onnxruntime-cpu") as engine:
        engine.tag("in paris")
    assert state() == before


@pytest.mark.parametrize(
    ("version", "part"), [(None, "now upright"), (1, "now upright"), (9, "newer amlr"), (2, "")]
)
def test_another_version_of_the_picture_steps_is_one_line(
    plan: Path, caplog: pytest.LogCaptureFixture, version: int | None, part: str
) -> None:
    values = json.loads((plan / "manifest.json").read_text())
    assert values["image"].pop("version") == 2
    if version is not None:
        values["image"]["version"] = version
    (plan / "manifest.json").write_text(json.dumps(values))
    Engine.load(plan, provider="onnxruntime-cpu", check="off").close()
    lines = [record.getMessage() for record in caplog.records if "steps" in record.getMessage()]
    assert len(lines) == bool(part)
    assert all(part in line and "\n" not in line for line in lines)
    if part:
        assert any(part in line for line in describe(Bundle.open(plan).manifest, ""))


@pytest.mark.parametrize(
    "name", ["onnx/fp32/weights.bin", "tokenizer.json", "manifest.json", "onnx"]
)
def test_linked_files_are_refused_by_name_everywhere(
    tiny_plan: Path, tmp_path: Path, name: str
) -> None:
    plan = tmp_path / "linked.plan"
    shutil.copytree(tiny_plan, plan)
    (plan / name).rename(tmp_path / "blob")
    (plan / name).symlink_to(tmp_path / "blob")
    wanted = "onnx/" if name == "onnx" else name
    for look in (
        lambda: Bundle.open(plan),
        lambda: read_manifest(plan),
        lambda: Engine.load(plan, provider="onnxruntime"),
    ):
        with pytest.raises(BundleError, match=f"{wanted}.* is a link.*cp -rL"):
            look()


def test_a_bundle_behind_a_link_is_served(tiny_plan: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(tiny_plan)
    with Engine.load(tmp_path / "current", provider="onnxruntime") as engine:
        assert engine.tag("Paris").error is None
