"""A clock for device work of microseconds: events around replays of a captured graph."""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

from amlr.benchmarks.harness.stats import median
from amlr.kernels.cuda import DeviceWork
from amlr.kernels.device import Device

_BYTES_PER_US = 3.0e6  # a device-to-device copy on an H100


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What is timed.

    Attributes:
        batches: B of the linear chain.
        steps: T.
        posts: B of the unit decoders.
        units: Word-aligned units of each post.
        launches: Launches captured in one graph.
        replays: Timed replays of the graph.
        warm_s: Seconds of work first, until the clocks are up.
        baselines: Largest B for pytorch-crf, whose way back waits for the device at every step.
    """

    batches: tuple[int, ...] = (1, 32, 256, 528, 4096)
    steps: int = 128
    posts: tuple[int, ...] = (1, 8, 32, 256)
    units: int = 60
    launches: int = 50
    replays: int = 20
    warm_s: float = 0.3
    baselines: int = 256


class DeviceClock:
    """Times enqueued work by events around graph replays; the context must be current."""

    def __init__(self, device: Device, sizes: Sizes) -> None:
        self._device = device
        self._sizes = sizes
        with device.current():
            self.stream = device.stream()
            self._first, self._last = device.event(), device.event()
        self._is_warm = False

    def time(self, enqueue: Sequence[Callable[[], None]]) -> dict[str, float]:
        """Median and least microseconds of one pass over calls that enqueue work."""
        launches = self._sizes.launches
        self.stream.synchronize()
        with self._device.capture(self.stream) as graph:
            for _ in range(launches):
                for call in enqueue:
                    call()
        stop = time.perf_counter() + (0.0 if self._is_warm else self._sizes.warm_s)
        self._is_warm = True
        while True:
            graph.launch(self.stream)
            self.stream.synchronize()
            if time.perf_counter() >= stop:
                break
        times = []
        for _ in range(self._sizes.replays):
            self._first.record(self.stream)
            graph.launch(self.stream)
            self._last.record(self.stream)
            self._last.synchronize()
            times.append(1e3 * self._last.milliseconds_since(self._first) / launches)
        graph.close()
        return {"us": median(times, 3), "least_us": round(min(times), 3)}

    def work(self) -> closing[DeviceWork]:
        """Device memory for one case, freed afterwards."""
        return closing(DeviceWork(self._device))

    def close(self) -> None:
        """Free events and stream."""
        self._first.close()
        self._last.close()
        self.stream.close()


def host_us(call: Callable[[], object], repeats: int = 3) -> float:
    """Least wall-clock microseconds of a call after one to warm up; ends after about a second."""
    call()
    least = float("inf")
    stop = time.perf_counter() + 1.0
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        end = time.perf_counter()
        least = min(least, end - start)
        if end > stop:
            break
    return round(1e6 * least, 2)


def memory_floor(nbytes: int) -> dict[str, float]:
    """Fewest bytes that must move, and how long memory needs for them."""
    return {"bytes": nbytes, "memory_us": round(nbytes / _BYTES_PER_US, 3)}
