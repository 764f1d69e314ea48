"""`python -m amlr.benchmarks.gpu`: measure the product on an NVIDIA GPU within a time budget.

Imports nothing heavy: without a GPU the refusal must come before PyTorch or onnxruntime load.
"""

import tempfile
from pathlib import Path

import click

from amlr.benchmarks.gpu.report import summary
from amlr.benchmarks.gpu.run import RESULTS, STEPS, Run, orchestrate, read_rows
from amlr.cli_support import AmlrCommand, log_to_stderr
from amlr.errors import InputError, ParityError
from amlr.kernels.driver import probe_driver

EXAMPLES = """\b
Examples:
  python -m amlr.benchmarks.gpu.kit --out .kit                       (at home, once)
  python -m amlr.benchmarks.gpu --kit .kit --out build/gpu --smoke
  python -m amlr.benchmarks.gpu --kit .kit --out build/gpu --budget 420
  python -m amlr.benchmarks.gpu --kit .kit --out build/gpu --steps ort-speed,eager
  python -m amlr.benchmarks.gpu --kit .kit --out build/dry --dry-run (no GPU needed)
"""
FolderPath = click.Path(path_type=Path, file_okay=False)


@click.command("gpu", cls=AmlrCommand, epilog=EXAMPLES)
@click.option("--kit", type=FolderPath, default=Path(".kit"), show_default=True, help="The kit.")
@click.option("--out", type=FolderPath, default=Path("build/gpu"), show_default=True)
@click.option("--budget", type=float, default=420.0, show_default=True, help="Seconds in all.")
@click.option("--smoke", is_flag=True, help="One repetition of everything.")
@click.option("--steps", default="", help="Comma-separated names; all by default.")
@click.option("--variants", default="", help="Comma-separated variants; all by default.")
@click.option("--dry-run", is_flag=True, help="Walk every step on the CPU, at tiny sizes.")
@click.option(
    "--work",
    type=FolderPath,
    default=lambda: Path(tempfile.gettempdir()) / "amlr-gpu",
    help="Takes unpacked wheels and bundles [default: amlr-gpu in the system's temporary folder].",
)
def gpu_command(
    kit: Path,
    out: Path,
    budget: float,
    smoke: bool,
    steps: str,
    variants: str,
    dry_run: bool,
    work: Path,
) -> None:
    """Measure on this machine's NVIDIA GPU; append rows to results.jsonl, print a table.

    Exit code 1 when a step failed, 2 without a usable GPU.
    """
    if not dry_run:
        probe_driver()
    chosen = tuple(name.strip() for name in steps.split(",") if name.strip())
    unknown = set(chosen) - {step.name for step in STEPS}
    if unknown:
        names = ", ".join(step.name for step in STEPS)
        raise InputError(f"--steps names {sorted(unknown)}; expected some of {names}")
    if not kit.is_dir():
        raise InputError(f"no kit at {kit}; fill one with: python -m amlr.benchmarks.gpu.kit")
    run = Run(
        kit=kit.resolve(), out=out.resolve(), work=work.resolve(), budget=budget, smoke=smoke,
        dry=dry_run, steps=chosen, variants=tuple(filter(None, variants.split(","))),
    )  # fmt: skip
    with log_to_stderr("amlr.benchmarks"):
        good = orchestrate(run)
    click.echo(summary(read_rows(run.out / RESULTS)))
    if not good:
        raise ParityError(f"a step failed; see {out / RESULTS} and log.txt")


if __name__ == "__main__":
    gpu_command()
