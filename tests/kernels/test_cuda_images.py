"""Compiled images: names, hashes, lookup, and the resources of all kernels on all architectures."""

import re
from dataclasses import asdict
from pathlib import Path

import pytest

from amlr.errors import BackendUnavailableError, ExportError, InputError, ShapeError
from amlr.kernels import images
from amlr.kernels.images import (
    ARCHITECTURES,
    SOURCES,
    KernelRecord,
    KernelSpec,
    build_images,
    compile_image,
    find_images,
)
from amlr.kernels.launch import KernelLibrary
from amlr.kernels.launch_linear import LinearKernels
from amlr.kernels.nvrtc import Nvrtc, _candidates, load_nvrtc
from requirements import require
from shims.shim_device import ShimDevice

SPEC = KernelSpec(source="linear_viterbi", tags=9)


@pytest.fixture(scope="module")
def nvrtc() -> Nvrtc:
    try:
        return load_nvrtc()
    except BackendUnavailableError as error:
        require("nvrtc", found=False, reason=str(error))
        raise AssertionError from error


def record(architecture: str, spec: KernelSpec = SPEC, compiler: str = "nvrtc-1.2") -> KernelRecord:
    return KernelRecord(
        file=spec.file_name(architecture, compiler),
        source=spec.source,
        tags=spec.tags,
        architecture=architecture,
        compiler=compiler,
    )


def test_file_names() -> None:
    name = SPEC.file_name("sm_90", "nvrtc-13.5")
    assert name == f"linear_viterbi-y9-sm90-{SPEC.digest('sm_90', 'nvrtc-13.5')}.cubin"
    other = KernelSpec(source="segmental_viterbi", tags=13)
    name = other.file_name("compute_75", "nvrtc-13.5")
    assert name.startswith("segmental_viterbi-y13-compute75-")
    assert name.endswith(".ptx")
    assert other.function("segmental_certify") == "segmental_certify_y13"


def test_records_of_older_bundles_are_read() -> None:
    # They named the dtype of the emissions, and their hashes are of other sources.
    assert KernelRecord.from_dict(asdict(record("sm_90")) | {"half": True}) == record("sm_90")


def test_digest_covers_source_options_and_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    digests = {
        SPEC.digest("sm_90", "nvrtc-13.5"),
        SPEC.digest("sm_90", "nvrtc-13.4"),
        SPEC.digest("sm_89", "nvrtc-13.5"),
        KernelSpec(source="linear_viterbi", tags=10).digest("sm_90", "nvrtc-13.5"),
    }
    original = SPEC.text
    monkeypatch.setattr(images, "_read_source", lambda source: original + "\n")
    digests.add(SPEC.digest("sm_90", "nvrtc-13.5"))
    assert len(digests) == 5


def test_lookup_prefers_the_nearest_cubin(tmp_path: Path) -> None:
    records = [record(name) for name in ("sm_80", "sm_86", "sm_89", "sm_90", "compute_75")]
    for one in records:
        (tmp_path / one.file).touch()

    def found(sm: int) -> list[str]:
        return [path.name.split("-")[2] for path in find_images(tmp_path, records, SPEC, sm)]

    assert found(80) == ["sm80", "compute75"]
    assert found(87) == ["sm86", "sm80", "compute75"]  # same major number, not newer
    assert found(90) == ["sm90", "compute75"]
    assert found(120) == ["compute75"]
    assert found(70) == []


def test_lookup_ignores_what_does_not_fit(tmp_path: Path) -> None:
    stale = record("sm_90")
    stale = KernelRecord(**{**asdict(stale), "file": stale.file.replace("y9", "y9x")})
    other = record("sm_90", KernelSpec(source="linear_viterbi", tags=10))
    absent = record("sm_90", compiler="nvrtc-9.9")
    for one in (stale, other):
        (tmp_path / one.file).touch()
    assert find_images(tmp_path, [stale, other, absent], SPEC, 90) == []


def test_bad_specs_are_refused() -> None:
    with pytest.raises(InputError, match="no kernel source 'viterbi'"):
        KernelSpec(source="viterbi", tags=9)
    for tags in (0, 33):
        with pytest.raises(ShapeError, match=r"1\.\.32 tags"):
            KernelSpec(source="linear_viterbi", tags=tags)


def test_missing_compiler_and_image_are_named(shim: ShimDevice, tmp_path: Path) -> None:
    def no_compiler(spec: KernelSpec, architecture: str) -> bytes:
        raise BackendUnavailableError("NVRTC was not found; fix: pip install nvidia-cuda-nvrtc")

    library = KernelLibrary(shim, folder=tmp_path, compile_with=no_compiler)
    with pytest.raises(BackendUnavailableError) as caught:
        LinearKernels(library, tags=9)
    for part in ("linear_viterbi", "sm_90", "no image", "pip install nvidia-cuda-nvrtc"):
        assert part in str(caught.value)


def test_build_images_writes_what_its_records_say(nvrtc: Nvrtc, tmp_path: Path) -> None:
    records = build_images(
        tmp_path / "kernels",
        tags=3,
        architectures=[86, 90, 999],
        sources=["linear_viterbi"],
    )
    assert [one.architecture for one in records] == ["sm_86", "sm_90", "compute_75"]
    assert sorted(path.name for path in (tmp_path / "kernels").iterdir()) == sorted(
        one.file for one in records
    )
    spec = KernelSpec(source="linear_viterbi", tags=3)
    best = find_images(tmp_path / "kernels", records, spec, 90)[0]
    assert best.read_bytes() == compile_image(spec, "sm_90", nvrtc)  # compiling is deterministic
    ptx = (tmp_path / "kernels" / records[-1].file).read_text()
    assert ".entry linear_viterbi_y3" in ptx


def test_compile_errors_carry_the_log(nvrtc: Nvrtc) -> None:
    with pytest.raises(ExportError, match="undeclared_thing"):
        nvrtc.compile("__global__ void k() { undeclared_thing(); }", ["--gpu-architecture=sm_90"])


def memory_use(compiler: Nvrtc, source: str, options: list[str]) -> tuple[list[str], int]:
    """Kernels of a source, and the bytes of stack frames and spills that the compiler reports."""
    _, report = compiler.compile(source, [*options, "--ptxas-options=-v"])
    kernels = re.findall(r"Compiling entry function '(\w+)'", report)
    # A report that lacks the figures would pass for a good one.
    assert len(re.findall(r"bytes stack frame", report)) >= len(kernels)
    sizes = re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", report)
    return kernels, sum(map(int, sizes))


@pytest.mark.parametrize("sm", ARCHITECTURES)
def test_no_kernel_spills_or_has_a_stack_frame(nvrtc: Nvrtc, sm: int) -> None:
    if sm not in nvrtc.architectures():
        pytest.skip(f"{nvrtc.name} does not know sm_{sm}")
    specs = [
        KernelSpec(source="linear_viterbi", tags=9),
        KernelSpec(source="linear_viterbi", tags=32),
        KernelSpec(source="linear_confidence", tags=32),
        KernelSpec(source="segmental_viterbi", tags=9),
    ]
    if sm == 90:
        specs += [KernelSpec(source=source, tags=9) for source in SOURCES]
    for spec in specs:
        kernels, size = memory_use(nvrtc, spec.text, spec.options(f"sm_{sm}"))
        assert sorted(kernels) == sorted(spec.function(name) for name in SOURCES[spec.source])
        assert size == 0, spec


def test_the_gate_sees_stack_and_spills(nvrtc: Nvrtc) -> None:
    source = """
    extern "C" __global__ void __launch_bounds__(1024) kernel(float* out, int n) {
        float kept[200], held[100];
        for (int i = 0; i < 200; ++i) kept[i] = out[i * n];
        for (int i = 0; i < 200; ++i) out[i] = kept[(i * n) % 200];
        #pragma unroll
        for (int i = 0; i < 100; ++i) held[i] = out[i] * n;
        __syncthreads();
        #pragma unroll
        for (int i = 0; i < 100; ++i) out[99 - i] = held[i];
    }"""
    kernels, size = memory_use(nvrtc, source, SPEC.options("sm_90"))
    assert kernels == ["kernel"]
    assert size > 800


def test_the_compiler_of_a_wheel_comes_before_a_toolkit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # PyTorch's wheels for CUDA 13 share one folder; those for CUDA 12 have one each.
    for place in ("cu13/lib/libnvrtc.so.13", "cuda_nvrtc/lib/libnvrtc.so.12"):
        library = tmp_path / "nvidia" / place
        library.parent.mkdir(parents=True)
        library.touch()
    monkeypatch.setattr("sys.path", [str(tmp_path / "absent"), str(tmp_path)])
    candidates = list(_candidates())
    assert [Path(path).name for path in candidates[:2]] == ["libnvrtc.so.13", "libnvrtc.so.12"]
    assert candidates[0].startswith(str(tmp_path))
    assert candidates[2] == "libnvrtc.so.13"  # then what the loader finds
    assert "/usr/local/cuda/lib64/libnvrtc.so.13" in candidates
