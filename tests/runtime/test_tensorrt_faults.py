"""What goes wrong with an engine of TensorRT: faults at load and in service, refusals, closing."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amlr.errors import AmlrError, BackendUnavailableError, BundleError, PlanMismatchError
from amlr.export.samples import sample_posts
from amlr.kernels.device import DeviceError, DeviceMemoryError, probe_driver
from amlr.runtime import Engine
from amlr.runtime.bundle import Bundle
from doubles.bundle import double_bundle, double_tools, entities, open_double
from doubles.device import DoubleDevice


@pytest.fixture(scope="module")
def bundle(tiny_plan: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return double_bundle(tiny_plan, tmp_path_factory.mktemp("double") / "d.plan")


# Injected faults: name of the fault, error, what the message must hold.
LOAD_FAULTS = [
    ("runtime", BackendUnavailableError, "could not start"),
    ("deserialize", PlanMismatchError, "kSTD_VERSION.*rebuild with: amlr-export --from"),
    ("context", DeviceMemoryError, "OutOfMemory"),
    ("shape", PlanMismatchError, "refuses shape"),
    ("address", DeviceError, "address 0x.* was refused"),
    ("infer", DeviceError, "shapes are missing for"),
    ("launch", DeviceError, "could not be launched: Cuda failure: 700"),
]


@pytest.mark.parametrize(("fault", "error", "message"), LOAD_FAULTS)
@pytest.mark.parametrize("graph", ["text", "image", "fusion"])
def test_faults_at_load_are_named_and_leave_nothing(
    bundle: Bundle, machine: Any, fault: str, error: type[Exception], message: str, graph: str
) -> None:
    device, tools, module = machine
    module.faults.active.add(fault)
    module.faults.graph = graph if fault not in ("runtime", "deserialize") else None
    with pytest.raises(error, match=message):
        open_double(bundle, tools)
    assert device.closed
    assert module.contexts == 0


def test_memory_may_run_out_at_any_allocation(bundle: Bundle) -> None:
    device = DoubleDevice()
    tools, _ = double_tools(device)
    open_double(bundle, tools).close()
    needed = device.allocations
    assert needed > 3
    for limit in range(needed):
        device = DoubleDevice()
        device.alloc_limit = limit
        tools, module = double_tools(device)
        with pytest.raises(DeviceMemoryError):
            open_double(bundle, tools)
        assert device.live_allocations == 0
        assert device.streams == {}
        assert module.contexts == 0


@pytest.mark.parametrize("fault", ["launch", "address", "shape", "context"])
def test_a_fault_in_service_fails_one_call_and_not_the_next(
    bundle: Bundle, tiny_plan: Path, machine: Any, fault: str
) -> None:
    _, tools, module = machine
    posts = sample_posts(20, images=6)
    with Engine.load(tiny_plan, provider="onnxruntime") as exact:
        expected = entities(exact.tag_batch(posts))
    with Engine(bundle, open_double(bundle, tools)) as engine:
        module.faults.active.add(fault)
        with pytest.raises(AmlrError):
            engine.tag("one two three four five six seven eight nine " * 3)
        module.faults.active.clear()
        assert entities(engine.tag_batch(posts)) == expected


def test_refusals_before_the_library_is_touched(
    bundle: Bundle, tiny_plan: Path, tmp_path: Path
) -> None:
    def refuse(*args: object, **kwargs: object) -> Any:
        raise AssertionError("the library was touched")

    def attempt(bundle: Bundle, device: DoubleDevice, version: str = "10.13.0.35") -> None:
        tools, module = double_tools(device, version)
        module.Runtime = refuse  # type: ignore[assignment]
        open_double(bundle, tools)

    command = f"amlr-export --from {bundle.path} --target tensorrt"
    with pytest.raises(
        PlanMismatchError, match=r"another device: found .*SM 8\.9.*SM 9\.0"
    ) as caught:
        attempt(bundle, DoubleDevice(sm=90))
    assert command in str(caught.value)
    with pytest.raises(PlanMismatchError, match="another version") as caught:
        attempt(bundle, DoubleDevice(), "11.4.0.106")
    assert command in str(caught.value)
    with pytest.raises(PlanMismatchError, match="holds no engines"):
        attempt(Bundle.open(tiny_plan), DoubleDevice())
    with pytest.raises(BackendUnavailableError, match="MB free, the engines need"):
        attempt(bundle, DoubleDevice(free_bytes=1 << 20))
    with pytest.raises(BackendUnavailableError, match=r"10.3.0 is installed, 10.13 or newer"):
        attempt(bundle, DoubleDevice(), "10.3.0")
    damaged = double_bundle(tiny_plan, tmp_path / "damaged.plan")
    engine = next(damaged.path.rglob("fusion.engine"))
    engine.write_bytes(engine.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match="damaged"):
        attempt(damaged, DoubleDevice())


def test_small_memory_shrinks_the_pool(bundle: Bundle) -> None:
    device = DoubleDevice()
    tools, _ = double_tools(device)
    provider = open_double(bundle, tools)
    assert provider._pool is not None
    assert provider._pool.slots == 40
    provider.close()
    with pytest.raises(DeviceMemoryError, match="no room for one picture"):
        device = DoubleDevice(free_bytes=(256 << 20) + 10_000)
        tools, _ = double_tools(device)
        open_double(bundle, tools)
    assert device.live_allocations == 0


def test_without_a_driver_the_refusal_is_the_drivers(tiny_plan: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    bundle = double_bundle(
        tiny_plan, tmp_path / "rtx.plan", library="tensorrt-rtx", version="1.7.1.116"
    )
    refusal = _refusal_of_the_driver()
    if not refusal:
        pytest.skip("this machine has a driver")
    with pytest.raises(BackendUnavailableError) as caught:
        Engine.load(bundle.path, provider="tensorrt-rtx")
    assert str(caught.value) == refusal


def _refusal_of_the_driver() -> str:
    try:
        probe_driver()
    except BackendUnavailableError as refusal:
        return str(refusal)
    return ""


def test_closed_provider_refuses(bundle: Bundle, machine: Any) -> None:
    _, tools, _ = machine
    provider = open_double(bundle, tools)
    provider.close()
    provider.close()
    with pytest.raises(AmlrError, match="closed"):
        provider.encode_images(np.zeros((1, 3, 64, 64), np.float32))


def test_closing_waits_for_calls_and_refuses_those_in_the_queue(
    bundle: Bundle, machine: Any
) -> None:
    _, tools, _ = machine
    provider = open_double(bundle, tools)
    provider._allowed = 1
    inside, leave = threading.Event(), threading.Event()
    refused: list[str] = []

    def hold() -> None:
        with provider._session():
            inside.set()
            leave.wait(10)

    def wait() -> None:
        try:
            provider.encode_images(np.zeros((1, 3, 64, 64), np.float32))
        except AmlrError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=work) for work in (hold, wait)]
    threads[0].start()
    assert inside.wait(10)
    threads[1].start()
    closing = threading.Thread(target=provider.close)
    closing.start()
    while not provider._closed:
        threading.Event().wait(0.01)
    # The queued call may still get the session that the holder gives back, or be refused.
    leave.set()
    for thread in (*threads, closing):
        thread.join(20)
        assert not thread.is_alive()
    assert all("closed" in message for message in refused)
