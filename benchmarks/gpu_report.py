"""The Markdown report of a GPU run."""

from collections.abc import Iterator, Mapping
from typing import Any


def markdown(report: Mapping[str, Any]) -> str:
    """All of a report as one page."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    device = report["device"]
    yield "# amlr on a GPU"
    yield ""
    if "not_run" in device:
        yield f"Device: {device['not_run']}"
    else:
        yield (
            f"{device['name']}, SM {device['sm'] / 10:.1f}, {device['free_mb']:.0f} MB free at "
            f"start, CUDA driver {report['driver']['version'] / 1000:.1f}, through "
            f"{device['binding']}."
        )
    failed = ", ".join(report["failed"]) or "nothing"
    yield ""
    yield f"Failed checks: {failed}."
    yield from _parity(report["tiers"])
    yield from _latency(report["tiers"])
    yield from _builds(report["builds"])
    yield from _kernels(report)
    yield from _not_run(report)


def _ran(rows: Any) -> list[Mapping[str, Any]]:
    return [row for row in rows if "not_run" not in row]


def _parity(tiers: Any) -> Iterator[str]:
    yield ""
    yield "## Parity against onnxruntime on the CPU, float32"
    yield ""
    yield "| tier | posts | entities | changed | unit logits | emissions |"
    yield "|---|---|---|---|---|---|"
    for row in _ran(tiers):
        errors = row["max_abs_error"]
        yield (
            f"| {row['name']} | {row['posts']} | {row['entities']} | {row['changed_entities']} | "
            f"{errors['unit_logits']:.1e} | {errors['emissions']:.1e} |"
        )


def _latency(tiers: Any) -> Iterator[str]:
    yield ""
    yield "## Latency of one call, in ms (cached pictures), and cold start"
    yield ""
    yield (
        "| tier | batch | pictures | p50 | p95 | p99 | posts/s | runs | load s | first call ms | "
        "GPU MB |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for row in _ran(tiers):
        for cell in row["latency"]:
            yield (
                f"| {row['name']} | {cell['batch']} | {'yes' if cell['pictures'] else 'no'} | "
                f"{_ms(cell['p50_ms'])} | {_ms(cell['p95_ms'])} | {_ms(cell['p99_ms'])} | "
                f"{cell['posts_per_s']:.0f} | {cell['runs']} | {row['load_s']:.2f} | "
                f"{row['first_tag_ms']:.1f} | {_mb(row['memory_mb'])} |"
            )


def _builds(builds: Any) -> Iterator[str]:
    yield ""
    yield "## Engines"
    yield ""
    yield "| target | precision | graph | MB | build s |"
    yield "|---|---|---|---|---|"
    for build in _ran(builds):
        for row in build["engines"]:
            yield (
                f"| {build['target']} | {row['precision']} | {row['graph']} | "
                f"{row['bytes'] / 1e6:.1f} | {row['build_s']:.1f} |"
            )


def _kernels(report: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    yield "## Kernels"
    yield ""
    kernels, tests = report["kernels"], report["tests"]
    if "not_run" not in kernels:
        verdict = "equal" if kernels["equal"] else "NOT EQUAL"
        yield (
            f"CUDA linear chain against NumPy on {kernels['batch']} sequences: {verdict}, "
            f"p50 {kernels['p50_ms']:.3f} ms with copies."
        )
    if "exit_code" in tests:
        yield ""
        yield f"Tests marked gpu: exit code {tests['exit_code']}; {' '.join(tests['last_lines'])}"


def _not_run(report: Mapping[str, Any]) -> Iterator[str]:
    steps = [
        ("CUDA decoders", report["kernels"]),
        ("kernel tests", report["tests"]),
        *((f"building {b['target']}", b) for b in report["builds"]),
        *((tier["name"], tier) for tier in report["tiers"]),
    ]
    missing = [(name, row["not_run"]) for name, row in steps if "not_run" in row]
    if missing:
        yield ""
        yield "## Not run"
        yield ""
        for name, reason in missing:
            yield f"- {name}: {reason.splitlines()[0] if reason else 'no reason'}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _mb(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
