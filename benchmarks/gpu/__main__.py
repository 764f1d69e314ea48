"""The command behind `make gpu`: everything that needs an NVIDIA GPU, in one go and one report.

Works without a package index and with whatever is installed: TensorRT may be missing, then
onnxruntime-CUDA and the NVRTC kernels are still exercised. Each step that cannot run says why and
the others go on. Without a GPU the command refuses at once, exit code 2.

This file imports nothing heavy: the refusal must come before PyTorch or onnxruntime are loaded.
"""

import json
import os
from pathlib import Path

import click

from amlr.cli_support import AmlrCommand
from amlr.errors import ParityError
from amlr.kernels.driver import probe_driver

EXAMPLES = """\b
Examples:
  python -m amlr.benchmarks.gpu --engine build/demo/amlr.plan
  python -m amlr.benchmarks.gpu --engine amlr.plan --data valid.txt --images photos/ --posts 500
"""


@click.command("gpu", cls=AmlrCommand, epilog=EXAMPLES)
@click.option(
    "--engine",
    type=click.Path(path_type=Path),
    default=Path("build/demo/amlr.plan"),
    show_default=True,
    help="Folder of the bundle.",
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("build/gpu"), help="Reports.")
@click.option("--data", default="sample", show_default=True, help="Posts, as amlr-bench --data.")
@click.option("--images", type=click.Path(path_type=Path), help="Folder of pictures.")
@click.option("--posts", default=200, show_default=True, help="Posts for parity.")
@click.option("--seconds", default=3.0, show_default=True, help="Timing budget of one table cell.")
@click.option("--tests/--no-tests", default=True, help="Run the kernel tests on the device.")
def gpu_command(
    engine: Path,
    out: Path,
    data: str,
    images: Path | None,
    posts: int,
    seconds: float,
    tests: bool,
) -> None:
    """Build, prove and time a bundle on this machine's NVIDIA GPU; write report.md and report.json.

    Exit code 1 when a tier changes an entity or a kernel test fails, 2 without a usable GPU.
    """
    driver = probe_driver()
    from amlr.benchmarks.gpu_report import markdown
    from amlr.benchmarks.gpu_run import GpuPlan, run_gpu

    plan = GpuPlan(
        engine=engine, out=out, data=data, images=images, posts=posts, seconds=seconds, tests=tests
    )
    report = run_gpu(plan, driver, say=lambda line: click.echo(line, err=True))
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (out / "report.md").write_text(markdown(report), encoding="utf-8")
    click.echo(f"wrote {out / 'report.md'} and report.json", err=True)
    if report["failed"]:
        raise ParityError(f"failed on this GPU: {', '.join(report['failed'])}; see {out}/report.md")


def main() -> None:
    """Entry point."""
    # Kernels and engines name their device by this order.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    gpu_command()


if __name__ == "__main__":
    main()
