"""What every step shares: where things are, which device, and how a call is timed."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from amlr.benchmarks.harness.stats import median
from amlr.runtime.bundle import Bundle
from amlr.runtime.manifest import Variant
from amlr.runtime.results import Post

TOKENS = 40


class NotRunError(Exception):
    """A step, or a part of it, cannot run here; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """Surroundings of a step.

    Attributes:
        kit: Folder that `amlr.benchmarks.gpu.kit` filled.
        work: Takes what is unpacked from it; kept between runs on one machine.
        out: Takes `results.jsonl` and `log.txt`.
        smoke: One repetition of everything.
        dry: On the CPU, with stand-ins for what needs a GPU.
        variants: Names of the variants to measure; empty for all of a bundle.
    """

    kit: Path
    work: Path
    out: Path
    smoke: bool = False
    dry: bool = False
    variants: tuple[str, ...] = ()

    def to_json(self) -> str:
        """For a process of its own."""
        values = {item.name: getattr(self, item.name) for item in fields(Context)}
        return json.dumps(values, default=str)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What `to_json` wrote."""
        values = json.loads(text)
        folders = {name: Path(values[name]) for name in ("kit", "work", "out")}
        return cls(**values | folders | {"variants": tuple(values["variants"])})

    @property
    def device(self) -> str:
        """PyTorch's name of the device."""
        return "cpu" if self.dry else "cuda"

    @property
    def provider(self) -> str:
        """The engine's provider that is measured."""
        return "onnxruntime-cpu" if self.dry else "onnxruntime-cuda"

    @property
    def brief(self) -> bool:
        """Whether one repetition is enough."""
        return self.smoke or self.dry

    @cached_property
    def card(self) -> str:
        """Name of the card, for every row."""
        if self.dry:
            return "CPU (dry run)"
        import torch

        return str(torch.cuda.get_device_name(0))

    def variants_of(self, bundle: Bundle) -> dict[str, Variant]:
        """The variants of a bundle that are measured."""
        return {
            name: variant
            for name, variant in bundle.manifest.variants.items()
            if not self.variants or name in self.variants
        }

    def sizes(self, *sizes: int) -> tuple[int, ...]:
        """Batch sizes to measure; a dry run takes small ones."""
        return (1, 2) if self.dry else sizes

    def plan(self, name: str) -> Path:
        """An unpacked bundle.

        Raises:
            NotRunError: The kit has none of that name, or `install` did not unpack it.
        """
        path = self.work / f"{name}.plan"
        if not (path / "manifest.json").is_file():
            part = self.kit / name
            raise NotRunError(
                f"{path.name} is not unpacked: run the step install first"
                if part.is_dir()
                else f"the kit has no part {name!r}"
            )
        return path

    def posts(self, name: str) -> list[Post]:
        """The posts that came with a bundle."""
        part = self.kit / name
        lines = (part / "posts.jsonl").read_text(encoding="utf-8").splitlines()
        return [
            Post(
                row["text"],
                (part / "images" / row["image"]).read_bytes() if row["image"] else None,
                row["words"],
            )
            for row in map(json.loads, lines)
        ]

    def time(self, call: Callable[[], Any], *, runs: int = 30) -> Any:
        """Time a call; see `measure`."""
        return measure(call, self.device, 2 if self.brief else runs)


def measure(call: Callable[[], Any], device: str, runs: int) -> dict[str, Any]:
    """Medians over some runs after a warm-up.

    Args:
        call: Does the work, or enqueues it on PyTorch's current stream.
        device: `cuda`, or `cpu` where nothing is enqueued.
        runs: Timed repetitions, each waited for; then as many without waiting.

    Returns:
        `device_ms`, one call between two CUDA events; `queued_ms`, one call of many that were
        enqueued without waiting; `host_ms`, one call until its result is there; `runs`. On a CPU
        the three are the same.
    """
    for _ in range(2 if runs <= 2 else 8):
        call()
    host: list[float] = []
    if device == "cpu":
        for _ in range(runs):
            start = time.perf_counter()
            call()
            host.append((time.perf_counter() - start) * 1e3)
        host_ms = median(host)
        return {"device_ms": host_ms, "queued_ms": host_ms, "host_ms": host_ms, "runs": runs}
    import torch

    cuda: Any = torch.cuda
    stream = cuda.current_stream()
    inside: list[float] = []
    stream.synchronize()
    for _ in range(runs):
        before, after = (cuda.Event(enable_timing=True) for _ in range(2))
        start = time.perf_counter()
        before.record(stream)
        call()
        after.record(stream)
        after.synchronize()
        host.append((time.perf_counter() - start) * 1e3)
        inside.append(before.elapsed_time(after))
    before, after = (cuda.Event(enable_timing=True) for _ in range(2))
    before.record(stream)
    for _ in range(runs):
        call()
    after.record(stream)
    after.synchronize()
    return {
        "device_ms": median(inside),
        "queued_ms": round(before.elapsed_time(after) / runs, 4),
        "host_ms": median(host),
        "runs": runs,
    }


def busy_share(call: Callable[[], Any], seconds: float) -> dict[str, float]:
    """Share of the time in which the device did something, whatever stream it was on.

    Returns:
        `busy_ms_a_call` of kernels and copies, `wall_ms_a_call`, and `idle_share`, 0..1. A copy
        and a kernel at the same time count once.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        calls, start = 0, time.perf_counter()
        while not calls or time.perf_counter() - start < seconds:
            call()
            calls += 1
        torch.cuda.synchronize()
        wall = (time.perf_counter() - start) * 1e3
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profiler.events() or ()
        if event.device_type.name == "CUDA"
    )
    busy = reached = 0.0
    for begin, end in spans:
        busy += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    share = max(0.0, 1 - busy / 1e3 / wall)
    return {
        "busy_ms_a_call": round(busy / 1e3 / calls, 4),
        "wall_ms_a_call": round(wall / calls, 4),
        "idle_share": round(share, 4),
    }


def one_line(error: Exception) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}"
