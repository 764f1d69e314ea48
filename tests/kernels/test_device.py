"""The device layer: its rule, its errors, and (marker `gpu`) its calls on a device or double."""

import importlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from amlr.errors import BackendUnavailableError, InputError
from amlr.kernels import segmental_decode, viterbi_decode
from amlr.kernels.device import Device, DeviceError, DeviceMemoryError
from amlr.kernels.images import KernelRecord, KernelSpec, build_images
from amlr.kernels.launch import Compile, KernelLibrary
from amlr.kernels.launch_linear import Chains, LinearKernels
from shims.cases import chain_case
from shims.full_decoders import FullDecoders
from shims.host_build import HostBuilder
from shims.joint import joint_case, run_joint

SRC = Path(__file__).parents[2] / "src"


def probe(folder: str, **environment: str) -> str:
    """Open a device in a fresh process; the one line it prints."""
    code = (
        "from amlr.kernels.device import open_device\n"
        "try:\n    print('opened', open_device().binding)\n"
        "except ImportError as error:\n    print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "LD_LIBRARY_PATH": folder, "PYTHONPATH": str(SRC), **environment},
    )
    return done.stdout.strip()


def test_broken_drivers_are_named_and_never_crash(
    host_builder: HostBuilder, tmp_path: Path
) -> None:
    double = str(host_builder.driver_double())
    assert probe(double).startswith("opened ")
    for environment, found in (
        ({"AMLR_DOUBLE_INIT": "34"}, "link-time stub"),
        ({"AMLR_DOUBLE_INIT": "999"}, "code 999: unknown error"),
        ({"AMLR_DOUBLE_INIT": "7"}, "cuInit with code 7"),
        ({"AMLR_DOUBLE_DEVICES": "0"}, "sees 0 devices"),
    ):
        line = probe(double, **environment)
        assert line.startswith("BackendUnavailableError")
        assert found in line
        assert "needed:" in line
        assert "fix:" in line
    (tmp_path / "libcuda.so.1").write_bytes(b"not a library")
    assert "no NVIDIA driver" in probe(str(tmp_path))


def test_a_library_without_the_driver_interface_is_refused(tmp_path: Path) -> None:
    library = tmp_path / "libcuda.so.1"
    subprocess.run(
        ["g++", "-shared", "-fPIC", "-x", "c++", "-", "-o", str(library)],
        input=b"",
        check=True,
    )
    assert "has no cuInit" in probe(str(tmp_path))


def test_binding_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    from amlr.kernels import device

    monkeypatch.setattr(device, "probe_driver", lambda: 1)
    opened: list[str] = []

    class Implementation:
        def __init__(self, name: str) -> None:
            self.name = name

        def open_device(self, ordinal: int) -> str:
            opened.append(self.name)
            return self.name

    monkeypatch.setattr(importlib, "import_module", Implementation)
    installed = {"cuda.bindings", "pycuda"}
    monkeypatch.setattr(device, "_is_installed", lambda package: package in installed)
    for binding in ("auto", "cuda-bindings", "pycuda"):
        device.open_device(binding)
    installed.remove("cuda.bindings")
    device.open_device("auto")
    assert [name.rpartition("_")[2] for name in opened] == [
        "bindings",
        "bindings",
        "pycuda",
        "pycuda",
    ]
    with pytest.raises(BackendUnavailableError, match=r'pip install "amlr\[cuda\]"'):
        device.open_device("cuda-bindings")  # pycuda is there, but was not asked for
    with pytest.raises(InputError, match="no CUDA binding 'cupy'"):
        device.open_device("cupy")
    with pytest.raises(BackendUnavailableError, match="device 3"):
        device.open_device(ordinal=3)


def test_importing_the_layer_loads_no_binding() -> None:
    code = (
        "import sys, amlr.kernels.device, amlr.kernels.cuda, amlr.kernels.launch\n"
        "print(sorted({'cuda', 'pycuda'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.gpu
def test_copies(opened_device: Device) -> None:
    device = opened_device
    with device.current():
        stream = device.stream()
        source = device.pinned_empty((3, 4), np.float16)
        source[:] = np.arange(12).reshape(3, 4)
        first, second = device.alloc(source.nbytes), device.alloc(source.nbytes)
        device.upload(first, source, stream)
        device.copy(second, first, source.nbytes, stream)
        target = device.pinned_empty((3, 4), np.float16)
        device.download(target, second, stream)
        stream.synchronize()
        np.testing.assert_array_equal(target, source)
        for pointer in (first, second):
            device.free(pointer)
        stream.close()


@pytest.mark.gpu
def test_empty_arrays(opened_device: Device) -> None:
    device = opened_device
    nothing = np.zeros((0, 3), np.float32)
    with device.current():
        stream, pointer = device.stream(), device.alloc(0)
        device.upload(pointer, nothing, stream)
        device.download(nothing, pointer, stream)
        stream.synchronize()
        assert device.pinned_empty((0, 3), np.float32).shape == (0, 3)
        device.free(pointer)
        stream.close()


@pytest.mark.gpu
def test_events_on_two_streams(opened_device: Device) -> None:
    device = opened_device
    with device.current():
        first, second = device.stream(), device.stream()
        assert first.handle != second.handle
        before, after = device.event(), device.event()
        values = device.pinned_empty((1000,), np.int32)
        values[:] = 5
        pointer = device.alloc(values.nbytes)
        before.record(first)
        device.upload(pointer, values, first)
        after.record(first)
        after.synchronize()
        result = device.pinned_empty((1000,), np.int32)
        device.download(result, pointer, second)
        second.synchronize()
        assert (result == 5).all()
        assert after.milliseconds_since(before) >= 0
        device.free(pointer)
        for thing in (before, after, first, second):
            thing.close()


@pytest.mark.gpu
def test_out_of_memory(opened_device: Device) -> None:
    with opened_device.current():
        with pytest.raises(DeviceMemoryError):
            opened_device.alloc(1 << 50)
        # The device is still usable.
        opened_device.free(opened_device.alloc(16))


@pytest.mark.gpu
def test_bad_images_and_names(opened_device: Device, compile_once: Compile) -> None:
    with opened_device.current():
        with pytest.raises(DeviceError):
            opened_device.load_module(b"not an image, and long enough to be read as one" * 4)
        spec = KernelSpec(source="linear_viterbi", tags=3)
        module = opened_device.load_module(compile_once(spec, f"sm_{opened_device.sm}"))
        with pytest.raises(DeviceError):
            module.function("no_such_kernel")


@pytest.mark.gpu
def test_decoding_in_a_captured_graph(gpu: KernelLibrary) -> None:
    """One capture, several batches through the same buffers: nothing waits, nothing allocates."""
    device = gpu.device
    kernels = LinearKernels(gpu, tags=9)
    case = chain_case(0, 4, 13, 9)
    with device.current():
        stream = device.stream()
        arrays = {
            "emissions": device.pinned_empty((4, 13, 9), np.float32),
            "lengths": device.pinned_empty((4,), np.int32),
            "start": case.start_y,
            "transitions": case.transitions_yy,
            "end": case.end_y,
        }
        at = {name: device.alloc(array.nbytes) for name, array in arrays.items()}
        for name in ("start", "transitions", "end"):
            device.upload(at[name], arrays[name], stream)
        tags, scores = device.pinned_empty((4, 13), np.int32), device.pinned_empty((4,), np.float32)
        tags_at, scores_at = device.alloc(tags.nbytes), device.alloc(scores.nbytes)
        stream.synchronize()
        with device.capture(stream) as graph:
            for name in ("emissions", "lengths"):
                device.upload(at[name], arrays[name], stream)
            chains = Chains(**at, batch=4, max_steps=13)
            kernels.decode(stream, chains, tags=tags_at, scores=scores_at)
            device.download(tags, tags_at, stream)
            device.download(scores, scores_at, stream)
        for seed in range(3):
            batch = chain_case(seed, 4, 13, 9)
            arrays["emissions"][:] = batch.emissions_bty
            arrays["lengths"][:] = batch.lengths_b
            graph.launch(stream)
            stream.synchronize()
            expected = viterbi_decode(batch.emissions_bty, batch.lengths_b, **case.parameters())
            np.testing.assert_array_equal(tags, expected[0])
            np.testing.assert_array_equal(scores, expected[1])
        graph.close()
        for pointer in (*at.values(), tags_at, scores_at):
            device.free(pointer)
        stream.close()


@pytest.mark.gpu
def test_a_failed_capture_leaves_the_stream_usable(opened_device: Device) -> None:
    device = opened_device
    with device.current():
        stream = device.stream()
        with pytest.raises(ZeroDivisionError), device.capture(stream):
            raise ZeroDivisionError
        with device.capture(stream) as graph, pytest.raises(DeviceError, match="not captured yet"):
            graph.launch(stream)
        stream.synchronize()
        graph.close()
        stream.close()


@pytest.mark.gpu
def test_joint_pipeline(gpu: KernelLibrary) -> None:
    case = joint_case(1)
    found = run_joint(gpu, case, np.full((4, 2), (0.1, 0.03)))
    np.testing.assert_array_equal(found.scores_uc, case.expected.scores_uc)
    entities, scores = segmental_decode(case.expected, case.lengths_b)
    np.testing.assert_array_equal(found.scores_b, scores)
    assert [rows.tolist() for rows in found.entities] == [rows.tolist() for rows in entities]


@pytest.mark.gpu
def test_threads_share_decoders(gpu: KernelLibrary) -> None:
    decoders, failures = FullDecoders(gpu), []

    def work(seed: int) -> None:
        case = chain_case(seed, 5, 11, 9)
        tags, scores = decoders.viterbi_decode(*case.arguments())
        expected = viterbi_decode(case.emissions_bty, case.lengths_b, **case.parameters())
        if not (np.array_equal(tags, expected[0]) and np.array_equal(scores, expected[1])):
            failures.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.fixture(scope="module")
def built(
    opened_device: Device, compile_once: Compile, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[KernelRecord]]:
    """Images of the linear chain for this device and an older one, and PTX, with their folder."""
    library = KernelLibrary(opened_device, compile_with=compile_once)
    LinearKernels(library, tags=9)  # on the double: builds what it will run
    assert set(library.origins.values()) == {"compiled here"}
    folder = tmp_path_factory.mktemp("images")
    records = build_images(
        folder,
        tags=9,
        architectures=[75, opened_device.sm],
        sources=["linear_viterbi", "linear_confidence"],
    )
    return folder, records


def refuse(spec: KernelSpec, architecture: str) -> bytes:
    raise AssertionError(f"{spec} should have come from the bundle")


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["cubin", "ptx"])
def test_bundled_images_come_first(
    opened_device: Device, built: tuple[Path, list[KernelRecord]], kind: str
) -> None:
    folder, all_records = built
    # With PTX alone it is what the driver gets.
    records = [record for record in all_records if kind == "cubin" or record.file.endswith("ptx")]
    library = KernelLibrary(opened_device, folder=folder, records=records, compile_with=refuse)
    case = chain_case(0, 3, 9, 9)
    tags, _ = FullDecoders(library).viterbi_decode(*case.arguments())
    expected, _ = viterbi_decode(case.emissions_bty, case.lengths_b, **case.parameters())
    np.testing.assert_array_equal(tags, expected)
    assert all(origin.endswith(kind) for origin in library.origins.values())
    if kind == "cubin":
        assert all(f"sm{opened_device.sm}" in origin for origin in library.origins.values())


@pytest.mark.gpu
def test_ptx_that_the_driver_refuses_is_compiled_again(
    gpu: KernelLibrary,
    compile_once: Compile,
    built: tuple[Path, list[KernelRecord]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, all_records = built
    if "AMLR_DOUBLE_KERNELS" not in os.environ:
        pytest.skip("only the driver double can be told to refuse PTX")
    monkeypatch.setenv("AMLR_DOUBLE_PTX", "reject")
    records = [record for record in all_records if record.file.endswith(".ptx")]
    library = KernelLibrary(gpu.device, folder=folder, records=records, compile_with=compile_once)
    LinearKernels(library, tags=9)
    assert set(library.origins.values()) == {"compiled here"}

    def fail(spec: KernelSpec, architecture: str) -> bytes:
        raise BackendUnavailableError("no compiler; fix: install it")

    library = KernelLibrary(gpu.device, folder=folder, records=records, compile_with=fail)
    with pytest.raises(BackendUnavailableError, match=r"ptx: .*code 222.*no compiler") as caught:
        LinearKernels(library, tags=9)
    assert f"sm_{gpu.device.sm}" in str(caught.value)
